"""Whom does the average hide? Samples, classes and groups of one's own compared, on the data of ``riskaudit demo``.

    python examples/study_fairness.py [FOLDER]

Writes audit.html and audit.json into FOLDER (default: riskaudit-fairness).
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import riskaudit
from riskaudit.studies.fairness.record import FairnessStudy
from riskaudit.studies.fairness.run import fairness_study


def main(folder: Path) -> None:
    data = Path(str(files("riskaudit"))) / "demo"
    checkpoint = riskaudit.load_checkpoint(data / "digits-lenet.safetensors")
    samples = riskaudit.load_samples(data / "digits.npz", channels=checkpoint.input_channels)

    # Any groups will do: sites, devices, cohorts. Here the first half of the samples against the second.
    groups = {name: "early" if place < len(samples) // 2 else "late" for place, name in enumerate(samples.ids)}
    settings = riskaudit.AuditSettings(release="gaussian:0.01")
    result = fairness_study(checkpoint, samples, settings, groups=groups, groups_name="halves")

    study = result.studies.get(FairnessStudy)
    revealed = study.distributions[0]
    print(f"Gini of the revealed fraction {revealed.gini:.2f}, worst / median {revealed.worst_to_median:.1f}")
    for one in study.comparisons:
        if one.measure == "revealed_fraction":
            test = one.kruskal_wallis
            print(f"by {one.by}: p = {test.p_value:.2g}, epsilon squared = {one.epsilon_squared:.2f}")
    print(f"{len(study.exposed)} of {len(samples)} samples have less than a tenth of the average's protection:")
    for one in study.samples:
        if one.sample_id in study.exposed:
            print(f"  {one.sample_id}: {one.share_of_average:.1%} of the average, influence {one.influence:.0f}")

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in riskaudit.render(result, ["html", "json"]).items():
        (folder / name).write_bytes(content)
        print("wrote", folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("riskaudit-fairness"))
