"""Which Jacobian a model gets, that nothing wrong comes out where it can't be seen through, and the free bound."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import oracles
import pytest
import torch
import torch.nn.functional as F
from contracts.same_jacobian import by_autograd, check_generic, check_products, close, random_batch, randomise
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from riskaudit.inputs.architectures.registry import ARCHITECTURES
from riskaudit.inputs.models import Normalized, build_model
from riskaudit.inputs.state_dicts import read_entries
from riskaudit.jacobian import GenericJacobian, JacobianMaker, StructuredJacobian, jacobian_maker
from riskaudit.release import Batch, PerSampleRelease
from riskaudit.torchvision_compat import import_torchvision


class Function(nn.Module):
    """A function of the model and x, between two linear layers of width 4, with a parameter p and a matrix W."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.p = nn.Parameter(torch.randn(4, generator=generator))
        self.W = nn.Parameter(torch.randn(4, 4, generator=generator))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.function(self, torch.tanh(self.first(x)))))


def choice(model: nn.Module, batch: Batch, text: str = "gradient") -> JacobianMaker:
    return jacobian_maker(PerSampleRelease(model, F.cross_entropy, text), batch)


def right(maker: JacobianMaker, batch: Batch, tolerance: float = 1e-9) -> None:
    """The Jacobian that was made is plain autograd's."""
    jacobian = maker(batch)
    generator = torch.Generator().manual_seed(3)
    P, d = jacobian.shape
    u, v = (torch.randn(len(batch), size, generator=generator, dtype=torch.float64) for size in (P, d))
    model = maker.release.model
    rows = [by_autograd(model, *sample) for sample in zip(batch.inputs, batch.targets, v, u, strict=True)]
    gradient, pushed, pulled = (torch.stack(parts) for parts in zip(*rows, strict=True))
    close(jacobian.mean().detach(), gradient, tolerance, "mean")
    close(jacobian.matvec(v).detach(), pushed, tolerance, "J v")
    close(jacobian.rmatvec(u).detach(), pulled, tolerance, "J^T u")


# Known architectures.


def architecture(name: str) -> tuple[nn.Module, Batch]:
    build = ARCHITECTURES[name].build
    torch.manual_seed(0)
    if name == "mlp":
        model, batch = build(widths=(36, 8, 10)), cases.mnist(2, 6)
    elif name == "linear":
        model, batch = build(features=36), cases.mnist(2, 6)
    elif name == "precode":
        model, batch = build(widths=(36, 8, 8), size=4, hidden=8), cases.mnist(2, 6)
        # What it adds to the loss has an oracle of its own, with its other tests.
        model.bottleneck.draws.weight = 0.0
    elif name == "convbig":
        model, batch = build(channels=1, features=64 * 9, hidden=8, second=8), cases.mnist(2, 8)
    elif name == "lenet":
        model, batch = build(channels=1, features=12 * 9, classes=10), cases.mnist(2, 12)
    else:
        shapes = {"convnet": (3, 32, 32)}.get(name, (3, 8, 8))
        batch = random_batch(2, *shapes, classes=10)
        model = None
        for arguments in (
            {"channels": 3, "features": 64 * 4, "classes": 10}, {"channels": 3, "classes": 10}, {"classes": 10}, {},
        ):  # fmt: skip
            try:
                model = build(**arguments)
                model.double().eval()(batch.inputs[:1])
                break
            except (TypeError, RuntimeError):
                continue
    assert model is not None, f"give the arguments of {name} here"
    return model.double().eval(), batch


LARGE = ("convnet", "resnet18", "resnet34", "resnet50")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in sorted(ARCHITECTURES)]
)
def test_known_architectures_are_structured(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, batch = architecture(name)
    with caplog.at_level(logging.DEBUG, "riskaudit"):
        maker = choice(model, batch)
    assert maker.kind == "structured", maker.reason
    assert maker.reason.startswith("every layer is known (")
    assert maker.sample_bytes > 0
    assert not caplog.records
    assert isinstance(maker(batch), StructuredJacobian)
    right(maker, batch.select([1]))


def test_reason_names_the_layers() -> None:
    maker = choice(cases.residual(), cases.mnist(2, 6))
    assert maker.reason == "every layer is known (BatchNorm, Conv2d, Linear)"


@pytest.mark.parametrize("text", ["clip:1e-2,prune:0.3,gaussian:0.1", "prune:0.5"])
def test_steps_and_equal_entries_change_nothing_about_the_choice(text: str) -> None:
    """Black pixels give exact zeros, of which pruning keeps any."""
    assert choice(cases.mlp(), cases.mnist(3, 12), text).kind == "structured"


def test_user_factory_is_structured(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(32, 10))\n"
    )
    state = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(32, 10)).double().state_dict()
    model = build_model(read_entries(state, "net.pt"), "net.pt", f"{file}:make").model.double().eval()
    maker = choice(model, cases.mnist(2, 6))
    assert maker.kind == "structured", maker.reason
    right(maker, cases.mnist(2, 6))


def test_torchvision_and_timm_transformers_are_structured() -> None:
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError) if _torchvision() else None
    import timm
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    small = {"num_heads": 2, "num_classes": 4}
    models = {
        "torchvision": VisionTransformer(8, 4, num_layers=1, hidden_dim=6, mlp_dim=8, **small),
        "timm": timm.models.VisionTransformer(8, 4, depth=1, embed_dim=6, init_values=0.1, qk_norm=True, **small),
    }
    batch = random_batch(2, 3, 8, 8)
    for name, model in models.items():
        maker = choice(randomise(model), batch)
        assert maker.kind == "structured", (name, maker.reason)
        right(maker, batch)


def _torchvision() -> bool:
    try:
        import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")
    return True


# Layers that aren't known.


class Last(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = layer, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


UNKNOWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4)),
        (1, 3, 3),
        "the layer ConvTranspose2d (0: conv_transpose2d)",
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 4)),
        (4,),
        "the layer ParametrizedLinear (1: _weight_norm)",
    ),
    "prelu": (lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 4)), (4,), "the layer PReLU (1: prelu"),
    "sigmoid of a parameter": (lambda: Function(lambda m, x: torch.sigmoid(m.p) * x), (4,), "sigmoid"),
    "einsum": (lambda: Function(lambda m, x: torch.einsum("bi,ij->bj", x, m.W)), (4,), "einsum"),
    "product of parameters": (lambda: Function(lambda m, x: x * (m.p * m.W[0])), (4,), "two parameters"),
    "sum of parameters": (lambda: Function(lambda m, x: x + (m.p + m.W[0])), (4,), "several parameters"),
    "quotient": (lambda: Function(lambda m, x: x / (1 + m.p.square())), (4,), "pow|square"),
    "parameter in a list": (
        lambda: Function(lambda m, x: torch.stack([x, m.p.expand(len(x), 4), m.p[None] * x]).sum(0)[:, :4]),
        (4,),
        "",
    ),
    "concatenated parameters": (lambda: Function(lambda m, x: F.linear(x, torch.cat([m.W[:2], m.W[2:]]))), (4,), "cat"),
    "indexed by a tensor": (
        lambda: Function(lambda m, x: x * m.p[(x > 0).long().sum(1) % 4][:, None]), (4,), "by a tensor of the batch"
    ),
    "where": (lambda: Function(lambda m, x: torch.where(x > 0, x, m.p)), (4,), "where"),
    "times the batch": (lambda: Function(lambda m, x: m.p * x.mean(1, keepdim=True) / m.p), (4,), ""),
    "in place on a parameter's view": (lambda: Function(lambda m, x: x * m.p.clone().mul_(2)), (4,), "in-place"),
    "cast": (lambda: Function(lambda m, x: x * m.p.to(torch.half).double()), (4,), "another dtype"),
    "scaled bias": (
        lambda: Function(lambda m, x: torch.addmm(m.p, x, m.W, beta=2)), (4,), "addmm with these arguments"
    ),
    "addmm, matrix on the left": (
        lambda: Function(lambda m, x: torch.addmm(m.p[:, None], m.W, x.mT).mT), (4,), "addmm with parameters"
    ),
    "matrix on the left": (lambda: Function(lambda m, x: (m.W @ x.unsqueeze(-1)).squeeze(-1)), (4,), "matmul"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_layer_is_named_once_and_right(name: str, caplog: pytest.LogCaptureFixture) -> None:
    make, shape, named = UNKNOWN[name]
    model, batch = randomise(make()), random_batch(3, *shape)
    with caplog.at_level(logging.DEBUG, "riskaudit"):
        maker = choice(model, batch)
    if not named:
        # Either will do, as long as it is right.
        right(maker, batch, 1e-6 if name == "cast" else 1e-9)
        return
    assert maker.kind == "generic"
    assert len(caplog.records) == 1
    assert caplog.records[0].levelname == "WARNING"
    message = caplog.records[0].getMessage()
    assert any(part in message for part in named.split("|")), message
    assert message.startswith(maker.reason)
    assert "\n" not in message
    assert isinstance(maker(batch), GenericJacobian)
    right(maker, batch, 1e-6 if name == "cast" else 1e-9)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_differentiated_sample_by_sample(kind: type[nn.Module], caplog) -> None:
    model, batch = randomise(Last(kind(3, 4, batch_first=True))), random_batch(2, 3, 3)
    with caplog.at_level(logging.DEBUG, "riskaudit"):
        maker = choice(model, batch)
    assert maker.kind == "sample_by_sample"
    right(maker, batch, 1e-9)
    assert len(caplog.records) == 1
    assert f"the layer {kind.__name__} (cell: " in caplog.records[0].getMessage()


# Uses of parameters that pass by the recorder.


class Scaled(torch.autograd.Function):
    """x * p, or p's part of it switched off."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, p: Tensor) -> Tensor:
        return x * p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, p = ctx.saved_tensors
        return gradient * p, (gradient * x).sum_to_size(p.shape)


class Projected(torch.autograd.Function):
    """A linear layer that torch doesn't know as one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, W: Tensor) -> Tensor:
        return F.linear(x, W)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, W = ctx.saved_tensors
        return gradient @ W, gradient.mT @ x


@pytest.fixture(scope="module")
def scripted() -> Callable[[Tensor, Tensor], Tensor]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(_product)


def _product(x: Tensor, p: Tensor) -> Tensor:
    return x * p


HIDDEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "custom function": lambda m, x: Scaled.apply(x, m.p),
    "custom linear function": lambda m, x: Projected.apply(x, m.W),
    "custom function of a view": lambda m, x: Scaled.apply(x, m.W[1]),
    "custom function of a known use": lambda m, x: Scaled.apply(x * m.p, m.p),
    "custom function with a small share": lambda m, x: x * m.p + 1e-7 * Scaled.apply(x, m.p),
    "custom function where the first samples see nothing": lambda m, x: x + Scaled.apply(F.relu(x - 3), m.p),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_use_of_a_parameter_is_noticed(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, batch = randomise(Function(HIDDEN[name])), random_batch(3, 4)
    with caplog.at_level(logging.DEBUG, "riskaudit"):
        maker = choice(model, batch)
    assert maker.kind == "generic"
    assert len(caplog.records) == 1
    assert "a function that torch doesn't let be observed" in maker.reason
    right(maker, batch)


def test_scripted_function_of_a_parameter_is_noticed(scripted: Callable[[Tensor, Tensor], Tensor]) -> None:
    model, batch = randomise(Function(lambda m, x: scripted(x, m.p))), random_batch(3, 4)
    assert choice(model, batch).kind == "generic"
    model = randomise(Function(lambda m, x: scripted(x, x) * m.p))
    assert choice(model, batch).kind == "structured"


def in_no_grad(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(m.p * m.W[0])
    return x * gate + m.p


LEFT_OUT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "no_grad": in_no_grad,
    "detach": lambda m, x: F.linear(x, m.W.detach()) * m.p,
    "half detached": lambda m, x: x * (m.p.detach() * 2) + m.p,
    "data": lambda m, x: x * m.p.data + m.p,
    "value": lambda m, x: x * float(m.p[0].detach()) + m.p,
    "shape": lambda m, x: x * m.p.shape[0] + m.p * m.W.numel(),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_the_model_leaves_out_of_the_gradient_stays_out(name: str) -> None:
    model, batch = randomise(Function(LEFT_OUT[name])), random_batch(3, 4)
    if name == "value":
        # No number can be read inside torch's transforms; plain autograd is all there is to compare with.
        check_products(model, batch)
        return
    right(choice(model, batch), batch)


@pytest.mark.parametrize("frozen", [True, False])
def test_overwritten_input_of_a_layer(frozen: bool) -> None:
    """Of a trainable weight, autograd itself refuses; of a frozen one, only the recorder needs the input."""

    def overwrite(m: Any, x: Tensor) -> Tensor:
        hidden = x.cos()
        result = F.linear(hidden, m.W, m.p)
        hidden *= 2
        return result + hidden

    model, batch = randomise(Function(overwrite)), random_batch(3, 4)
    model.W.requires_grad_(not frozen)
    maker = choice(model, batch)
    assert maker.kind == "generic"
    if frozen:
        right(maker, batch)
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            maker(batch).mean()


def test_buffer_with_the_memory_of_a_parameter() -> None:
    model = randomise(Function(lambda m, x: F.linear(x * m.p, m.alias)))
    model.register_buffer("alias", model.W.data)
    batch = random_batch(3, 4)
    maker = choice(model, batch)
    assert maker.kind == "structured", maker.reason
    right(maker, batch)
    names, sizes = zip(*((name, p.numel()) for name, p in maker.release.parameters.items()), strict=True)
    assert not maker(batch).mean().split(sizes, 1)[names.index("W")].any()


def test_hooks_of_modules_are_run() -> None:
    model = randomise(Function(lambda m, x: x * m.p))
    model.first.register_forward_hook(lambda module, inputs, output: output * 2 + module.bias)
    model.last.register_forward_pre_hook(lambda module, inputs: (inputs[0].sin(),))
    batch = random_batch(3, 4)
    maker = choice(model, batch)
    assert maker.kind == "structured", maker.reason
    right(maker, batch)


# Samples that lie unusually, or mix.


def flipped(m: Any, x: Tensor) -> Tensor:
    """The batch turned round and back: every sample by itself, yet not in its place."""
    return F.linear(x.flip(0), m.W).flip(0) * m.p


def mixing(m: Any, x: Tensor) -> Tensor:
    return F.linear(x - x.mean(0), m.W) * m.p


def mixing_first(m: Any, x: Tensor) -> Tensor:
    return F.linear(torch.cat([x[:1], x[1:] + x[:-1]]), m.W) * m.p


@pytest.mark.parametrize("function", [flipped, mixing, mixing_first])
@pytest.mark.parametrize("count", [1, 3])
def test_samples_that_are_not_in_their_place_or_mix(function: Callable[[Any, Tensor], Tensor], count: int) -> None:
    """Audits refuse models that mix; here, they must not pass for known ones."""
    batch = random_batch(3, 4)
    maker = choice(randomise(Function(function)), batch.select(list(range(count))))
    assert maker.kind == "generic"


def test_one_sample_to_try_is_enough() -> None:
    """Merged with time, samples of one value alone don't show where they are."""

    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 2), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            rows = torch.tanh(self.body(x.transpose(0, 1).reshape(-1, 3)))
            return self.head(rows.reshape(3, -1, 2).transpose(0, 1).flatten(1))

    batch = random_batch(4, 3, 3)
    maker = choice(randomise(Merged()), batch.select([0]))
    assert maker.kind == "structured", maker.reason
    right(maker, batch)


def test_model_that_takes_one_sample_only() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 1:
                raise TypeError("one sample at a time")
            return self.fc(x)

    batch = random_batch(2, 4)
    maker = choice(randomise(Single()), batch)
    assert maker.kind == "generic"
    assert "one sample at a time" in maker.reason
    right(maker, batch)


def test_samples_that_are_not_finite_are_not_compared() -> None:
    batch = random_batch(2, 4)
    batch.inputs[0, 0] = torch.nan
    assert choice(randomise(Function(lambda m, x: x * m.p)), batch).kind == "generic"


def test_choice_does_not_change_the_model() -> None:
    """One layer in two places and a tied weight: what torch's own functional call tears apart."""
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = randomise(nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), first))
    weight, batch = first.weight, random_batch(2, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    maker = choice(model, batch)
    GenericJacobian(maker.release, batch).mean()
    assert maker.kind == "structured", maker.reason
    assert first.weight is weight
    assert second.weight is weight
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    check_generic(maker(batch))
    right(maker, batch)


def test_choice_without_gradients_enabled() -> None:
    with torch.no_grad():
        maker = choice(cases.residual(), cases.mnist(2, 6))
        assert maker.kind == "structured", maker.reason
        product = maker(cases.mnist(2, 6)).matvec(torch.ones(2, 36, dtype=torch.float64))
    expected = GenericJacobian(maker.release, cases.mnist(2, 6)).matvec(torch.ones(2, 36, dtype=torch.float64))
    close(product, expected.detach(), 1e-10, "J v")


# The bound on the smallest eigenvalue.


def smallest(model: nn.Module, batch: Batch) -> Tensor:
    pairs = zip(batch.inputs, batch.targets, strict=True)
    dense = [torch.from_numpy(oracles.jacobian(model, F.cross_entropy, x, target)) for x, target in pairs]
    return torch.stack([torch.linalg.svdvals(J)[-1].square() for J in dense])


def bound(model: nn.Module, batch: Batch, text: str = "gradient") -> Tensor:
    maker = choice(model, batch, text)
    assert maker.kind == "structured", maker.reason
    found = maker(batch).smallest_eigenvalue_bound()
    assert found.dtype == torch.float64
    assert found.shape == (len(batch),)
    return found


def signals_of_first_layer(model: nn.Module, batch: Batch) -> Tensor:
    """||b||^2, from the gradient of the first bias."""
    bias = next(parameter for name, parameter in model.named_parameters() if name.endswith("bias"))
    squares = []
    for x, target in zip(batch.inputs, batch.targets, strict=True):
        loss = F.cross_entropy(model(x[None]), target[None])
        squares.append(torch.autograd.grad(loss, bias)[0].square().sum())
    return torch.stack(squares)


def test_bound_is_the_formula_and_below_the_smallest_eigenvalue() -> None:
    model, batch = cases.mlp((36, 16, 10)), cases.mnist(3, 6)
    found = bound(model, batch)
    expected = signals_of_first_layer(model, batch) / (1 + batch.inputs.flatten(1).square().sum(1))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    assert (found > 0).all()
    assert (found <= smallest(model, batch)).all()


def test_bound_on_normalised_input() -> None:
    inner = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 10))
    model = Normalized(randomise(inner), [0.4, 0.5, 0.6], [0.2, 0.25, 0.5])
    batch = cases.cifar(3, 4)
    found = bound(model, batch)
    mean, std = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.25, 0.5]], dtype=torch.float64)[..., None, None]
    seen = (batch.inputs - mean) / std
    expected = 4 * signals_of_first_layer(model, batch) / (1 + seen.flatten(1).square().sum(1))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    assert (found <= smallest(model, batch)).all()


def test_bound_in_float32_is_near() -> None:
    batch = cases.mnist(3, 6)
    expected = bound(cases.mlp((36, 16, 10)), batch)
    found = bound(cases.mlp((36, 16, 10)).float(), Batch(batch.inputs.float(), batch.targets))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


MIXED_INPUT = {
    "shuffled": lambda x: x.flatten(1)[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))],
    "slightly mixed": lambda x: x.flatten(1) - 1e-6 * x.flatten(1).sum(1, keepdim=True),
    "nonlinear sum": lambda x: x.flatten(1).cumsum(1),
    "repeated": lambda x: torch.cat([x.flatten(1)[:, :8]] * 2, dim=1),
}


@pytest.mark.parametrize("name", MIXED_INPUT)
def test_no_bound_where_coordinates_mix(name: str) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(MIXED_INPUT[name](x))))

    assert not bound(randomise(Mixed()), random_batch(2, 1, 4, 4)).any()


def test_coordinates_may_be_bent_one_by_one() -> None:
    class Bent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(torch.sinh(x).flatten(1))))

    model, batch = randomise(Bent()), random_batch(2, 1, 4, 4)
    found = bound(model, batch)
    assert (found > 0).all()
    assert (found <= smallest(model, batch)).all()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: cases.lenet(12), "gradient"),
        (lambda: cases.mlp((144, 16, 10)), "clip:1e-3"),
        (lambda: cases.mlp((144, 16, 10)), "prune:0.1"),
        (lambda: cases.mlp((144, 16, 10)), "mask:0.1,gaussian:1"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 10, bias=False)).double(), "gradient"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 10).requires_grad_(False), nn.Linear(10, 10)), "gradient"),
    ],
    ids=["convolutions", "clipped", "pruned", "masked", "without bias", "frozen"],
)
def test_no_bound_without_such_a_layer_or_with_steps(make: Callable[[], nn.Module], text: str) -> None:
    assert not bound(make().double().eval(), cases.mnist(2, 12), text).any()


def test_noise_alone_keeps_the_bound() -> None:
    assert (bound(cases.mlp((36, 16, 10)), cases.mnist(2, 6), "gaussian:0.1") > 0).all()


def test_no_bound_for_a_tied_first_layer() -> None:
    """Other uses of the weight could cancel what the first one tells."""
    assert not bound(cases.tied(), cases.mnist(2, 6)).any()


def test_generic_jacobian_knows_no_bound() -> None:
    release = PerSampleRelease(cases.mlp((36, 16, 10)), F.cross_entropy)
    assert not GenericJacobian(release, cases.mnist(2, 6)).smallest_eigenvalue_bound().any()
