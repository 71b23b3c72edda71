from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from riskaudit.errors import SamplesError, SettingsError, UserCodeError
from riskaudit.inputs import LOSSES, Checkpoint, Samples, check_compatibility, load_checkpoint, load_loss

# torch's own: the first jvp of a process compiles a few formulas, the exporter asks its own deprecated questions.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

LOGITS = torch.tensor([[0.3, -1.2, 0.7]], dtype=torch.float64)


def test_registry() -> None:
    assert {name: loss.kind for name, loss in LOSSES.items()} == {
        "cross-entropy": "classification",
        "bce": "binary",
        "mse": "regression",
    }
    assert load_loss("bce-with-logits") is load_loss("bce")
    assert all(loss.description for loss in LOSSES.values())


def test_cross_entropy() -> None:
    expected = -LOGITS.log_softmax(1)[0, 2]
    torch.testing.assert_close(load_loss("cross-entropy")(LOGITS, torch.tensor([2])), expected)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (LOGITS[:, :1], torch.tensor([1])),
        (LOGITS[:, :1], torch.tensor([[1.0]])),
        (LOGITS[:, 0], torch.tensor([[1]])),
        (LOGITS[:, 0], torch.tensor([1])),
        (LOGITS, torch.tensor([[1.0, 0.0, 1.0]])),
    ],
)
def test_bce(outputs: torch.Tensor, targets: torch.Tensor) -> None:
    whole = targets.to(torch.float64).flatten().expand(outputs.numel())
    p = torch.sigmoid(outputs.flatten())
    expected = -(whole * p.log() + (1 - whole) * (1 - p).log()).mean()
    torch.testing.assert_close(load_loss("bce")(outputs, targets), expected)


def test_mse() -> None:
    loss = load_loss("mse")
    torch.testing.assert_close(loss(LOGITS, LOGITS + 2), torch.tensor(4.0, dtype=torch.float64))
    for outputs, targets in ((LOGITS[:, :1], torch.ones(1)), (torch.ones(1), LOGITS[:, :1])):
        torch.testing.assert_close(loss(outputs, targets), torch.tensor(0.49, dtype=loss(outputs, targets).dtype))
    with pytest.raises(ValueError, match="beside outputs"):
        loss(LOGITS, torch.ones(1))


@pytest.mark.parametrize("name", ["bce", "mse"])
def test_one_target_beside_several_outputs_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="beside outputs of"):
        load_loss(name)(LOGITS, torch.tensor([1]))


@pytest.mark.parametrize(
    ("name", "width", "target"),
    [
        ("cross-entropy", 3, torch.tensor([1])),
        ("bce", 1, torch.tensor([1])),
        ("bce", 3, torch.tensor([0, 1, 0])),
        ("mse", 1, torch.ones(1)),
    ],
)
def test_under_torch_func(name: str, width: int, target: torch.Tensor) -> None:
    model = nn.Linear(4, width).double()
    loss = load_loss(name)
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def gradient(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return grad(lambda p: loss(functional_call(model, p, (x[None],)), y[None]))(parameters)

    x = torch.rand(3, 4, dtype=torch.float64)
    y = target.expand(3) if width == 1 or name == "cross-entropy" else target.expand(3, width)
    batched = vmap(gradient)(x, y)
    _, tangent = jvp(lambda x: gradient(x, y[0]), (x[0],), (torch.ones(4, dtype=torch.float64),))
    assert batched["weight"].shape == (3, width, 4)
    step = 1e-6
    numeric = (gradient(x[0] + step, y[0])["weight"] - gradient(x[0] - step, y[0])["weight"]) / (2 * step)
    torch.testing.assert_close(tangent["weight"], numeric, rtol=1e-5, atol=1e-7)


def test_unknown_loss(refused) -> None:
    assert "cross-entropy, bce, mse" in refused(SettingsError, load_loss, "hinge")


def test_custom_loss(tmp_path: Path, refused) -> None:
    (tmp_path / "l.py").write_text("def total(o, t): return (o - t).abs().sum()\ndef wide(o, t): return o\n")
    loss = load_loss(f"{tmp_path}/l.py:total")
    assert (loss.name, loss.kind) == ("l.py:total", "custom")
    assert loss(torch.ones(1, 3), torch.zeros(1, 3)) == 3
    assert "shape (1, 3)" in refused(UserCodeError, load_loss(f"{tmp_path}/l.py:wide"), torch.ones(1, 3), torch.ones(1))
    assert "no 'lost'" in refused(UserCodeError, load_loss, f"{tmp_path}/l.py:lost")


# Compatibility


def linear(outputs: int = 3) -> Checkpoint:
    return Checkpoint.from_model(nn.Sequential(nn.Flatten(), nn.Linear(4, outputs)), name="net.pt")


@pytest.mark.parametrize(
    ("outputs", "targets", "loss"),
    [
        (3, torch.tensor([0, 2]), "cross-entropy"),
        (1, torch.tensor([0, 1]), "bce"),
        (1, torch.tensor([0.0, 1.0]), "bce"),
        (1, torch.tensor([0.3, 7.5]), "mse"),
        (3, torch.rand(2, 3), "mse"),
    ],
)
def test_fits(outputs: int, targets: torch.Tensor, loss: str) -> None:
    check_compatibility(linear(outputs), Samples.from_tensors(torch.rand(2, 1, 2, 2), targets), load_loss(loss))


@pytest.mark.parametrize(
    ("outputs", "shape", "targets", "loss", "words"),
    [
        (
            3,
            (4,),
            torch.tensor([0, 3]),
            "cross-entropy",
            "sample 1 in samples has label 3, but the model has 3 classes",
        ),
        (3, (4,), torch.tensor([-1, 0]), "cross-entropy", "sample 0 in samples has label -1"),
        (3, (4,), torch.tensor([0.5, 0]), "cross-entropy", "fractions"),
        (3, (4,), torch.ones(2, 3, dtype=torch.int64), "cross-entropy", "targets of shape (2, 3)"),
        (3, (5,), torch.tensor([0, 1]), "cross-entropy", "found shape (5)"),
        (1, (4,), torch.tensor([0, 2]), "bce", "sample 1 in samples has a target outside 0 to 1"),
        (3, (4,), torch.ones(2, 2), "bce", "can't compare outputs of shape (1, 3) with targets of shape (1, 2)"),
        (3, (4,), torch.ones(2), "mse", "can't compare outputs of shape (1, 3) with targets of shape (1)"),
    ],
)
def test_refused(refused, outputs, shape, targets, loss, words: str) -> None:
    samples = Samples.from_tensors(torch.rand(2, *shape), targets)
    assert words in refused(SamplesError, check_compatibility, linear(outputs), samples, load_loss(loss))


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 32, 32), (1, 29, 29), (784,)])
def test_lenet_and_the_wrong_images(refused, lenet_file: Path, shape) -> None:
    samples = Samples.from_tensors(torch.rand(1, *shape), torch.tensor([1]), name="photos.npz")
    message = refused(
        SamplesError, check_compatibility, load_checkpoint(lenet_file), samples, load_loss("cross-entropy")
    )
    assert str(tuple(shape)).replace(",)", ")") in message
    assert "photos.npz" in message
    assert "lenet.pt" in message


@pytest.mark.parametrize("size", [25, 26, 27, 28])
def test_lenet_takes_every_size_of_its_width(lenet_file: Path, size: int) -> None:
    samples = Samples.from_tensors(torch.rand(1, 1, size, size), torch.tensor([1]))
    check_compatibility(load_checkpoint(lenet_file), samples, load_loss("cross-entropy"))


def test_known_shape(tmp_path: Path, refused) -> None:
    torch.save(
        {
            "layers.0.weight": torch.ones(3, 4),
            "layers.0.bias": torch.ones(3),
            "layers.2.weight": torch.ones(2, 3),
            "layers.2.bias": torch.ones(2),
        },
        tmp_path / "m.pt",
    )
    checkpoint = load_checkpoint(tmp_path / "m.pt")
    loss = load_loss("cross-entropy")
    check_compatibility(checkpoint, Samples.from_tensors(torch.rand(1, 1, 2, 2), torch.tensor([1])), loss)
    message = refused(
        SamplesError, check_compatibility, checkpoint, Samples.from_tensors(torch.rand(1, 5), torch.tensor([1])), loss
    )
    assert "m.pt expects inputs of shape (4), found (5) in samples" in message


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x, x


class Pooled(Several):
    def forward(self, x):
        return (x * self.weight).sum()


@pytest.mark.parametrize("model", [Several(), Pooled()])
def test_outputs_of_another_form(refused, model: nn.Module) -> None:
    samples = Samples.from_tensors(torch.rand(1, 2), torch.tensor([0]))
    message = refused(
        SamplesError, check_compatibility, Checkpoint.from_model(model), samples, load_loss("cross-entropy")
    )
    assert "first size is 1" in message
