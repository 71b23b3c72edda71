"""The committed example of a whole audit: real digits, a network over its training, attacks and every study.

    python -m benchmarks.full_audit --data ../shared/data --out reports/mnist-lenet

Runs the command line, as a user would: `riskaudit prior fit`, `verify` and the four studies, all into one report.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.training import lenet, train
from riskaudit.cli.app import run
from riskaudit.inputs import load_samples
from riskaudit.inputs.architectures.registry import get_architecture

SHAPE = (1, 28, 28)
FORMATS = ("html", "pdf", "json", "csv", "md")


def make_checkpoints(data: Path, folder: Path, epochs: Sequence[int], count: int | None) -> list[Path]:
    """LeNet with uniform weights after so many epochs of Adam on MNIST's training images."""
    samples, model, done, files = load_samples(data / "mnist_train.npz", channels=1, limit=count), lenet(SHAPE), 0, []
    for number in epochs:
        train(model, samples, number - done)
        done = number
        files.append(folder / f"lenet-epoch-{number:02d}.safetensors")
        registered = get_architecture("lenet").build(channels=1, features=model[-1].in_features, classes=10)
        weights = zip(registered.state_dict(), model.state_dict().values(), strict=True)
        save_file({name: value.contiguous() for name, value in weights}, files[-1])
    return files


def commands(data: Path, files: list[Path], folder: Path, out: Path, samples: int, quick: bool) -> list[list[str]]:
    """What a user would type."""
    prior, last, noise = folder / "digits-prior.safetensors", str(files[-1]), "gaussian:0.001"
    common = [
        "--data", str(data / "mnist_test.npz"), "--limit", str(samples), "--prior", str(prior), "--quiet",
    ]  # fmt: skip
    written = [word for name in FORMATS for word in ("--format", name)]
    again = ["--release", noise, *common, *written, "--out", str(out), "--add-to", str(out / "audit.json")]
    steps = ["--attack-steps", "5"] if quick else []
    fit = ["prior", "fit", str(data / "mnist_train.npz"), "--kind", "class", "--components", "100", "--out", str(prior)]
    attacks = ["--attack", "gauss-newton", "--attack", "inverting-gradients", *steps]
    return [
        [*fit, "--quiet", *(["--limit", "300"] if quick else [])],
        ["verify", last, *common, *written, "--noise-std", "0.001", "--noise-std", "0.01", *attacks, "--out", str(out)],
        ["study", "fairness", last, *again],
        ["study", "directions", last, *again],
        ["study", "initialization", last, *again, "--seeds", "2"],
        ["study", "training", *map(str, files), *again],
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of mnist_train.npz and mnist_test.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny sizes that only try the code")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        files = make_checkpoints(
            options.data, Path(name), (0, 1) if options.quick else (0, 1, 5, 20), 300 if options.quick else None
        )
        for line in commands(options.data, files, Path(name), options.out, options.samples, options.quick):
            print("riskaudit", *line, flush=True)
            code = run(line)
            if code not in (0, 1):
                raise SystemExit(code)


if __name__ == "__main__":
    main()
