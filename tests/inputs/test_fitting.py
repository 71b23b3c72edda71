"""Inputs are tried as they are, outputs of any form are read, and what is refused says what to do."""

from __future__ import annotations

import dataclasses
import warnings
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from riskaudit.audit.audit import audit
from riskaudit.errors import SamplesError
from riskaudit.inputs import Checkpoint, Samples, fit_together, load_loss, load_samples

CE = load_loss("cross-entropy")
LABELS = torch.tensor([0, 1, 2, 0])


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(9, 3, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(9, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Linear(16, 16), nn.Linear(9, 3)

    def forward(self, x):
        return self.head((x + self.token(x.transpose(1, 2)).tanh().transpose(1, 2)).mean(1))


class Convolved(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv, self.fc = layer, nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.conv(x).tanh().flatten(2).mean(-1))


class ChannelsLast(Convolved):
    def forward(self, x):
        return super().forward(x.movedim(-1, 1))


NETS = {
    "transformer": (Transformer, (16, 9), (16, 9)),
    "mixer": (Mixer, (16, 9), (16, 9)),
    "series without channels": (lambda: Convolved(nn.Conv1d(1, 4, 8)), (64,), (1, 64)),
    "series of one channel": (lambda: Convolved(nn.Conv1d(1, 4, 8)), (1, 64), (1, 64)),
    "series, channels last": (lambda: Convolved(nn.Conv1d(1, 4, 8)), (64, 1), (1, 64)),
    "sensors": (lambda: Convolved(nn.Conv1d(9, 4, 3)), (9, 16), (9, 16)),
    "sensors, channels last": (lambda: Convolved(nn.Conv1d(9, 4, 3)), (16, 9), (9, 16)),
    "sensors, the net turns them": (lambda: ChannelsLast(nn.Conv1d(9, 4, 3)), (16, 9), (16, 9)),
    "volumes": (lambda: Convolved(nn.Conv3d(1, 4, 3)), (8, 8, 8), (1, 8, 8, 8)),
    "volumes of one channel": (lambda: Convolved(nn.Conv3d(1, 4, 3)), (1, 8, 8, 8), (1, 8, 8, 8)),
    "images, channels last": (lambda: Convolved(nn.Conv2d(3, 4, 3)), (8, 7, 3), (3, 8, 7)),
    "images, the net turns them": (lambda: ChannelsLast(nn.Conv2d(3, 4, 3)), (8, 7, 3), (8, 7, 3)),
    "grey images": (lambda: Convolved(nn.Conv2d(1, 4, 3)), (8, 7), (1, 8, 7)),
    "two channels, a batch of two": (lambda: Convolved(nn.Conv2d(1, 4, 3)), (2, 7), (1, 2, 7)),
}


@pytest.mark.parametrize("case", [name for name in NETS if not name.startswith("two")])
def test_inputs_as_they_are_or_arranged(tmp_path: Path, case: str) -> None:
    build, shape, expected = NETS[case]
    torch.manual_seed(0)
    checkpoint = Checkpoint.from_model(build())
    stored = np.random.default_rng(0).random((4, *shape))
    np.savez(tmp_path / "d.npz", x=stored, y=LABELS.numpy())
    samples = load_samples(tmp_path / "d.npz", channels=checkpoint.input_channels, loss=CE)
    fitted, arranged = fit_together(checkpoint, samples, CE)
    assert tuple(arranged.inputs.shape[1:]) == expected
    if shape == expected:
        # Nothing to tell of inputs that are taken as their file has them.
        assert not [note for note in fitted.notes if "were taken as" in note]
    assert torch.equal(arranged.inputs.flatten().sort().values, torch.from_numpy(stored).flatten().sort().values)
    if len(shape) == len(expected) and shape != expected:
        assert torch.equal(arranged.inputs, torch.from_numpy(stored).movedim(-1, 1))


def test_what_was_tried_is_told(refused) -> None:
    checkpoint = Checkpoint.from_model(Convolved(nn.Conv1d(5, 4, 3)))
    samples = Samples.from_tensors(torch.rand(4, 7), LABELS)
    assert "tried as (7), (1, 7)" in refused(SamplesError, fit_together, checkpoint, samples, CE)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.table(x).mean(1))


class FromEmbeddings(Embedded):
    def forward(self, x):
        return self.head(x.mean(1))


def test_tokens_and_what_to_do(refused) -> None:
    net, ids = Embedded(), torch.randint(0, 20, (4, 8))
    message = refused(SamplesError, fit_together, Checkpoint.from_model(net), Samples.from_tensors(ids, LABELS), CE)
    assert "audit the embedded tokens" in message
    embedded = Samples.from_tensors(net.table(ids).detach(), LABELS)
    checkpoint, samples = fit_together(Checkpoint.from_model(FromEmbeddings()), embedded, CE)
    assert samples.inputs.shape == (4, 8, 4)
    assert all(row.status == "exact" for row in audit(checkpoint, samples, release="gaussian:0.1").samples)


# Outputs


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    loss: None = None


class ModelOutput(OrderedDict):
    """As Hugging Face's: a mapping with attributes."""


Pair = namedtuple("Pair", "hidden scores")


class Returning(nn.Module):
    def __init__(self, form) -> None:
        super().__init__()
        self.first, self.last, self.form = nn.Linear(6, 5), nn.Linear(5, 3), form

    def forward(self, x):
        hidden = self.first(x).tanh()
        return self.form(self.last(hidden), hidden)


FORMS = {
    "logits": lambda y, h: {"logits": y, "hidden": h},
    "out": lambda y, h: OrderedDict(out=y, aux=y * 2),
    "dataclass": lambda y, h: Output(y),
    "model output": lambda y, h: ModelOutput(loss=None, logits=y, hidden_states=(h, h)),
    "first": lambda y, h: (y, h),
    "second": lambda y, h: [h, y],
    "pair": lambda y, h: Pair(h, y),
    "only tensor": lambda y, h: (None, y, {"h": h}),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_any_form_are_audited_like_the_tensor(form: str) -> None:
    torch.manual_seed(0)
    net, samples = Returning(FORMS[form]), Samples.from_tensors(torch.rand(4, 6), LABELS)
    plain = copy_of(net)
    options = {"release": "gaussian:0.1", "proxies": ("revealed_fraction",)}
    result, expected = audit(net, samples, **options), audit(plain, samples, **options)
    assert any("was taken for the loss" in warning for warning in result.warnings)
    for row, other in zip(result.samples, expected.samples, strict=True):
        assert row.loss == pytest.approx(other.loss)
        assert row.proxies["revealed_fraction"].value == pytest.approx(other.proxies["revealed_fraction"].value)


def copy_of(net: Returning) -> Returning:
    plain = Returning(lambda y, _: y)
    plain.load_state_dict(net.state_dict())
    return plain


AMBIGUOUS = {
    "two alike": lambda y, h: (y, 2 * y),
    "none": lambda y, h: {"a": 3, "b": None},
    "no tensor": lambda y, h: "text",
    "other names": lambda y, h: {"left": y, "right": 2 * y},
}


@pytest.mark.parametrize("form", AMBIGUOUS)
def test_ambiguous_outputs_and_what_to_do(tmp_path: Path, refused, form: str) -> None:
    net, samples = Returning(AMBIGUOUS[form]), Samples.from_tensors(torch.rand(4, 6), LABELS)
    message = refused(SamplesError, fit_together, Checkpoint.from_model(net), samples, CE)
    assert "`loss=file.py:function`" in message
    if form == "other names":
        (tmp_path / "l.py").write_text(
            "from torch.nn.functional import cross_entropy\ndef left(o, y): return cross_entropy(o['left'], y)\n"
        )
        checkpoint, samples = fit_together(Checkpoint.from_model(net), samples, load_loss(f"{tmp_path}/l.py:left"))
        result = audit(checkpoint, samples, loss=f"{tmp_path}/l.py:left", release="gaussian:0.1")
        expected = audit(copy_of(net), samples, release="gaussian:0.1")
        assert [row.loss for row in result.samples] == pytest.approx([row.loss for row in expected.samples])


class NeedsMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x, mask):
        return self.body(x * mask)


class Masked(NeedsMask):
    def forward(self, x):
        return super().forward(x, torch.ones_like(x))


def test_a_second_argument_and_what_to_do(refused) -> None:
    samples = Samples.from_tensors(torch.rand(4, 6), LABELS)
    message = refused(SamplesError, fit_together, Checkpoint.from_model(NeedsMask()), samples, CE)
    assert "'mask'" in message
    assert "takes them alone" in message
    fit_together(Checkpoint.from_model(Masked()), samples, CE)


# Targets of cross-entropy

HOT = torch.eye(3)[LABELS]
SOFT = torch.rand(4, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
MASKS = torch.randint(0, 3, (4, 5, 6), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("targets", [HOT, HOT.long(), HOT.double(), HOT.bool(), LABELS[:, None], LABELS.float()])
def test_one_hot_targets_are_class_numbers(tmp_path: Path, targets) -> None:
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).random((4, 6)), y=targets.numpy())
    samples = load_samples(tmp_path / "d.npz", loss=CE)
    torch.manual_seed(0)
    net = nn.Linear(6, 3)
    expected = audit(net, Samples.from_tensors(samples.inputs, LABELS), release="gaussian:0.1")
    result = audit(net, samples, release="gaussian:0.1")
    assert [row.loss for row in result.samples] == pytest.approx([row.loss for row in expected.samples])


@pytest.mark.parametrize(
    ("net", "shape", "targets"),
    [
        (nn.Linear(6, 3), (6,), SOFT),
        (nn.Conv2d(1, 3, 1), (1, 5, 6), MASKS),
        (nn.Conv2d(1, 3, 1), (1, 5, 6), MASKS[:, None]),
        (nn.Conv2d(1, 3, 1), (1, 5, 6), MASKS[:, None].float()),
        (nn.Conv2d(1, 3, 1), (1, 5, 6), nn.functional.one_hot(MASKS, 3).movedim(-1, 1)),
    ],
)
def test_soft_and_dense_targets(tmp_path: Path, net, shape, targets) -> None:
    x = np.random.default_rng(0).random((4, *shape))
    np.savez(tmp_path / "d.npz", x=x, y=targets.numpy())
    samples = load_samples(tmp_path / "d.npz", channels=1 if len(shape) > 1 else None, loss=CE)
    fit_together(Checkpoint.from_model(net), samples, CE)
    outputs = net.double()(torch.from_numpy(x[:1]))
    reference = SOFT[:1].double() if len(shape) == 1 else MASKS[:1]
    torch.testing.assert_close(CE(outputs, samples.targets[:1]), nn.functional.cross_entropy(outputs, reference))


@pytest.mark.parametrize("targets", [SOFT + 0.5, HOT * 2, torch.ones(4, 3), -HOT, torch.rand(4, 3, 2), SOFT[:, :2]])
def test_targets_that_are_no_distribution(refused, targets) -> None:
    samples = Samples.from_tensors(torch.rand(4, 6), targets)
    message = refused(SamplesError, fit_together, Checkpoint.from_model(nn.Linear(6, 3)), samples, CE)
    assert "`loss" in message


def test_void_labels_and_what_to_do(tmp_path: Path, refused) -> None:
    masks = MASKS.clone()
    masks[:, 0] = 255
    samples = Samples.from_tensors(torch.rand(4, 1, 5, 6), masks)
    net = nn.Conv2d(1, 3, 1)
    message = refused(SamplesError, fit_together, Checkpoint.from_model(net), samples, CE)
    assert "ignore_index=255" in message
    (tmp_path / "l.py").write_text(
        "from torch.nn.functional import cross_entropy\n"
        "def ce(o, y): return cross_entropy(o, y.long(), ignore_index=255)\n"
    )
    fit_together(Checkpoint.from_model(net), samples, load_loss(f"{tmp_path}/l.py:ce"))


class Summary(nn.Module):
    """Takes any number of axes; what it makes of one more depends on ``kind``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.head = kind, nn.Linear(8, 3)

    def forward(self, x):
        if self.kind == "as many axes":
            x = x * x.ndim
        if self.kind == "first size":
            x = x / x.shape[1]
        if self.kind == "squeezed":
            x = x.squeeze(1) if x.ndim == 4 else x
        return self.head(x.flatten(1, -2).mean(1))


def test_readings_that_are_only_tried_warn_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """Dropout2d warns of images without an axis of channels, which nobody gave."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Dropout2d(0.5), nn.Flatten(1), nn.Linear(96, 3)).eval()
    samples = Samples.from_tensors(torch.rand(4, 1, 6, 8), torch.arange(4) % 3)
    warnings.simplefilter("always")
    assert not fit_together(Checkpoint.from_model(model), samples, CE)[0].notes
    assert [str(each.message) for each in recwarn if "dropout2d" in str(each.message)] == []


@pytest.mark.parametrize(
    ("kind", "differs"), [("as many axes", True), ("first size", True), ("plain", False), ("squeezed", False)]
)
def test_two_readings_with_different_results_are_told(tmp_path: Path, kind: str, differs: bool) -> None:
    torch.manual_seed(0)
    model = Summary(kind)
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).random((4, 6, 8)), y=LABELS.numpy())
    checkpoint, samples = fit_together(Checkpoint.from_model(model), load_samples(tmp_path / "d.npz", loss=CE), CE)
    assert samples.inputs.shape[1:] == (1, 6, 8)
    notes = [note for note in checkpoint.notes if "with different results; those of (1, 6, 8) were audited" in note]
    assert bool(notes) == differs
    if differs:
        # The note's advice gives the other reading, without a note.
        assert "x.squeeze(1)" in notes[0]
        bare = Checkpoint.from_model(nn.Sequential(Squeezed(), model))
        other, taken = fit_together(bare, samples, CE)
        assert not other.notes
        x = samples.inputs.float()
        assert torch.equal(other.model(taken.inputs.float()), model(x.squeeze(1)))


class Squeezed(nn.Module):
    def forward(self, x):
        return x.squeeze(1) if x.ndim == 4 else x


def test_grey_images_of_a_network_of_images_have_one_reading() -> None:
    torch.manual_seed(0)
    samples = Samples.from_tensors(torch.rand(4, 1, 8, 7), LABELS)
    checkpoint, _ = fit_together(Checkpoint.from_model(Convolved(nn.Conv2d(1, 4, 3))), samples, CE)
    assert not checkpoint.notes
