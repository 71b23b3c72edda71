"""Hold the proxies against attacks, calibrate, and scan with intervals, all from Python; takes the folder for results.

Run: python examples/verify_in_python.py FOLDER
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import riskaudit
from riskaudit.studies.verify.record import VerifyStudy


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    demo = Path(str(files("riskaudit") / "demo"))
    checkpoint = riskaudit.load_checkpoint(demo / "digits-lenet.safetensors")
    samples = riskaudit.load_samples(demo / "digits.npz", channels=checkpoint.input_channels)
    audited, others = samples.select(list(range(6))), samples.select(list(range(6, 25)))
    # A prior that neither depends on the audited samples nor on those of the calibration.
    settings = riskaudit.AuditSettings(release="gaussian:0.02", prior_mean=0.3, prior_std=0.35)
    attacks = riskaudit.AttackSettings(("gauss-newton",), steps=20)

    verified = riskaudit.verify(checkpoint, audited, settings, attacks, noise_stds=[0.02])
    study = verified.studies.get(VerifyStudy)
    print(f"positive control: {study.control.status}")
    for row in study.agreement:
        if (row.attack, row.metric, row.proxy) == ("strongest", "rmse", "map_i2f"):
            print(f"attack over prediction, median: {row.tightness_median:.2f}")

    calibration = riskaudit.calibrate(checkpoint, others, settings, attacks)
    calibration.save(folder / "calibration.json")
    print(f"wrote {folder / 'calibration.json'}")
    result = riskaudit.audit(checkpoint, audited, settings, calibration=str(folder / "calibration.json"))
    for sample in result.samples:
        found = sample.calibrated["map_rmse"]
        print(f"sample {sample.id}: error of the strongest attack between {found.low:.3f} and {found.high:.3f}")
    (folder / "audit.html").write_bytes(riskaudit.render(verified, ["html"])["audit.html"])
    print(f"wrote {folder / 'audit.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "verified"))
