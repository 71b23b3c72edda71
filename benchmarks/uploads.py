"""Attacks on uploads of several samples: do they end where the prediction says, and how much do they reconstruct?

    python -m benchmarks.uploads EXPERIMENT... --data ../shared/data --scratch FOLDER --rows FILE.jsonl

Every finished upload is a line of the file at once; a rerun goes on with the uploads that it lacks. Predictions are
map_i2f, solved by conjugate gradient for the very noise that the attack's observation carries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.agreement import CIFAR, FIRST, MNIST, Bench
from benchmarks.options import Printer, experiment_parser
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Table
from benchmarks.training import lenet
from riskaudit.attacks import Attack, DeepLeakage, GaussNewton, InvertingGradients, Reconstruction
from riskaudit.attacks.optimise.curvature import EarlierCurvature
from riskaudit.attacks.optimise.levenberg_marquardt import MatchingProblem, StoppingRule
from riskaudit.audit import AuditSettings
from riskaudit.audit.client import Client, make_client
from riskaudit.inputs import Samples
from riskaudit.inputs.architectures import get_architecture
from riskaudit.linalg import LinearOperator
from riskaudit.linalg.solvers.truncated_cg import truncated_cg
from riskaudit.priors import WhitenedOperator, in_uploads
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator
from riskaudit.studies.attacking import Target, matched_order, reconstruct

# Relative residual of a prediction's linear system by the precision, and products that it may take.
RESIDUALS, MOST_PRODUCTS = {torch.float64: 1e-8, torch.float32: 1e-3}, 20000
# At the first rate losses of the benchmark's networks rise to 30 and above before they fall; at the second they fall.
LOCAL, CALM = "local:epochs=5:batch=2:lr=0.1", "local:epochs=5:batch=2:lr=0.01"
WITHIN = (0.9, 1.1)
# Objectives, of twice the negative log posterior, that differ by less are the same point but for the stopping rule.
SAME_OBJECTIVE = 1.0
# PSNR above which an image counts as recovered, as in the published scripts for FEMNIST of Dimitrov et al., TMLR 2022.
RECOVERED = 20.0


@dataclass(frozen=True)
class Case:
    """One kind of upload.

    Attributes:
        release: without noise.
        size: samples of an upload.
        noise_stds: levels, each attacked.
        model: makes it.
        uploads: how many of them.
        images: file of the samples.
        prior: kind, and file of the images that it is fitted to.
        steps: of the attack at most.
        dtype: of all but the numbers of a sample.
        dense: whether the prediction is preconditioned by a dense K, which costs a product per pixel of the upload.
    """

    release: str
    size: int
    noise_stds: tuple[float, ...]
    model: Callable[[Bench], nn.Module]
    uploads: int = 8
    images: str = "mnist_test"
    prior: tuple[str, str] = ("class", "mnist_train")
    steps: int = 60
    dtype: Literal["float32", "float64"] = "float64"
    dense: bool = True


def untrained(bench: Bench) -> nn.Module:
    """The lenet of the other benchmarks."""
    return lenet(MNIST)


def colours(bench: Bench) -> nn.Module:
    """The lenet of the other benchmarks, for images of CIFAR-10."""
    return lenet(CIFAR)


def trained_relu(bench: Bench) -> nn.Module:
    """A ReLU lenet with more than 95 % of the test images right."""
    path = bench.scratch / "relu-lenet.pt"
    if path.exists():
        model = lenet(MNIST, nn.ReLU)
        model.load_state_dict(torch.load(path))
        return model
    model, reached = bench.trained(nn.ReLU, 6)
    print(f"ReLU lenet trained to {reached:.1%}", flush=True)
    torch.save(model.state_dict(), path)
    return model


def batch_norms(bench: Bench) -> nn.Module:
    """The untrained lenet with a batch norm before every sigmoid."""
    layers: list[nn.Module] = []
    for layer in lenet(MNIST):
        layers += [layer, nn.BatchNorm2d(layer.out_channels)] if isinstance(layer, nn.Conv2d) else [layer]
    return nn.Sequential(*layers).eval()


def resnet(bench: Bench) -> nn.Module:
    """An untrained resnet18."""
    torch.manual_seed(0)
    return get_architecture("resnet18").build(channels=3, classes=10).eval()


CASES = {
    "mean-4": Case("mean:4", 4, (1e-2, 1e-3), untrained),
    "mean-8": Case("mean:8", 8, (1e-2, 1e-3), untrained),
    "fedavg-4": Case(LOCAL, 4, (1e-2, 1e-3), untrained),
    "relu-mean-4": Case("mean:4", 4, (1e-2, 1e-3), trained_relu),
    "relu-mean-8": Case("mean:8", 8, (1e-2, 1e-3), trained_relu),
    "calm-fedavg-4": Case(CALM, 4, (1e-3, 1e-4), untrained),
    "relu-fedavg-4": Case(CALM, 4, (1e-3, 1e-4), trained_relu),
    "batch-norm-mean-4": Case("mean:4", 4, (3e-3,), batch_norms),
    # As good as undefended, so that what is told of it bounds what is told without noise from below.
    "cifar-mean-4": Case("mean:4", 4, (1e-4,), colours, 1, "cifar10_test", ("data", "cifar10_train")),
    "cifar-fedavg-4": Case(LOCAL, 4, (1e-4,), colours, 1, "cifar10_test", ("data", "cifar10_train")),
    "resnet18-mean-4": Case(
        "mean:4",
        4,
        (1e-2,),
        resnet,
        1,
        "cifar10_test",
        ("data", "cifar10_train"),
        steps=20,
        dtype="float32",
        dense=False,
    ),
}


@dataclass(frozen=True)
class Strength:
    """Undefended uploads, and attacks on them.

    Attributes:
        release: without noise.
        size: samples of an upload.
        images: file of the samples.
        model: makes it.
        attacks: by a label.
        uploads: how many of them.
        prior: kind, and file of the images that it is fitted to.
    """

    release: str
    size: int
    images: str
    model: Callable[[], nn.Module]
    attacks: Mapping[str, Attack]
    uploads: int
    prior: tuple[str, str]


def wide() -> nn.Module:
    """A network with more weights than 50 MNIST images have pixels: 83,466 of them, tanh, PyTorch's initialization."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, 2, padding=2), nn.Tanh(), nn.Conv2d(32, 64, 5, 2, padding=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(64 * 49, 10),
    ).eval()  # fmt: skip


DESCENTS = {
    "gauss-newton": GaussNewton(restarts=1),
    "dlg": DeepLeakage(steps=300),
    "inverting-gradients": InvertingGradients(steps=300),
}
FIFTY = {
    "gauss-newton": GaussNewton(steps=60, restarts=1, products=400),
    "dlg": DeepLeakage(steps=300),
    "inverting-gradients": InvertingGradients(steps=300, total_variation=1e-4),
}
COLOURS, DIGITS = ("data", "cifar10_train"), ("class", "mnist_train")
STRENGTHS = {
    "cifar-step": Strength("mean:4", 4, "cifar10_test", lambda: lenet(CIFAR), DESCENTS, 2, COLOURS),
    "cifar-fedavg": Strength(LOCAL, 4, "cifar10_test", lambda: lenet(CIFAR), DESCENTS, 2, COLOURS),
    "mnist-50-step": Strength("mean:50", 50, "mnist_test", wide, FIFTY, 1, DIGITS),
    **{
        f"mnist-50-epochs-{epochs}": Strength(
            f"local:epochs={epochs}:batch=5:lr=0.01", 50, "mnist_test", wide, FIFTY, 1, DIGITS
        )
        for epochs in (1, 3, 10)
    },
}


class Rows:
    """Finished uploads, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def has(self, **key: Any) -> bool:
        """Whether there is a row with these values."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """One more."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, **key: Any) -> list[dict[str, Any]]:
        """Those with these values."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in key.items())]


def predictions(client: Client, noise_std: float, *, dense: bool = True) -> tuple[Tensor, int]:
    """Root mean square of every sample's error by the linearised MAP attacker for the drawn noise, [n]; products.

    In w of x = mu + L w: (L J^T J L + sigma^2) e = L J^T delta - sigma^2 w.
    """
    batch, size = client.upload_batch([0]), client.upload_size
    samples = client.chosen.prior.bind(batch.targets, batch.inputs.flatten(1))
    prior, release = in_uploads(samples, size), client.at_noise(noise_std).release
    noise = release.sample_noise(sample_generator(client.settings.seed, 0, NOISE_STREAM))
    jacobian = client.jacobian(client.release)(batch)
    truth = prior.inverse_root(batch.inputs.reshape(1, -1) - prior.mean)
    rhs = prior.root(jacobian.rmatvec(noise[None]).detach()) - noise_std**2 * truth
    residual = RESIDUALS[rhs.dtype]
    operator = Counted(WhitenedOperator(jacobian.hessian(), prior))
    shift, forcing = rhs.new_full((1,), noise_std**2), rhs.new_full((1,), residual)
    curvature = EarlierCurvature(*rhs.shape)
    if dense:
        curvature.pay([0], torch.tensor([rhs.shape[1]]))
        curvature.refresh([0], operator.operator)
    with torch.no_grad():
        preconditioner = curvature.preconditioner([0], shift)
        solved, image, _ = truncated_cg(operator, rhs, shift, forcing, MOST_PRODUCTS, preconditioner)
    if (image - rhs).norm() > 2 * residual * rhs.norm():
        raise RuntimeError(f"no prediction: the solve stopped at a residual of {float((image - rhs).norm()):.1e}")
    errors: Tensor = prior.root(solved).reshape(size, -1).square().mean(1).sqrt()
    return errors, operator.products


class Counted(LinearOperator):
    """An operator that counts its products."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.num_samples, operator.shape, operator.dtype, operator.device)
        self.operator, self.products = operator, 0

    @override
    def _matmat(self, columns: Tensor) -> Tensor:
        self.products += columns.shape[-1]
        return self.operator.matmat(columns)

    @override
    def select(self, indices: list[int]) -> LinearOperator:
        return self.operator.select(indices)


def problem_at_truth(target: Target, indices: list[int]) -> tuple[MatchingProblem, Tensor]:
    """The MAP problem, and w at the truth [1, n d]."""
    observation = target.observe(indices)
    prior = observation.bound_prior()
    sigma = observation.release.noise.fisher_std if observation.release.noise is not None else 0.0
    problem = MatchingProblem(observation, prior, observation.released.new_full((1,), sigma**2).double())
    truth = target.client.batch(indices).inputs.reshape(1, -1)
    return problem, prior.inverse_root(truth - prior.mean)


def ratio_row(client: Client, noise_std: float, predicted: Tensor, steps: int) -> dict[str, Any]:
    """The attack beside the prediction, per sample.

    Where it misses, the same search is also begun at the truth: if that ends lower, the search had got stuck, else the
    prediction is off.
    """
    indices = list(range(client.upload_size))
    target = Target.of(client, noise_std, labels_known=True)
    truth = client.batch(indices)
    began = time.perf_counter()
    found: Reconstruction = reconstruct(GaussNewton(steps=steps), target, indices)
    seconds = time.perf_counter() - began

    def matched_errors(inputs: Tensor) -> Tensor:
        order = matched_order(inputs, truth.inputs, len(indices))
        return (inputs[order] - truth.inputs).flatten(1).square().mean(1).sqrt()

    problem, at_truth = problem_at_truth(target, indices)
    state = problem.start(at_truth)
    row: dict[str, Any] = {
        "noise": noise_std,
        "rmse": matched_errors(found.inputs).tolist(),
        "predicted": predicted.tolist(),
        "classmates": [int((truth.targets == label).sum()) - 1 for label in truth.targets],
        "status": found.status[0],
        "steps": int(found.steps[0]),
        "objective": float(found.objective[0]),
        "objective at truth": float(2 * state.value[0] / problem.sigma**2),
        "seconds": seconds,
    }
    found_ratios = ratios([row])
    if found_ratios.min() < WITHIN[0] or found_ratios.max() > WITHIN[1]:
        state = problem.minimise(state, StoppingRule(steps, 100, 0.1, 1e-5))
        row["objective from truth"] = float(2 * state.value[0] / problem.sigma**2)
        row["rmse from truth"] = matched_errors(target.observe(indices).images(problem.inputs(state.point))).tolist()
    return row


def client_of(bench: Bench, case: Case, model: nn.Module, upload: int) -> Client:
    """A client whose data are one upload; its number seeds the noise."""
    samples: Samples = bench.images(case.images, FIRST + case.size * upload, case.size)
    settings = AuditSettings(
        release=case.release,
        prior=bench.prior(*case.prior),
        seed=upload,
        dtype=case.dtype,
    )
    return make_client(model, samples, settings)


def predicted(bench: Bench, rows: Rows, name: str) -> None:
    """`gauss-newton` with the class prior against the dense prediction made beforehand."""
    case = CASES[name]
    if bench.quick:
        case = replace(
            case, uploads=1, noise_stds=case.noise_stds[:1], size=2, release=case.release.replace(":4", ":2")
        )
    model = case.model(bench)
    for std, upload in product(case.noise_stds, range(case.uploads)):
        if rows.has(case=name, upload=upload, noise=std):
            continue
        client = client_of(bench, case, model, upload)
        expected, products = predictions(client, std, dense=case.dense)
        row = ratio_row(client, std, expected, steps=2 if bench.quick else case.steps)
        rows.add({"case": name, "upload": upload, "products of the prediction": products, **row})
        print(f"{name} {upload} {std:g}: {ratios([row])} {row['status']} {row['seconds']:.0f} s", flush=True)
    bench.printer.add(ratio_table(name, case, rows))


def ratios(rows: Sequence[dict[str, Any]], key: str = "rmse") -> np.ndarray:
    """Attack over prediction, of all samples."""
    pairs = [(error, guess) for row in rows for error, guess in zip(row[key], row["predicted"], strict=True)]
    return np.array([error / guess for error, guess in pairs])


def ratio_table(name: str, case: Case, rows: Rows) -> Table:
    """A line per noise level: all samples, and those without a classmate."""
    columns = ("noise", "samples", "n", "q5", "q25", "median", "q75", "q95", "within 10 %", "converged", "stuck")
    table = Table(f"{name}: {case.release}, gauss-newton / map_i2f", {column: column for column in columns})
    for std in case.noise_stds:
        uploads = rows.of(case=name, noise=std)
        every = ratios(uploads)
        alone = np.array([count == 0 for row in uploads for count in row["classmates"]], dtype=bool)
        for label, found in (("all", every), ("without a classmate", every[alone])):
            if not len(found):
                continue
            quantiles = np.quantile(found, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
            line: dict[str, Any] = dict(zip(("q5", "q25", "median", "q75", "q95"), quantiles, strict=True))
            within = float(np.mean((found >= WITHIN[0]) & (found <= WITHIN[1])))
            line |= {"noise": std, "samples": label, "n": len(found), "within 10 %": within}
            if label == "all":
                line["converged"] = f"{sum(row['status'] == 'converged' for row in uploads)} of {len(uploads)}"
                line["stuck"] = sum(is_stuck(row) for row in uploads)
            table.rows.append(line)
    table.notes.append("Stuck: uploads for which the same search from the truth ends lower, so that it is to blame.")
    return table


def is_stuck(row: dict[str, Any]) -> bool:
    """Whether a lower objective is known than the search found."""
    known = min(row["objective at truth"], row.get("objective from truth", np.inf))
    return bool(row["objective"] > known + SAME_OBJECTIVE)


def reconstructed(bench: Bench, rows: Rows, name: str) -> None:
    """Attacks on undefended uploads: PSNR of every image, and how many count as recovered."""
    case = STRENGTHS[name]
    if bench.quick:
        attacks = {label: replace(attack, steps=2) for label, attack in case.attacks.items()}  # type: ignore[type-var]
        case = replace(case, release="mean:2", size=2, attacks=attacks, uploads=1)
    for upload, (label, attack) in product(range(case.uploads), case.attacks.items()):
        if rows.has(case=name, upload=upload, attack=label):
            continue
        samples = bench.images(case.images, FIRST + case.size * upload, case.size)
        settings = AuditSettings(release=case.release, prior=bench.prior(*case.prior), seed=upload, dtype="float64")
        client = make_client(case.model(), samples, settings)
        target, indices = Target.of(client, None, labels_known=True), list(range(case.size))
        began = time.perf_counter()
        found = reconstruct(attack, target, indices)
        truth = client.batch(indices).inputs
        guesses = found.inputs.clamp(0, 1)[matched_order(found.inputs, truth, case.size)]
        psnr = -10 * (guesses - truth).double().flatten(1).square().mean(1).log10()
        row = {"psnr": psnr.tolist(), "steps": int(found.steps[0]), "objective": float(found.objective[0])}
        rows.add({"case": name, "upload": upload, "attack": label, "seconds": time.perf_counter() - began, **row})
        print(f"{name} {upload} {label}: median {float(psnr.median()):.1f} dB, {int(found.steps[0])} steps", flush=True)
    columns = ("attack", "n", "least", "median", "most", "recovered", "steps")
    table = Table(f"{name}: {case.release}, PSNR in dB", {column: column for column in columns})
    for label in case.attacks:
        uploads = rows.of(case=name, attack=label)
        every = np.array([value for row in uploads for value in row["psnr"]])
        line = {"least": float(every.min()), "median": float(np.median(every)), "most": float(every.max())}
        line |= {"attack": label, "n": len(every), "recovered": float(np.mean(every > RECOVERED))}  # type: ignore[dict-item]
        table.rows.append({**line, "steps": max(row["steps"] for row in uploads)})
    table.notes.append(f"Recovered: the share of images above {RECOVERED:g} dB.")
    bench.printer.add(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiments named."""
    parser = experiment_parser(__doc__, "mnist_train.npz and the others")
    parser.add_argument("experiments", nargs="+", choices=[*CASES, *STRENGTHS])
    parser.add_argument("--scratch", type=Path, required=True, help="folder for fitted priors and trained weights")
    parser.add_argument("--rows", type=Path, required=True, help="file of finished uploads, which a rerun goes on with")
    options = parser.parse_args(arguments)
    measurement = Measurement(threads=options.threads, dtype="float64")
    measurement.apply()
    printer = Printer("Attacks on uploads", measurement)
    options.scratch.mkdir(parents=True, exist_ok=True)
    bench, rows = Bench(options.data, options.scratch, printer, options.quick), Rows(options.rows)
    for name in options.experiments:
        (predicted if name in CASES else reconstructed)(bench, rows, name)
    printer.finish(options.json)


if __name__ == "__main__":
    main()
