"""The structured Jacobian of uploads of several samples against the generic one, for every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import test_contractions
import torch
import torch.nn.functional as F
from contracts.completeness import cases_of
from contracts.contraction import ContractionContract, LayerCase
from contracts.linear_operator import normal
from contracts.same_jacobian import close, random_batch, randomise
from small_models import Apply, built, headed, parameter
from test_structured_families import ATTENTION, CONVOLUTIONS, NORMS
from test_structured_models import MODELS
from torch import Tensor, nn

from riskaudit.jacobian import GenericJacobian, InformedJacobian, Jacobian, SampleBySampleJacobian, joint_jacobian_maker
from riskaudit.jacobian.structured import SampleBlocks, StructuredJacobian, UploadJacobian, find_layout
from riskaudit.jacobian.structured.layers import convolution
from riskaudit.jacobian.structured.layers.convolution import SharedConvolutionContraction
from riskaudit.jacobian.structured.recording import Recorder
from riskaudit.jacobian.structured.registry import COMPOSITES, LAYERS
from riskaudit.jacobian.structured.signals import run
from riskaudit.release import Batch, make_release, with_batch_statistics
from riskaudit.release.model import LossFunction

SIZE = 3
TOLERANCE = 1e-9


class OneLayer(nn.Module):
    """A function of torch with parameters between two layers, or of whole numbers made of the input."""

    def __init__(self, case: LayerCase) -> None:
        super().__init__()
        self.case, self.head = case, nn.LazyLinear(4)
        for role, shape in case.parameters.items():
            self.register_parameter(role, parameter(*shape))

    def forward(self, x: Tensor) -> Tensor:
        given = {role: getattr(self, role) for role in self.case.parameters}
        numbers = x if self.case.integers is None else (x.detach() * 10).abs().long() % self.case.integers
        hidden = torch.tanh(self.case.function(numbers, **given)).flatten(1)
        return self.head(torch.tanh(hidden + x.reshape(len(x), -1).sum(1, keepdim=True).sin()))


def of_layer(layer: nn.Module) -> Callable[[], nn.Module]:
    return lambda: headed(layer)


def of_norm(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Callable[[], nn.Module]:
    """After a layer that mixes channels."""
    mixing = {1: nn.Linear, 2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[len(shape)]
    more = () if len(shape) == 1 else (1,)
    return lambda: headed(mixing(shape[0], shape[0], *more), nn.Softplus(), make())


def of_case(case: LayerCase) -> Callable[[], nn.Module]:
    return lambda: OneLayer(case)


def exported(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A norm as a program of torch.export calls it, with statistics of its own."""
    mean, var = torch.linspace(-1, 1, 3).double(), torch.linspace(0.5, 2, 3).double()
    return lambda x, weight, bias: norm(x, weight, bias, mean, var, False, 0.1, 1e-5, False)


MORE = {
    "expanded like another": LayerCase(lambda x, value: value.expand_as(x) * x, (2, 3), {"value": (1, 1, 3)}),
    "exported batch norm": LayerCase(exported(torch.batch_norm), (3, 4), {"weight": (3,), "bias": (3,)}),
    "exported instance norm": LayerCase(exported(torch.instance_norm), (3, 4), {"weight": (3,), "bias": (3,)}),
}
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **MODELS,
    **{f"attention, {name}": (make, (3, 6)) for name, make in ATTENTION.items()},
    **{f"convolution, {name}": (of_layer(layer), shape) for name, (layer, shape) in CONVOLUTIONS.items()},
    **{f"norm, {name}": (of_norm(make, shape), shape) for name, (make, shape) in NORMS.items()},
    **{
        f"{cases.__name__}, {name}": (of_case(case), case.shape)
        for cases in cases_of(ContractionContract, test_contractions.__file__)
        for name, case in cases.cases.items()
    },
    **{name: (of_case(case), case.shape) for name, case in MORE.items()},
}
# A hook has no forward derivative, and is passed over without a word there.
WITHOUT_FORWARD = ("hooked",)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]
TRAINED_NORMS = {
    name: (of_norm(make, shape), shape) for name, (make, shape) in NORMS.items() if name.startswith("batch")
}


def uploads(count: int, shape: tuple[int, ...]) -> Batch:
    samples = random_batch(count * SIZE, *shape, classes=3)
    return Batch(samples.inputs, samples.targets, SIZE)


def by_layers(
    model: nn.Module, batch: Batch, text: str = f"mean:{SIZE}", loss: LossFunction = F.cross_entropy
) -> UploadJacobian:
    release = make_release(model, loss, text)
    return UploadJacobian(release, batch, find_layout(release, batch.select([0]), (5, 7)))  # type: ignore[arg-type]


def check(jacobian: UploadJacobian, expected: Jacobian | None = None, tolerance: float = TOLERANCE) -> None:
    """Every product, with one column and with several."""
    other = GenericJacobian(jacobian.release, jacobian.batch) if expected is None else expected
    (P, d), count = jacobian.shape, jacobian.num_samples
    V, U = normal(count, d, 2, seed=1), normal(count, P, 2, seed=2)
    products: Mapping[str, Callable[[Jacobian], Tensor]] = {
        "mean": lambda one: one.mean(),
        "losses": lambda one: one.losses(),
        "J v": lambda one: one.matvec(V[..., 0]),
        "J^T u": lambda one: one.rmatvec(U[..., 0]),
        "H v": lambda one: one.gram_matmat(V[..., :1]),
        "J V": lambda one: one.matmat(V),
        "J^T U": lambda one: one.rmatmat(U),
        "H V": lambda one: one.gram_matmat(V),
        "inner products of rows": lambda one: one.gram_rows(V) @ one.gram_rows(V).mT,
    }
    for what, product in products.items():
        close(product(jacobian).detach(), product(other).detach(), tolerance, what)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", CASES)
def test_every_layer(name: str) -> None:
    make, shape = CASES[name]
    jacobian = by_layers(built(make(), shape), uploads(2, shape))
    plain = SampleBySampleJacobian(jacobian.release, jacobian.batch)
    check(jacobian, plain if name in WITHOUT_FORWARD else None)


def test_every_registered_layer_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    functions: set[Any] = set()
    seen = Recorder.call

    def watched(self: Recorder, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        functions.add(function)
        return seen(self, function, args, kwargs)

    monkeypatch.setattr(Recorder, "call", watched)
    for make, shape in CASES.values():
        batch = uploads(1, shape)
        run(make_release(built(make(), shape), F.cross_entropy, f"mean:{SIZE}"), batch, None)
    # Views are closures of one function.
    found = {LAYERS[function].__qualname__ for function in functions & set(LAYERS)}
    assert found == {layer.__qualname__ for layer in LAYERS.values()}
    assert functions >= set(COMPOSITES)


@pytest.mark.parametrize("name", TRAINED_NORMS)
def test_statistics_of_the_batch(name: str) -> None:
    make, shape = TRAINED_NORMS[name]
    check(by_layers(with_batch_statistics(built(make(), shape)), uploads(2, shape)))


def test_two_batch_norms_of_one_activation_that_is_overwritten_after() -> None:
    """A residual block, whose activations are changed in place."""

    def forward(model: Any, x: Tensor) -> Tensor:
        hidden = F.relu(model.first(model.conv(x)), inplace=True)
        return model.head((model.second(model.conv(hidden) + hidden).add_(1).sin_() * hidden).flatten(1))

    parts = {
        "conv": nn.Conv2d(2, 2, 3, padding=1),
        "first": nn.BatchNorm2d(2),
        "second": nn.BatchNorm2d(2, affine=False),
    }
    model = with_batch_statistics(built(Apply(forward, **parts, head=nn.Linear(18, 4)), (2, 3, 3)))
    check(by_layers(model, uploads(2, (2, 3, 3))))


class Weighted(nn.Module):
    """With class weights, so that a batch's loss is no mean of its samples' losses."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight = torch.linspace(0.5, 2, outputs.shape[1], dtype=outputs.dtype)
        return F.cross_entropy(outputs, targets, weight)


def network() -> nn.Module:
    return built(headed(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Conv2d(3, 3, 2)), (1, 4, 4))


def comparing(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compares the samples of a batch."""
    return F.cross_entropy(outputs, targets) + (outputs - outputs.mean(0)).pow(4).sum()


LOSSES: dict[str, tuple[LossFunction, bool]] = {
    "sum": (lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum"), True),
    "of every sample": (lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"), True),
    "weighted": (Weighted(), True),
    "comparing": (comparing, False),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_batches(name: str) -> None:
    """An upload's loss is the one that training computes; samples have their own blocks where it is a sum over them."""
    loss, apart = LOSSES[name]
    jacobian = by_layers(network(), uploads(2, (1, 4, 4)), loss=loss)
    check(jacobian)
    check_blocks(jacobian, apart)


def check_blocks(jacobian: UploadJacobian, apart: bool = True) -> None:
    """What an informed attacker faces, against columns through the whole upload."""
    informed, whole = InformedJacobian(jacobian), InformedJacobian(GenericJacobian(jacobian.release, jacobian.batch))
    assert isinstance(informed._blocks, SampleBlocks) == apart
    for part, other in ((informed, whole), (informed.select([4, 0, 4]), whole.select([4, 0, 4]))):
        count, (P, d) = part.num_samples, part.shape
        V, U = normal(count, d, 2, seed=1), normal(count, P, 2, seed=2)
        close(part.matmat(V), other.matmat(V), TOLERANCE, "J V")
        close(part.rmatmat(U), other.rmatmat(U), TOLERANCE, "J^T U")
        close(part.gram_matmat(V), other.gram_matmat(V), TOLERANCE, "H V")
        rows, expected = part.gram_rows(V), other.gram_rows(V)
        close(rows @ rows.mT, expected @ expected.mT, TOLERANCE, "inner products of rows")
        close(part.mean(), other.mean().detach(), TOLERANCE, "mean")


RELEASES = [
    "mean:3,clip:0.1",
    "mean:3,prune:0.4,clip:1e-2",
    "mean:3,dropout:0.4",
    "mean:3,share:5.*",
    "clip:0.2,mean:3",
    "clip:0.2,mean:3,clip:0.05,gaussian:0.1,mask:0.5",
    "mean:3,secagg:2",
    "mean:3,clip:0.1,secagg:2,clip:0.05",
    "clip:0.2,mean:3,prune:0.3,secagg:2",
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("text", RELEASES)
def test_steps(text: str) -> None:
    size = SIZE * (2 if "secagg" in text else 1)
    samples = random_batch(2 * size, 1, 4, 4, classes=3)
    batch = Batch(samples.inputs, samples.targets, size, (0, size))
    jacobian = by_layers(network(), batch, text)
    check(jacobian)
    check_blocks(jacobian)


def test_clients_have_their_own_statistics() -> None:
    model = with_batch_statistics(built(headed(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3)), (1, 4, 4)))
    samples = random_batch(2 * SIZE, 1, 4, 4, classes=3)
    jacobian = by_layers(model, Batch(samples.inputs, samples.targets, 2 * SIZE), "mean:3,clip:0.1,secagg:2")
    check(jacobian)
    check_blocks(jacobian, apart=False)


class Centred(nn.Module):
    """Mixes the samples of a batch without a layer that says so; its derivative does even where its value doesn't."""

    def __init__(self, in_value: bool) -> None:
        super().__init__()
        self.first, self.last, self.in_value = nn.Linear(5, 4), nn.Linear(4, 4), in_value

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(0, keepdim=True)
        return self.last(torch.tanh(self.first(x - (mean if self.in_value else mean - mean.detach()))))


@pytest.mark.parametrize("in_value", [True, False])
def test_samples_that_mix_unannounced(in_value: bool) -> None:
    release, batch = make_release(randomise(Centred(in_value)), F.cross_entropy, f"mean:{SIZE}"), uploads(2, (5,))
    maker = joint_jacobian_maker(release, batch.select([0]))
    assert maker.kind == "generic"
    informed = InformedJacobian(maker(batch))
    assert informed._blocks is None


def test_single_precision() -> None:
    """Convolutions are torch's own there, with one tangent of a weight for all images."""
    model = with_batch_statistics(
        built(headed(nn.Conv2d(2, 4, 2, stride=2, padding=1, groups=2), nn.BatchNorm2d(4), nn.Tanh()), (2, 6, 6))
    )
    double = by_layers(model, batch := uploads(2, (2, 6, 6)))
    v, u = normal(2, double.shape[1], seed=3), normal(2, double.shape[0], seed=4)
    expected = [double.mean(), double.matvec(v), double.rmatvec(u), double.hessian().matvec(v)]
    single = by_layers(model.float(), Batch(batch.inputs.float(), batch.targets, SIZE))
    found = [single.mean(), single.matvec(v.float()), single.rmatvec(u.float()), single.hessian().matvec(v.float())]
    for what, one, other in zip(("mean", "J v", "J^T u", "H v"), found, expected, strict=True):
        close(one.double(), other, 1e-4, what)


@pytest.mark.sampled(11)
@pytest.mark.parametrize("trained", ["all", "weight", "bias"])
@pytest.mark.parametrize("name", [*CONVOLUTIONS, "frames"])
def test_convolutions_of_shared_images(name: str, trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in single precision, in double: without columns."""
    monkeypatch.setattr(convolution, "takes_columns", lambda images: False)
    make, shape = CASES[f"convolution, {name}" if name in CONVOLUTIONS else "merged images"]
    model = built(make(), shape)
    for role, weight in model.named_parameters():
        weight.requires_grad_(trained == "all" or role.endswith(trained))
    jacobian = by_layers(model, uploads(1, shape))
    check(jacobian)
    kinds = {type(call.contraction) for call in jacobian.parts._signals.calls if call.sources}
    assert SharedConvolutionContraction in kinds or "large weight" in name or trained == "bias"


def test_one_tangent_for_a_whole_upload() -> None:
    """No object per sample: every contraction is of one upload."""
    jacobian = by_layers(network(), uploads(1, (1, 4, 4)))
    assert isinstance(jacobian.parts, StructuredJacobian)
    sizes = {tuple(value.shape[:1]) for call in jacobian.parts._signals.calls for value in call.contraction.factors}
    assert sizes == {(1,)}


def test_choice() -> None:
    batch = uploads(1, (1, 4, 4))
    maker = joint_jacobian_maker(make_release(network(), F.cross_entropy, "mean:3,clip:0.1"), batch)
    assert maker.kind == "structured"
    assert "Conv2d, Linear" in maker.reason
    assert isinstance(maker(batch), UploadJacobian)
    assert maker.sample_bytes > 0
    unknown = built(headed(nn.ConvTranspose2d(1, 2, 2)), (1, 4, 4))
    maker = joint_jacobian_maker(make_release(unknown, F.cross_entropy, "mean:3"), batch)
    assert maker.kind == "generic"
    assert "ConvTranspose2d" in maker.reason
    assert isinstance(maker(batch), GenericJacobian)
    wrong = built(Apply(MODELS["hooked"][0]().function, first=nn.Linear(4, 4), last=nn.Linear(4, 4)), (4,))
    maker = joint_jacobian_maker(make_release(wrong, F.cross_entropy, "mean:3"), uploads(1, (4,)))
    assert maker.kind == "generic"


class Doubled(torch.autograd.Function):
    """In the old form, which no transform runs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def test_reason_where_transforms_fail_too() -> None:
    """The layer that isn't known is told although neither layers nor transforms do."""

    def forward(model: Any, x: Tensor) -> Tensor:
        return model.last(torch.tanh(Doubled.apply(model.unknown(x))))

    model = built(Apply(forward, unknown=nn.PReLU(), last=nn.Linear(4, 4)), (4,))
    maker = joint_jacobian_maker(make_release(model, F.cross_entropy, "mean:3"), uploads(1, (4,)))
    assert maker.kind == "sample_by_sample", maker.reason
    assert "the layer PReLU (unknown: prelu)" in maker.reason
    assert "plain autograd" in maker.reason
