"""How well the proxies foretell attacks: real images, attacks at full strength, nothing tuned on what is reported.

    python -m benchmarks.agreement EXPERIMENT... --data ../shared/data

Prints a table per experiment and writes every number with --json. Each takes minutes on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.options import Printer, experiment_parser
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Table
from benchmarks.training import accuracy, lenet, train
from riskaudit.audit import AuditSettings
from riskaudit.inputs import Samples, load_samples
from riskaudit.inputs.architectures import get_architecture
from riskaudit.metrics import METRICS
from riskaudit.priors import fit_prior, save_prior
from riskaudit.proxies import PROXIES
from riskaudit.results import AuditResult
from riskaudit.results.words import sign_mark
from riskaudit.statistics.conformal import conformal_factors
from riskaudit.studies.calibrate.run import calibrate
from riskaudit.studies.rows import AttackRow
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.verify.record import STRONGEST, AgreementRow, VerifyStudy
from riskaudit.studies.verify.run import verify

# Reported samples; those before them served to try things out.
FIRST = 100
MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
RANKED = (
    "gradient_norm", "i2f_lower_bound", "i2f", "expected_rmse", "posterior_rmse", "map_rmse", "map_i2f",
    "lavp_l2_max", "lavp_l2_min", "lavp_cosine_max", "lavp_cosine_min",
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What every experiment gets.

    Attributes:
        folder: of mnist_train.npz, mnist_test.npz, cifar10_test.npz.
        scratch: folder for fitted priors.
        printer: of the tables.
        quick: tiny sizes that only try the code.
    """

    folder: Path
    scratch: Path
    printer: Printer
    quick: bool

    def images(self, name: str, first: int, count: int) -> Samples:
        """Some images of a file."""
        count = min(count, 4) if self.quick else count
        every = load_samples(self.folder / f"{name}.npz", channels=1 if "mnist" in name else 3, limit=first + count)
        return every.select(list(range(first, first + count)))

    def prior(self, kind: str, name: str, first: int = 0) -> str:
        """A prior file fitted to images from ``first`` on."""
        path = self.scratch / f"{name}-{kind}-{first}.safetensors"
        if not path.exists():
            every = load_samples(self.folder / f"{name}.npz", channels=1 if "mnist" in name else 3)
            save_prior(fit_prior(every.select(list(range(first, len(every)))), kind), path)
        return str(path)

    def trained(self, activation: type[nn.Module], epochs: int) -> tuple[nn.Module, float]:
        """A lenet after some epochs on MNIST, and its accuracy on the test images."""
        model = lenet(MNIST, activation)
        training = load_samples(self.folder / "mnist_train.npz", channels=1, limit=200 if self.quick else None)
        train(model, training, epochs)
        return model, accuracy(model, load_samples(self.folder / "mnist_test.npz", channels=1))


def studied(
    model: nn.Module,
    samples: Samples,
    attacks: Sequence[str],
    noise_stds: Sequence[float],
    prior: str = "isotropic",
    steps: int | None = None,
    restarts: int | None = None,
    tuning: Samples | None = None,
    **settings: Any,
) -> tuple[AuditResult, VerifyStudy]:
    """One verify study; hyper-parameters are chosen on the samples for tuning, if there are any."""
    result = verify(
        model,
        samples,
        AuditSettings(prior=prior, **settings),
        AttackSettings(tuple(attacks), steps, restarts, tune=tuning is not None),
        noise_stds=noise_stds,
        tuning_samples=tuning,
    )
    return result, result.studies.get(VerifyStudy)


def errors(study: VerifyStudy, attack: str, noise_std: float) -> dict[str, float]:
    """RMSE of one attack per sample; of the strongest without oracle start."""
    rows: list[AttackRow] = [row for row in study.attacks if row.noise_std == noise_std]
    if attack != STRONGEST:
        rows = [row for row in rows if row.attack == attack]
    else:
        rows = [row for row in rows if not row.oracle_start]
    found: dict[str, float] = {}
    for row in rows:
        value = row.metrics.get("rmse")
        if value is not None:
            found[row.sample_id] = min(value, found.get(row.sample_id, math.inf))
    return found


def ratios(study: VerifyStudy, attack: str, noise_std: float, proxy: str) -> np.ndarray:
    """Attack RMSE over prediction, per sample."""
    found = errors(study, attack, noise_std)
    predicted = {one.sample_id: one.proxies[proxy].value for one in study.predictions if one.noise_std == noise_std}
    pairs = [(error, predicted.get(sample)) for sample, error in found.items()]
    return np.array([error / guess for error, guess in pairs if guess])


def ratio_row(label: str, study: VerifyStudy, attack: str, noise_std: float, proxy: str) -> dict[str, Any]:
    """One line of a tightness table."""
    found = ratios(study, attack, noise_std, proxy)
    if not len(found):
        return {"case": label, "attack": attack, "noise": noise_std, "proxy": proxy, "n": 0}
    low, quarter, middle, three, high = np.quantile(found, [0.05, 0.25, 0.5, 0.75, 0.95])
    rows = [row for row in study.attacks if row.attack == attack and row.noise_std == noise_std]
    return {
        "case": label,
        "attack": attack,
        "noise": noise_std,
        "proxy": proxy,
        "n": len(found),
        "q5": float(low),
        "q25": float(quarter),
        "median": float(middle),
        "q75": float(three),
        "q95": float(high),
        "within 5 %": float(np.mean((found >= 0.95) & (found <= 1.05))),
        "within 10 %": float(np.mean((found >= 0.9) & (found <= 1.1))),
        "0.75-1.33": float(np.mean((found >= 0.75) & (found <= 1.33))),
        "0.8-1.25": float(np.mean((found >= 0.8) & (found <= 1.25))),
        "below 0.9": float(np.mean(found < 0.9)),
        "below 0.75": float(np.mean(found < 0.75)),
        "converged": sum(row.status == "converged" for row in rows) if rows else None,
        "ratios": found.tolist(),
    }


def ratio_table(title: str) -> Table:
    """Columns of `ratio_row`."""
    names = (
        "case", "attack", "noise", "proxy", "n", "q5", "q25", "median", "q75", "q95", "within 5 %", "within 10 %",
        "0.8-1.25", "0.75-1.33", "below 0.9", "below 0.75", "converged",
    )  # fmt: skip
    return Table(title, {name: name for name in names})


def undefended(bench: Bench) -> None:
    """Attacks on undefended releases: the positive control at full size."""
    table = Table(
        "Undefended, RMSE",
        {
            name: name
            for name in ("case", "attack", "n", "median", "q80", "q90", "below 0.01", "below 0.02", "below 0.05")
        },
    )
    mnist, cifar = bench.images("mnist_test", FIRST, 16), bench.images("cifar10_test", FIRST, 8)
    earlier = bench.images("mnist_test", 0, 8)
    # Without noise one descent is enough, if it is long.
    for label, shape, samples, attacks, steps, tuning in (
        ("lenet MNIST", MNIST, mnist, ("gauss-newton",), 100, None),
        ("lenet CIFAR-10", CIFAR, cifar, ("gauss-newton",), 100, None),
        ("lenet MNIST, defaults", MNIST, mnist, ("inverting-gradients",), 1500, None),
        ("lenet MNIST, tuned on images 0 to 7", MNIST, mnist, ("inverting-gradients",), 1500, earlier),
    ):
        prior = {"prior_mean": 0.5, "prior_std": 0.3}
        dtype = "float32" if attacks[0] == "inverting-gradients" else "float64"
        _, study = studied(
            lenet(shape), samples, attacks, [0.0], proxies=("gradient_norm",), dtype=dtype,
            steps=20 if bench.quick else steps, restarts=1, tuning=tuning, **prior,
        )  # fmt: skip
        found = np.array(list(errors(study, attacks[0], 0.0).values()))
        table.rows.append(
            {
                "case": label,
                "attack": attacks[0],
                "n": len(found),
                "median": float(np.median(found)),
                "q80": float(np.quantile(found, 0.8)),
                "q90": float(np.quantile(found, 0.9)),
                **{f"below {limit}": float(np.mean(found < limit)) for limit in (0.01, 0.02, 0.05)},
                "errors": found.tolist(),
            }
        )
    torch.manual_seed(0)
    mlp = get_architecture("mlp").build(widths=(784, 128, 10)).eval()
    _, study = studied(mlp, mnist, ("analytic",), [0.0], proxies=("gradient_norm",))
    psnr = [row.metrics["psnr"] for row in study.attacks]
    known = [value for value in psnr if value is not None]
    table.notes.append(f"analytic on an mlp 784-128-10: least PSNR {min(known):.0f} dB of {len(known)} images.")
    bench.printer.add(table)


def local(bench: Bench) -> None:
    """`local` against i2f for the same drawn noise."""
    table = ratio_table("local (oracle start) / i2f")
    _, study = studied(lenet(MNIST), bench.images("mnist_test", FIRST, 32), ("local",), [1e-3, 1e-2])
    table.rows += [ratio_row("lenet MNIST", study, "local", std, "i2f") for std in (1e-3, 1e-2)]
    bench.printer.add(table)


def predicted(bench: Bench) -> None:
    """`gauss-newton` with the class prior against predictions made beforehand."""
    table = ratio_table("gauss-newton / predictions, class prior of 9000 other images")
    stds = [1e-3, 1e-2, 3e-2]
    samples = bench.images("mnist_test", FIRST, 32)
    _, study = studied(lenet(MNIST), samples, ("gauss-newton",), stds, bench.prior("class", "mnist_train"))
    for proxy in ("map_i2f", "map_rmse", "posterior_rmse"):
        table.rows += [ratio_row("lenet MNIST", study, "gauss-newton", std, proxy) for std in stds]
    bench.printer.add(table)


def priors(bench: Bench) -> None:
    """Every prior, data set and two states of training, against each attack and the strongest."""
    table = ratio_table("Attacks / predictions by prior")
    attacks, stds = ("gauss-newton", "inverting-gradients"), [1e-2]
    epoch, reached = bench.trained(nn.Sigmoid, 1)
    mnist, cifar = bench.images("mnist_test", FIRST, 16), bench.images("cifar10_test", FIRST, 8)
    cases: list[tuple[str, nn.Module, Samples, str, int]] = [
        ("lenet MNIST", lenet(MNIST), mnist, "mnist_train", 0),
        (f"lenet MNIST, one epoch ({reached:.0%})", epoch, mnist, "mnist_train", 0),
        ("lenet CIFAR-10", lenet(CIFAR), cifar, "cifar10_test", FIRST + 32),
    ]
    for label, model, samples, source, first in cases:
        for kind in ("isotropic", "data", "class"):
            prior = kind if kind == "isotropic" else bench.prior(kind, source, first)
            _, study = studied(model, samples, attacks, stds, prior, steps=20 if bench.quick else 400)
            for attack in (*attacks, STRONGEST):
                table.rows.append(ratio_row(f"{label}, {kind}", study, attack, stds[0], "map_rmse"))
            table.rows.append(ratio_row(f"{label}, {kind}", study, STRONGEST, stds[0], "posterior_rmse"))
            print(table.markdown(), flush=True)
    bench.printer.add(table)


def relu(bench: Bench) -> None:
    """How far the prediction carries: a trained ReLU lenet at small noise."""
    model, reached = bench.trained(nn.ReLU, 6)
    table = ratio_table(f"ReLU lenet trained to {reached:.1%}, class prior")
    for std in (1e-3, 1e-2, 1e-4):
        samples = bench.images("mnist_test", FIRST, 32 if std > 1e-4 else 16)
        _, study = studied(model, samples, ("gauss-newton",), [std], bench.prior("class", "mnist_train"))
        table.rows += [
            ratio_row("ReLU lenet MNIST", study, "gauss-newton", std, proxy) for proxy in ("map_i2f", "map_rmse")
        ]
        print(table.markdown(), flush=True)
    bench.printer.add(table)


def calibration(bench: Bench) -> None:
    """Coverage and width of calibrated intervals on other samples, and of a calibration from elsewhere."""
    table = Table(
        "Calibrated 90 % intervals of the strongest attack's RMSE",
        {
            name: name
            for name in (
                "calibrated on", "tested on", "n", "coverage", "validity", "upper / lower end",
                "coverage, other splits",
            )
        },
    )  # fmt: skip
    prior = bench.prior("class", "mnist_train")
    settings = AuditSettings(prior=prior)
    count = 64
    first, second = bench.images("mnist_test", FIRST, count), bench.images("mnist_test", FIRST + 64, count)
    epoch, _ = bench.trained(nn.Sigmoid, 1)
    untrained, attacks = lenet(MNIST), ("gauss-newton", "inverting-gradients")
    steps = 20 if bench.quick else 1000
    places = {
        "untrained, 0.01": (untrained, 1e-2),
        "untrained, 0.03": (untrained, 3e-2),
        "one epoch, 0.01": (epoch, 1e-2),
    }
    coverage = 0.5 if bench.quick else 0.9
    factors, calibrated_on = {}, {}
    for label, (model, std) in places.items():
        found = calibrate(model, first, settings, AttackSettings(attacks, steps), noise_stds=[std], coverage=coverage)
        level = found.levels[0]
        factors[label] = (level.low_factor or 0.0, level.high_factor or math.inf)
        calibrated_on[label] = level.ratios
    for tested, (model, std) in places.items():
        _, study = studied(model, second, attacks, [std], prior, steps=steps)
        found_ratios = ratios(study, STRONGEST, std, "map_rmse")
        for label, (low, high) in factors.items():
            if tested not in (label, "untrained, 0.01"):
                continue
            table.rows.append(
                {
                    "calibrated on": label,
                    "tested on": tested,
                    "n": len(found_ratios),
                    "coverage": float(np.mean((found_ratios >= low) & (found_ratios <= high))),
                    "validity": float(np.mean(found_ratios >= low)),
                    "upper / lower end": high / low if low else None,
                    "coverage, other splits": split_coverage(calibrated_on[label], found_ratios, coverage)
                    if tested == label
                    else None,
                }
            )
    table.notes.append("Other splits: the same images in two halves at random, 1000 times; mean (5 % to 95 %).")
    bench.printer.add(table)


def split_coverage(calibrated_on: Sequence[float], tested_on: Sequence[float], coverage: float) -> str:
    """Coverage over random splits of all ratios into as many to calibrate and to test: one split is one draw."""
    every, count = np.array([*calibrated_on, *tested_on]), len(calibrated_on)
    random, found = np.random.default_rng(0), []
    for _ in range(1000):
        shuffled = random.permutation(every)
        factors = conformal_factors(shuffled[:count], np.ones(count), coverage=coverage)
        low, high = factors.low or 0.0, math.inf if factors.high is None else factors.high
        found.append(np.mean((shuffled[count:] >= low) & (shuffled[count:] <= high)))
    return f"{np.mean(found):.3f} ({np.quantile(found, 0.05):.3f} to {np.quantile(found, 0.95):.3f})"


def ranking(bench: Bench) -> None:
    """Rank correlation of every proxy with every metric at fixed noise."""
    epoch, _ = bench.trained(nn.Sigmoid, 1)
    samples = bench.images("mnist_test", FIRST, 64)
    attacks = ("gauss-newton", "inverting-gradients")
    for label, model in (("untrained", lenet(MNIST)), ("one epoch", epoch)):
        _, study = studied(
            model, samples, attacks, [1e-2], bench.prior("class", "mnist_train"), steps=20 if bench.quick else 1000
        )
        columns = {"attack": "attack", "metric": "metric", **{name: name for name in RANKED}}
        table = Table(f"Spearman (95 % interval) at noise 0.01, lenet MNIST {label}, {len(samples)} images", columns)
        for attack in (*attacks, STRONGEST):
            for metric in ("rmse", "psnr", "ssim"):
                cells = {
                    row.proxy: f"{row.spearman:.2f} ({row.low:.2f} to {row.high:.2f}){_sign(row)}"
                    for row in study.agreement
                    if row.attack == attack and row.metric == metric and None not in (row.spearman, row.low, row.high)
                }
                table.rows.append({"attack": attack, "metric": metric, **cells})
        for found in study.loss_comparisons:
            table.notes.append(
                f"{found.attack}, {found.metric}: rho of {found.own} {found.own_rho}, of {found.other} "
                f"{found.other_rho}; |rho| differ with p = {found.p_value}"
            )
        for timing in study.timings:
            table.notes.append(f"{timing.attack}: proxies {timing.proxy_seconds} s, attack {timing.attack_seconds} s")
        bench.printer.add(table)


def _sign(row: AgreementRow) -> str:
    """The mark of a correlation whose sign is not the one that the proxy declares."""
    if row.spearman is None:
        return ""
    better = METRICS[row.metric].higher_is_better
    return sign_mark(row.spearman, row.low, row.high, PROXIES[row.proxy].riskier, better)


EXPERIMENTS: dict[str, Callable[[Bench], None]] = {
    function.__name__: function for function in (undefended, local, predicted, priors, relu, calibration, ranking)
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiments named."""
    parser = experiment_parser(__doc__, "mnist_train.npz and the others")
    parser.add_argument("experiments", nargs="+", choices=list(EXPERIMENTS))
    parser.add_argument("--scratch", type=Path, required=True, help="folder for fitted priors")
    options = parser.parse_args(arguments)
    measurement = Measurement(threads=options.threads, dtype="float64")
    measurement.apply()
    printer = Printer("Agreement of proxies and attacks", measurement)
    options.scratch.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.data, options.scratch, printer, options.quick)
    for name in options.experiments:
        EXPERIMENTS[name](bench)
    printer.finish(options.json)


if __name__ == "__main__":
    main()
