"""Audit a model from Python: the README's example, on the data of ``riskaudit demo``.

    python examples/audit_in_python.py [FOLDER]

Writes audit.html and audit.json into FOLDER (default: riskaudit-example).
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import riskaudit


def main(folder: Path) -> None:
    data = Path(str(files("riskaudit"))) / "demo"
    checkpoint = riskaudit.load_checkpoint(data / "digits-lenet.safetensors")
    samples = riskaudit.load_samples(data / "digits.npz", channels=checkpoint.input_channels)

    result = riskaudit.audit(checkpoint, samples, release="clip:1.0,gaussian:0.01")

    for row in sorted(result.samples, key=lambda row: -(row.proxies["revealed_fraction"].value or 0))[:3]:
        revealed, error = row.proxies["revealed_fraction"], row.proxies["posterior_rmse"]
        print(f"sample {row.id} (digit {row.target}): {row.verdict}, {revealed.value:.1%} revealed ({revealed.status})")
        print(f"  an attacker's error would be {error.value:.3f}, noise that protects it: {row.noise_std_for_target}")

    outcome = riskaudit.Policy(max_revealed=0.2).decide(result)
    print(outcome.decision, "because", "; ".join(outcome.reasons))

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in riskaudit.render(result, ["html", "json"]).items():
        (folder / name).write_bytes(content)
        print("wrote", folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("riskaudit-example"))
