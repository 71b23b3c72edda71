from __future__ import annotations

import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from input_cases import random_module
from torch import nn

from riskaudit.errors import ArchitectureError, UserCodeError
from riskaudit.inputs import architecture_names, load_checkpoint
from riskaudit.inputs.architectures import registry
from riskaudit.inputs.architectures.convolutional import CNN, ConvBig, ConvNet, LeNet
from riskaudit.inputs.architectures.linear import LinearModel
from riskaudit.inputs.architectures.mlp import MLP
from riskaudit.inputs.architectures.precode import Precode
from riskaudit.inputs.architectures.resnet import resnet18, resnet34, resnet50
from riskaudit.torchvision_compat import import_torchvision

# name, model, input shape, (channels, classes), claimed input shape
CASES = {
    "lenet-mnist": ("lenet", LeNet, (1, 28, 28), (1, 10), None),
    "lenet-cifar": ("lenet", lambda: LeNet(3, 768, 100), (3, 32, 32), (3, 100), None),
    "lenet-oblong": ("lenet", lambda: LeNet(2, 12 * 3 * 5, 7), (2, 12, 20), (2, 7), None),
    "lenet-one-class": ("lenet", lambda: LeNet(1, 12, 1), (1, 4, 4), (1, 1), None),
    "mlp-1": ("mlp", lambda: MLP((20, 8, 3)), (20,), (None, 3), (20,)),
    "mlp-3": ("mlp", lambda: MLP((784, 30, 20, 10, 2)), (1, 28, 28), (None, 2), (784,)),
    "mlp-12": ("mlp", lambda: MLP((5, *[4] * 12, 2)), (5,), (None, 2), (5,)),
    "convbig-cifar": ("convbig", ConvBig, (3, 32, 32), (3, 10), None),
    "convbig-mnist": ("convbig", lambda: ConvBig(1, 64 * 64, 4, 20, 12), (1, 28, 28), (1, 4), None),
    "cnn-mnist": ("cnn", CNN, (1, 28, 28), (1, 10), None),
    "cnn-cifar": ("cnn", lambda: CNN(3, 64 * 64, 5, 30), (3, 32, 32), (3, 5), None),
    "linear": ("linear", lambda: LinearModel(20, 3), (20,), (None, 3), (20,)),
    "linear-without-bias": ("linear", lambda: LinearModel(12, 1, bias=False), (3, 2, 2), (None, 1), (12,)),
    "precode": ("precode", lambda: Precode((12, 8, 6), 5, 7, 3), (12,), (None, 3), (12,)),
    "convnet-small": ("convnet", lambda: ConvNet(3, 4, 4 * 4 * 9, 10), (3, 32, 32), (3, 10), None),
    "convnet-grey": ("convnet", lambda: ConvNet(1, 8, 4 * 8, 5), (1, 12, 12), (1, 5), None),
    "resnet18": ("resnet18", lambda: resnet18(channels=1, classes=4), (1, 16, 16), (1, 4), None),
    "resnet34": ("resnet34", lambda: resnet34(channels=3, classes=100), (3, 8, 8), (3, 100), None),
    "resnet50": ("resnet50", lambda: resnet50(channels=3, classes=10), (3, 8, 8), (3, 10), None),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", CASES)
def test_recognition_round_trip(tmp_path: Path, case: str) -> None:
    name, build, shape, (channels, classes), claimed = CASES[case]
    model = random_module(build())
    torch.save(model.state_dict(), tmp_path / "m.pt")
    checkpoint = load_checkpoint(tmp_path / "m.pt")
    assert checkpoint.architecture == name
    assert checkpoint.recognised
    assert (checkpoint.input_channels, checkpoint.num_classes) == (channels, classes)
    assert checkpoint.input_shape == claimed
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(checkpoint.model(x), model(x))
    if sum(value.numel() for value in model.parameters()) > 10**7:
        return  # The rest is the same code for every size.
    named = load_checkpoint(tmp_path / "m.pt", arch=name)
    assert not named.recognised
    assert torch.equal(named.model(x), model(x))


def test_every_registered_architecture_has_a_case() -> None:
    assert {case[0] for case in CASES.values()} == set(registry.ARCHITECTURES)


def test_parameter_counts() -> None:
    count = lambda model: sum(parameter.numel() for parameter in model.parameters())  # noqa: E731
    assert count(LeNet()) == 17038
    assert count(resnet18()) == 11_173_962
    assert count(resnet50()) == 23_520_842
    # Table 3 of Balunovic et al., ICLR 2022.
    assert count(ConvBig()) == 12_384_018
    assert [tuple(layer.weight.shape) for layer in ConvBig().classifier[::2]] == [
        (2000, 5184),
        (1000, 2000),
        (10, 1000),
    ]
    assert count(CNN()) == 320 + 18_496 + 313_700 + 1010
    assert count(ConvNet()) == sum(p.numel() for p in ConvNet(3, 32, 36 * 32, 10).parameters())


def test_lenet_names_and_activation() -> None:
    names = list(LeNet().state_dict())
    assert names == [f"body.{i}.{k}" for i in (0, 2, 4, 6) for k in ("weight", "bias")] + ["fc.0.weight", "fc.0.bias"]
    assert sum(isinstance(layer, nn.Sigmoid) for layer in LeNet().modules()) == 4


def test_batch_norm_is_noted(tmp_path: Path) -> None:
    torch.save(ConvNet(1, 2, 8, 2).state_dict(), tmp_path / "c.pt")
    assert "bn0, bn1, bn2, bn3 and 4 more" in load_checkpoint(tmp_path / "c.pt").notes[0]


def test_mlp_notes_the_assumed_activation(tmp_path: Path) -> None:
    torch.save(MLP((3, 4, 2)).state_dict(), tmp_path / "c.pt")
    assert "ReLU is assumed" in load_checkpoint(tmp_path / "c.pt").notes[0]


def test_missing_counters_are_fine(tmp_path: Path) -> None:
    state = {key: value for key, value in resnet18().state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "c.pt")
    assert load_checkpoint(tmp_path / "c.pt").architecture == "resnet18"


def test_resnet_aliases(tmp_path: Path) -> None:
    model = random_module(resnet18(classes=3))
    state = {
        key.replace("downsample", "shortcut").replace("fc.", "linear."): v for key, v in model.state_dict().items()
    }
    torch.save({"net": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "c.pt")
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(load_checkpoint(tmp_path / "c.pt").model(x), model(x))


@pytest.mark.parametrize("prefix", ["", "layers.", "net."])
def test_any_stack_of_linear_layers_is_an_mlp_when_named(tmp_path: Path, prefix: str, refused) -> None:
    model = random_module(MLP((6, 5, 4, 3)))
    state = {}
    for position, number in enumerate((1, 3, 7)):
        for kind in ("weight", "bias"):
            state[f"{prefix}{number}.{kind}"] = model.state_dict()[f"layers.{2 * position}.{kind}"]
    torch.save(state, tmp_path / "c.pt")
    x = torch.rand(2, 6)
    assert torch.equal(load_checkpoint(tmp_path / "c.pt", arch="mlp").model(x), model(x))
    assert "`arch=mlp`" in refused(ArchitectureError, load_checkpoint, tmp_path / "c.pt")


@pytest.mark.parametrize("names", [("weight", "bias"), ("net.0.weight", "net.0.bias"), ("weight",)])
def test_one_matrix_is_a_linear_model_whatever_its_name(tmp_path: Path, names: tuple[str, ...]) -> None:
    layer = nn.Linear(6, 3, bias=len(names) == 2)
    torch.save(dict(zip(names, layer.state_dict().values(), strict=True)), tmp_path / "c.pt")
    checkpoint = load_checkpoint(tmp_path / "c.pt")
    assert (checkpoint.architecture, checkpoint.input_shape, checkpoint.num_classes) == ("linear", (6,), 3)
    x = torch.rand(2, 6)
    assert torch.equal(checkpoint.model(x), layer(x))


@pytest.mark.parametrize(
    ("asked", "offered"), [("vgg16", "torchvision:vgg16"), ("torchvison:resnet50", "torchvision:resnet50")]
)
def test_a_model_of_a_package_is_offered_by_the_name_that_it_has(asked: str, offered: str) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    with pytest.raises(ArchitectureError, match=f"did you mean .*{offered}"):
        registry.get_architecture(asked)


def test_the_last_layer_of_another_network_is_no_linear_model(tmp_path: Path, refused) -> None:
    torch.save(
        {"a.weight": torch.ones(4, 2), "fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)}, tmp_path / "c.pt"
    )
    assert "no registered architecture fits" in refused(ArchitectureError, load_checkpoint, tmp_path / "c.pt")
    torch.save({"embedding.weight": torch.ones(4, 2), "fc.weight": torch.ones(4, 2)}, tmp_path / "c.pt")
    assert "no registered architecture fits" in refused(ArchitectureError, load_checkpoint, tmp_path / "c.pt")


def test_activations_are_not_in_place(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))\n"
    )
    torch.save(nn.Sequential(nn.Linear(2, 2)).state_dict(), tmp_path / "c.pt")
    assert load_checkpoint(tmp_path / "c.pt", arch=f"{tmp_path}/f.py:make").model[1].inplace is False


# Near misses


def test_near_miss_names_key_and_shape(tmp_path: Path, refused) -> None:
    state = LeNet().state_dict()
    state["body.2.weight"] = torch.ones(12, 12, 3, 3)
    torch.save(state, tmp_path / "c.pt")
    message = refused(ArchitectureError, load_checkpoint, tmp_path / "c.pt")
    assert "lenet: body.2.weight has shape (12, 12, 3, 3), expected (12, 12, 5, 5)" in message
    assert "`arch=file.py:factory`" in message
    assert "c.pt" in message
    message = refused(ArchitectureError, load_checkpoint, tmp_path / "c.pt", arch="lenet")
    assert "body.2.weight has shape (12, 12, 3, 3)" in message


def test_imagenet_stem_is_a_near_miss_of_resnet18(tmp_path: Path, refused) -> None:
    state = resnet18().state_dict()
    state["conv1.weight"] = torch.ones(64, 3, 7, 7)
    torch.save(state, tmp_path / "c.pt")
    assert "resnet18: conv1.weight has shape (64, 3, 7, 7)" in refused(
        ArchitectureError, load_checkpoint, tmp_path / "c.pt"
    )


@pytest.mark.parametrize(
    "state",
    [
        {"a.weight": torch.ones(3)},
        {"layers.0.weight": torch.ones(3, 2), "layers.2.weight": torch.ones(2, 5)},
        {"layers.0.weight": torch.ones(3, 0), "layers.2.weight": torch.ones(2, 3)},
        {"fc.0.weight": torch.ones(3, 13), "body.0.weight": torch.ones(12, 1, 5, 5)},
        {"features.0.weight": torch.ones(2, 2, 2, 2), "classifier.0.weight": torch.ones(2, 3)},
        {"conv0.weight": torch.ones(2, 2, 3, 3), "linear.weight": torch.ones(2, 3)},
        {"conv1.weight": torch.ones(2, 2, 3, 3), "fc.weight": torch.ones(2)},
        {f"{'k' * 300}{i}.weight": torch.ones(2, 2) for i in range(50)},
    ],
)
def test_unrecognised(tmp_path: Path, refused, state) -> None:
    torch.save(state, tmp_path / "c.pt")
    assert "no registered architecture fits" in refused(ArchitectureError, load_checkpoint, tmp_path / "c.pt")


def test_unknown_name(lenet_file: Path, refused) -> None:
    message = refused(ArchitectureError, load_checkpoint, lenet_file, arch="lenett")
    assert "did you mean lenet" in message
    assert all(name in message for name in architecture_names())


def test_duplicate_registration() -> None:
    with pytest.raises(ValueError, match="twice"):
        registry.register("lenet", description="", infer=lambda _: registry.Guess({}, 1))(nn.Identity)
    with pytest.raises(ValueError, match="twice"):
        registry.register_collection("timm", description="", names=list)(lambda *_: nn.Identity())


def test_listing_has_one_line_each() -> None:
    names = architecture_names()
    assert {
        "lenet",
        "linear",
        "mlp",
        "precode",
        "cnn",
        "convbig",
        "convnet",
        "resnet18",
        "torchvision:NAME",
        "timm:NAME",
    } <= set(names)
    assert all(line and "\n" not in line for line in names.values())


# Collections


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_torchvision(tmp_path: Path, name: str) -> None:
    model = import_torchvision().models.get_model(name, weights=None, num_classes=7).eval()
    # Alphabetical, as safetensors stores them: the classes must not be read off the last entry.
    torch.save(dict(sorted(model.state_dict().items())), tmp_path / "c.pt")
    checkpoint = load_checkpoint(tmp_path / "c.pt", arch=f"torchvision:{name}")
    assert (checkpoint.num_classes, checkpoint.input_channels) == (7, 3)
    assert checkpoint.architecture == f"torchvision:{name}"
    assert not any(getattr(module, "inplace", False) for module in checkpoint.model.modules())
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(checkpoint.model(x), model(x))


@pytest.mark.usefixtures("no_network")
def test_timm_for_images_of_another_size(tmp_path: Path) -> None:
    import_torchvision()
    import timm

    name = "vit_tiny_patch16_224"
    model = timm.create_model(name, pretrained=False, img_size=64, num_classes=10).eval()
    torch.save(model.state_dict(), tmp_path / "c.pt")
    with pytest.raises(ArchitectureError, match=r"timm.create_model\('vit_tiny_patch16_224', img_size=SIZE"):
        load_checkpoint(tmp_path / "c.pt", arch=f"timm:{name}")
    # The advice, in a file that imports timm by itself.
    (tmp_path / "model.py").write_text(
        f"import timm\n\ndef factory():\n    return timm.create_model({name!r}, img_size=64, num_classes=10)\n"
    )
    checkpoint = load_checkpoint(tmp_path / "c.pt", arch=f"{tmp_path / 'model.py'}:factory")
    x = torch.rand(1, 3, 64, 64)
    assert torch.allclose(checkpoint.model(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_file_that_imports_torchvision_loads_in_a_fresh_process(tmp_path: Path, package: str) -> None:
    (tmp_path / "model.py").write_text(f"import {package}\ndef factory():\n    return {package}.__name__\n")
    code = "import sys; from riskaudit.inputs import user_code; print(user_code.load_user_function(sys.argv[1])())"
    found = subprocess.run(
        [sys.executable, "-c", code, f"{tmp_path / 'model.py'}:factory"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == package


def test_timm(tmp_path: Path) -> None:
    import_torchvision()
    import timm

    model = timm.create_model("resnet10t", pretrained=False, num_classes=5, in_chans=1).eval()
    torch.save(dict(sorted(model.state_dict().items())), tmp_path / "c.pt")
    checkpoint = load_checkpoint(tmp_path / "c.pt", arch="timm:resnet10t")
    assert (checkpoint.num_classes, checkpoint.input_channels) == (5, 1)
    x = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(checkpoint.model(x), model(x))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("torchvision:resnet19", "did you mean"),
        ("torchvision:", "no classification model"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classification model"),
        ("timm:resnet_18", "did you mean"),
        ("timm:hf-hub:someone/model", "no model"),
        ("timm:../x", "no model"),
        ("torchvision:resnet18", "conv1.weight is missing"),
        ("timm:resnet18", "conv1.weight is missing"),
    ],
)
def test_collections_refuse(lenet_file: Path, refused, arch: str, words: str) -> None:
    assert words in refused(ArchitectureError, load_checkpoint, lenet_file, arch=arch)


@pytest.mark.slow
def test_collections_are_imported_only_on_demand() -> None:
    code = "import sys, riskaudit.inputs; print([m for m in ('timm','torchvision','pyarrow') if m in sys.modules])"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize(("arch", "extra"), [("torchvision:resnet18", "torchvision"), ("timm:resnet18", "timm")])
def test_missing_package_names_the_extra(lenet_file: Path, refused, monkeypatch, arch: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    assert f'pip install "riskaudit[{extra}]"' in refused(ArchitectureError, load_checkpoint, lenet_file, arch=arch)


def test_torchvision_imports_twice() -> None:
    assert import_torchvision() is import_torchvision()


# file.py:factory

FACTORY = """
from torch import nn
import module_beside
def make(): return nn.Sequential(nn.Linear(3, 2))
def wrapped():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(3, 2)
        def forward(self, x): return self.model(x)
    return Net()
def wrong(): return 3
def fails(): raise KeyError("lost")
def leaves(): raise SystemExit(3)
def needs(x): return x
number = 3
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    (tmp_path / "module_beside.py").write_text("value = 1\n")
    (tmp_path / "net.py").write_text(FACTORY)
    torch.save(nn.Sequential(nn.Linear(3, 2)).state_dict(), tmp_path / "w.pt")
    return tmp_path


def test_factory(factory: Path) -> None:
    checkpoint = load_checkpoint(factory / "w.pt", arch=f"{factory}/net.py:make")
    assert checkpoint.architecture == "net.py:make"
    assert checkpoint.num_classes == 2
    assert str(factory) not in sys.path


def test_factory_whose_own_module_is_called_model(factory: Path) -> None:
    torch.save({"model.weight": torch.ones(2, 3), "model.bias": torch.ones(2)}, factory / "m.pt")
    model = load_checkpoint(factory / "m.pt", arch=f"{factory}/net.py:wrapped").model
    assert torch.equal(model.model.weight, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong", "returned a int"),
        ("fails", "KeyError: 'lost'"),
        ("leaves", "SystemExit: 3"),
        ("needs", "TypeError"),
        ("number", "is a int"),
        ("absent", "has no 'absent'"),
        ("no name", "expected file.py:name"),
        ("", "expected file.py:name"),
    ],
)
def test_factory_refused(factory: Path, refused, name: str, words: str) -> None:
    message = refused(UserCodeError, load_checkpoint, factory / "w.pt", arch=f"{factory}/net.py:{name}")
    assert words in message
    assert "net.py" in message


@pytest.mark.parametrize("text", ["def make(:\n", "import nothing_of_that_name\n", "raise SystemExit\n", "1/0\n", "\0"])
def test_broken_file_leaves_no_module(factory: Path, refused, text: str) -> None:
    before = set(sys.modules)
    (factory / "bad.py").write_text(text)
    assert "bad.py failed on import" in refused(
        UserCodeError, load_checkpoint, factory / "w.pt", arch=f"{factory}/bad.py:make"
    )
    assert not {name for name in set(sys.modules) - before if name.startswith("riskaudit_user")}


def test_missing_file(factory: Path, refused) -> None:
    assert "nowhere.py" in refused(UserCodeError, load_checkpoint, factory / "w.pt", arch="nowhere.py:make")
    assert "c:" in refused(UserCodeError, load_checkpoint, factory / "w.pt", arch=r"c:\nets\net.py:make")


def test_factory_with_other_weights(factory: Path, refused) -> None:
    torch.save({"0.weight": torch.ones(2, 4), "1.bias": torch.ones(2)}, factory / "o.pt")
    message = refused(ArchitectureError, load_checkpoint, factory / "o.pt", arch=f"{factory}/net.py:make")
    assert "0.weight has shape (2, 4), expected (2, 3); 0.bias is missing and 1 more" in message
