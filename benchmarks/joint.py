"""Products with the Jacobian of an upload of several samples: of a mean gradient, and of local training.

    python -m benchmarks.joint --data mnist_test.npz cifar10_test.npz

The unit of a mean's products is one plain gradient of the whole upload's loss; that of local training's products is the
training itself, by torch.optim. Memory is the peak of all tensors of one product, set-up included.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from benchmarks.models import CASES, SEED, Case, load_batch, normal_vectors
from benchmarks.options import Printer, Settings, make_parser, read_settings
from benchmarks.tables import Spread, Table
from benchmarks.timing import median_ratio, take_turns
from riskaudit.jacobian import GenericJacobian, Jacobian, JacobianFactory, joint_jacobian_maker
from riskaudit.release import Batch, make_release, with_batch_statistics
from riskaudit.release.joint import JointRelease

SAMPLES = 8
STEPS = (1, 10, 50)
BATCHES = (2, 8)
RATE = 0.1
DEFAULT = ("lenet-28", "resnet18")
# Products of the generic Jacobian after which it has traced itself.
SETTLES_AFTER = 6


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", choices=["means", "training"], help="one of both parts")
    options = parser.parse_args(arguments)
    if not options.models and not options.quick:
        options.models = list(DEFAULT)
    settings, cases = read_settings(options)
    printer = Printer("Uploads of several samples", settings)
    if options.only != "training":
        for case in cases:
            for statistics in ("running", "batch") if case.name == "resnet18" else ("running",):
                printer.add(means(case, settings, statistics))
    if options.only != "means":
        printer.add(training(CASES["tiny" if settings.quick else "lenet-28"], settings))
    printer.finish(options.json)


def means(case: Case, settings: Settings, statistics: str) -> Table:
    """Products of a mean gradient's Jacobian, in gradients of the upload."""
    release, upload, source = _upload(case, settings, SAMPLES, f"mean:{SAMPLES}", statistics)
    maker = joint_jacobian_maker(release, upload)
    products = {"gradient": _gradient(release, upload)}
    settled = {"gradient": 1}
    for name, jacobian in (("structured", maker(upload)), ("generic", GenericJacobian(release, upload))):
        products |= {f"{name}, {what}": product for what, product in _products(jacobian).items()}
        settled |= {f"{name}, {what}": SETTLES_AFTER if name == "generic" else 1 for what in _products(jacobian)}
    times = take_turns(products, settings.repeats, settings.torch_device, settled)
    norm = f", batch norm with {statistics} statistics" if case.name == "resnet18" else ""
    title = f"{case.name}, {release.num_entries} parameters, mean of {SAMPLES}{norm}, {source}; {maker.kind}"
    columns = {"product": "product", "milliseconds": "ms", "gradients": "gradients of the upload"}
    table = Table(title, columns)
    table.rows = [
        {
            "product": name,
            "milliseconds": Spread.of([1000 * value for value in values]),
            "gradients": median_ratio(values, times["gradient"]),
        }
        for name, values in times.items()
    ]
    return table


def training(case: Case, settings: Settings) -> Table:
    """Products through the steps of local training, in times of those steps."""
    columns = {"batch": "batch", "steps": "steps", "milliseconds": "training, ms"}
    columns |= {"push": "J v", "pull": "J^T u", "push_mib": "J v, MiB", "pull_mib": "J^T u, MiB"}
    columns |= {"push_ratio": "times one step's", "pull_ratio": "times one step's (J^T u)"}
    table = Table(f"{case.name}, local training at lr {RATE}, {settings.dtype}", columns)
    for size in BATCHES:
        first: dict[str, Any] = {}
        for steps in STEPS[:2] if settings.quick else STEPS:
            row = _training_row(case, settings, size, steps)
            first = first or row
            row |= {f"{what}_ratio": row[f"{what}_mib"] / first[f"{what}_mib"] for what in ("push", "pull")}
            table.rows.append(row)
    return table


def _training_row(case: Case, settings: Settings, size: int, steps: int) -> dict[str, Any]:
    release, upload, _ = _upload(case, settings, size, f"local:epochs={steps}:batch={size}:lr={RATE}", "running")
    maker = joint_jacobian_maker(release, upload)
    products = _products(maker(upload))
    functions = {"training": _train(release.model, upload, steps), "push": products["J v"], "pull": products["J^T u"]}
    times = take_turns(functions, settings.repeats, settings.torch_device)
    return {
        "batch": size,
        "steps": steps,
        "milliseconds": Spread.of([1000 * value for value in times["training"]]),
        "push": median_ratio(times["push"], times["training"]),
        "pull": median_ratio(times["pull"], times["training"]),
        "push_mib": _peak(maker, upload, "J v"),
        "pull_mib": _peak(maker, upload, "J^T u"),
    }


def _peak(maker: JacobianFactory, upload: Batch, name: str) -> float:
    """MiB of one product, with the set-up of its Jacobian."""

    def work() -> None:
        _products(maker(upload))[name]()

    return tensor_peak(work) / 2**20


def _upload(case: Case, settings: Settings, size: int, text: str, statistics: str) -> tuple[JointRelease, Batch, str]:
    """A release, one of its uploads, and where the samples come from."""
    torch.manual_seed(SEED)
    model = case.build().to(settings.torch_device, settings.torch_dtype).eval()
    model = with_batch_statistics(model) if statistics == "batch" else model
    samples, source = load_batch(case, size, settings.data, settings.torch_dtype, settings.torch_device)
    release = make_release(model, F.cross_entropy, text)
    assert isinstance(release, JointRelease)
    return release, samples.in_uploads(release.uploads(size)), source


def _gradient(release: JointRelease, upload: Batch) -> Callable[[], object]:
    weights = [weight for weight in release.model.parameters() if weight.requires_grad]
    return lambda: torch.autograd.grad(F.cross_entropy(release.model(upload.inputs), upload.targets), weights)


def _train(model: nn.Module, upload: Batch, steps: int) -> Callable[[], None]:
    """The client's own training, from the same weights every time."""
    trained = copy.deepcopy(model)
    start = copy.deepcopy(model.state_dict())

    def train() -> None:
        trained.load_state_dict(start)
        optimizer = torch.optim.SGD(trained.parameters(), lr=RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(trained(upload.inputs), upload.targets).backward()
            optimizer.step()

    return train


def _products(jacobian: Jacobian) -> Mapping[str, Callable[[], Tensor]]:
    rows, columns = jacobian.shape
    v = normal_vectors(1, columns, jacobian.dtype, jacobian.device)
    u = normal_vectors(1, rows, jacobian.dtype, jacobian.device)
    return {
        "J v": lambda: jacobian.matvec(v),
        "J^T u": lambda: jacobian.rmatvec(u),
        "H v": lambda: jacobian.hessian().matvec(v),
    }


def tensor_peak(work: Callable[[], object]) -> int:
    """Bytes of all tensors that live at once at most, of those made by the work."""
    with _Storages() as storages:
        work()
    return storages.peak


class _Storages(TorchDispatchMode):
    """Within this context, the memory of new tensors is counted while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


if __name__ == "__main__":
    main()
