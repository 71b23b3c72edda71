"""Compare what a network leaks with other first weights, from Python; takes the folder for results.

Run: python examples/study_initialization.py FOLDER
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import riskaudit
from riskaudit.studies.initialization.record import InitializationStudy
from riskaudit.studies.initialization.run import initialization_study


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    demo = Path(str(files("riskaudit") / "demo"))
    checkpoint = riskaudit.load_checkpoint(demo / "digits-lenet.safetensors")
    samples = riskaudit.load_samples(demo / "digits.npz", channels=checkpoint.input_channels, limit=6)
    settings = riskaudit.AuditSettings(release="gaussian:0.003")

    names = ("uniform", "kaiming_uniform", "xavier_uniform", "default")
    result = initialization_study(checkpoint, samples, settings, seeds=2, names=names)

    study = result.studies.get(InitializationStudy)
    for row in study.rows:
        if row.posterior_rmse is None:
            print(f"{row.initialization}: {'; '.join(row.reasons)}")
        else:
            print(f"{row.rank}. {row.initialization}: median error left to an attacker {row.posterior_rmse.median:.3f}")
    print(study.recommendation)
    (folder / "audit.html").write_bytes(riskaudit.render(result, ["html"])["audit.html"])
    print(f"wrote {folder / 'audit.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "initialization"))
