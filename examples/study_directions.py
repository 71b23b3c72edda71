"""Which directions of the gradient protect, which layers leak, and what noise in another shape is worth.

    python examples/study_directions.py [FOLDER]

Writes audit.html and audit.json into FOLDER (default: riskaudit-directions).
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import riskaudit
from riskaudit.studies.base import StudyRun
from riskaudit.studies.directions.record import DirectionsStudy
from riskaudit.studies.directions.run import directions_study
from riskaudit.studies.settings import DirectionSettings


def main(folder: Path) -> None:
    data = Path(str(files("riskaudit"))) / "demo"
    checkpoint = riskaudit.load_checkpoint(data / "digits-lenet.safetensors")
    samples = riskaudit.load_samples(data / "digits.npz", channels=checkpoint.input_channels, limit=2)

    # With attacks, every prediction is checked by least squares from the truth.
    result = directions_study(
        checkpoint, samples, run=StudyRun(attacks=True), looked_at=DirectionSettings(norm=1e-4, attack_names=("local",))
    )

    study = result.studies.get(DirectionsStudy)
    for row in study.directions:
        if row.eigenvalue is not None and row.predicted_rmse is not None:
            print(f"sample {row.sample_id}, {row.direction}: l = {row.eigenvalue:.3g}, error predicted "
                  f"{row.predicted_rmse:.3g}, attacked {row.attacked['local']:.3g}")  # fmt: skip
    for layer in study.layers:
        print(f"layer {layer.layer}: {layer.revealed:.1%} revealed alone, {layer.revealed_without:.1%} without it")
    for shape in study.shaping_summary:
        print(f"{shape.scheme}: predicted error {shape.predicted:.3g}, attacked {shape.attacked}")

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in riskaudit.render(result, ["html", "json"]).items():
        (folder / name).write_bytes(content)
        print("wrote", folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("riskaudit-directions"))
