"""Every kind of checkpoint, data, loss and architecture through a whole scan."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from scan_cases import save_arrays, save_images, save_mlp
from torch import nn

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.last = nn.Linear(5, 3)
    def forward(self, x):
        return self.last(torch.tanh(self.first(x.flatten(1))))

def build():
    return Net()

def data():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 6, generator=generator), torch.tensor([0, 1, 2])

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)
"""
TABLE = [["a", "b", "c", "label"], ["0.5", "1", "0.25", "0"], ["0.1", "0", "0.5", "2"], ["0.9", "0.3", "0.7", "1"]]
NO_LIMIT = {"limit": None}


def check(outcome, count: int, shape: list[int]) -> None:
    assert outcome.code == 0, outcome.err
    assert outcome.result.data.input_shape == shape
    assert len(outcome.result.samples) == count
    for row in outcome.result.samples:
        assert row.status == "exact", row
        assert 0 < row.proxies["revealed_fraction"].value <= 1


@pytest.fixture
def user_file(tmp_path):
    (tmp_path / "mine.py").write_text(MODEL, encoding="utf-8")
    return tmp_path / "mine.py"


@pytest.fixture
def user_weights(tmp_path):
    torch.manual_seed(0)
    namespace: dict = {}
    exec(MODEL, namespace)
    torch.save({"model_state_dict": namespace["build"]().state_dict()}, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_factory_data_and_loss_of_the_user(scan, user_file, user_weights) -> None:
    options = ("--arch", f"{user_file}:build", "--loss", f"{user_file}:loss")
    outcome = scan(*options, checkpoint=user_weights, data=f"{user_file}:data", **NO_LIMIT)
    check(outcome, 3, [6])
    assert outcome.result.checkpoint.architecture == "mine.py:build"
    assert outcome.result.settings.loss == "mine.py:loss"
    plain = scan("--arch", f"{user_file}:build", checkpoint=user_weights, data=f"{user_file}:data", **NO_LIMIT)
    assert plain.values("gradient_norm") != outcome.values("gradient_norm")
    # The folder of the user's file is told nowhere.
    assert str(user_file.parent) not in str(outcome.audit)


def test_a_loss_that_fails_is_one_sentence(scan, user_file, user_weights) -> None:
    user_file.write_text(MODEL + "\ndef broken(outputs, targets):\n    return outputs\n", encoding="utf-8")
    options = ("--arch", f"{user_file}:build", "--loss", f"{user_file}:broken")
    outcome = scan(*options, checkpoint=user_weights, data=f"{user_file}:data", **NO_LIMIT)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "scalar" in outcome.err


def test_csv(scan, tmp_path) -> None:
    (tmp_path / "data.csv").write_text("\n".join(map(",".join, TABLE)), encoding="utf-8")
    check(scan(checkpoint=save_mlp(tmp_path / "m.pt", (3, 16, 3)), data=tmp_path / "data.csv", **NO_LIMIT), 3, [3])


def test_parquet_gives_the_numbers_of_csv(scan, tmp_path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data.csv").write_text("\n".join(map(",".join, TABLE)), encoding="utf-8")
    columns = {name: [float(cell) for cell in cells] for name, *cells in zip(*TABLE, strict=True)}
    columns["label"] = [int(label) for label in columns["label"]]
    parquet.write_table(arrow.table(columns), tmp_path / "data.parquet")
    model = save_mlp(tmp_path / "m.pt", (3, 16, 3))
    first = scan(checkpoint=model, data=tmp_path / "data.parquet", **NO_LIMIT)
    check(first, 3, [3])
    samples = first.result.samples
    assert scan(checkpoint=model, data=tmp_path / "data.csv", **NO_LIMIT).result.samples == samples


def test_image_folder(scan, tmp_path) -> None:
    images = save_images(tmp_path / "faces", {"a": ["1.png", "2.png"], "b": ["3.png"]})
    outcome = scan(checkpoint=save_mlp(tmp_path / "m.pt", (16, 16, 2)), data=images, **NO_LIMIT)
    check(outcome, 3, [1, 4, 4])
    assert all(row.name.startswith("class-") for row in outcome.result.classes)
    plain = scan("--plain-ids", checkpoint=tmp_path / "m.pt", data=images, **NO_LIMIT)
    assert [row.name for row in plain.result.classes] == ["a", "b"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tensors(scan, tmp_path, suffix) -> None:
    from safetensors.torch import save_file

    tensors = {"inputs": torch.rand(2, 5), "targets": torch.tensor([0, 1])}
    (torch.save if suffix == ".pt" else save_file)(tensors, tmp_path / f"data{suffix}")
    check(scan(checkpoint=save_mlp(tmp_path / "m.pt", (5, 16, 2)), data=tmp_path / f"data{suffix}", **NO_LIMIT), 2, [5])


def test_exported_program(scan, tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3)).eval()
    torch.export.save(torch.export.export(model, (torch.rand(1, 6),)), tmp_path / "model.pt2")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3))\n",
        encoding="utf-8",
    )
    inputs = np.random.default_rng(0).random((2, 6))
    data = save_arrays(tmp_path / "data.npz", x=inputs, y=np.array([0, 2]))
    outcome = scan(checkpoint=tmp_path / "model.pt2", data=data)
    check(outcome, 2, [6])
    assert outcome.result.checkpoint.architecture == "torch.export"
    same = scan("--arch", f"{tmp_path / 'net.py'}:build", checkpoint=tmp_path / "model.pt", data=data)
    assert outcome.values("revealed_fraction") == pytest.approx(same.values("revealed_fraction"), rel=1e-9)


@pytest.mark.parametrize(
    ("loss", "targets", "outputs"),
    [
        ("bce", [0, 1, 1], 1),
        ("bce", [[0, 1], [1, 1], [0, 0]], 2),
        ("mse", [0.25, -1.5, 3.0], 1),
        ("mse", [[0.5, 1.0], [2.0, -1.0], [0.0, 0.0]], 2),
    ],
    ids=["bce", "bce-two-labels", "mse", "mse-two-outputs"],
)
def test_losses(scan, tmp_path, loss, targets, outputs) -> None:
    inputs = np.random.default_rng(0).random((3, 4))
    data = save_arrays(tmp_path / "data.npz", x=inputs, y=np.array(targets))
    outcome = scan("--loss", loss, checkpoint=save_mlp(tmp_path / "m.pt", (4, 16, outputs)), data=data, **NO_LIMIT)
    check(outcome, 3, [4])
    assert outcome.result.settings.loss == loss
    # Targets that are no classes make no class rows.
    assert (outcome.result.classes == []) == (loss == "mse" or outputs == 2)


def test_normalisation_is_inside_the_model(scan, tmp_path) -> None:
    """(x - m) / s in the first layer: the same gradient of the other layers, a Jacobian in pixel units."""
    outcome = scan("--mean", "0.5", "--std", "0.25")
    settings = outcome.result.settings
    assert (settings.normalization_mean, settings.normalization_std) == ([0.5], [0.25])
    assert outcome.result.data.input_range == [0.0, 1.0]
    assert outcome.result.checkpoint.num_parameters == scan().result.checkpoint.num_parameters
    assert outcome.values("revealed_fraction") != scan().values("revealed_fraction")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_model(scan, tmp_path) -> None:
    from riskaudit.torchvision_compat import import_torchvision

    torch.manual_seed(0)
    # Not shufflenet: untrained, its ReLUs switch at steps of 1e-4, so that no derivative tells of it.
    model = import_torchvision().models.get_model("resnet18", weights=None, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    data = save_arrays(tmp_path / "data.npz", images=images, labels=np.array([1]))
    options = ("--arch", "torchvision:resnet18", "--solver", "power", "--max-matvecs", "2")
    outcome = scan(*options, checkpoint=tmp_path / "model.pt", data=data)
    assert outcome.code == 0, outcome.err
    assert outcome.result.threat_model.evaluation == "diagnostic"
    assert "batch-norm" in outcome.result.threat_model.reason
