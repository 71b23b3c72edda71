"""LPIPS through its real loading code, with random backbones of the right shapes in a folder of the test's own."""

from __future__ import annotations

import socket

import pytest
import torch

from riskaudit.metrics import METRICS, Metric, Subject, make_metrics, measure
from riskaudit.metrics.perceptual import _without_backbone
from riskaudit.torchvision_compat import import_torchvision

FILES = {
    "lpips": ("alexnet", "alexnet-owt-7be5be79.pth"),
    "lpips_vgg": ("vgg16", "vgg16-397923af.pth"),
    "lpips_squeeze": ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
}
# AlexNet has 61 million weights and VGG-16 138 million, most of them in layers that LPIPS never uses.
CASES = [
    "lpips_squeeze",
    pytest.param("lpips", marks=pytest.mark.slow),
    pytest.param("lpips_vgg", marks=pytest.mark.slow),
]
UNIT = (0.0, 1.0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """An empty torch hub cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def random_backbone(name: str) -> torch.nn.Module:
    torch.manual_seed(1)
    return import_torchvision().models.get_model(FILES[name][0], weights=None)


def one(name: str, subject: Subject) -> Metric:
    return make_metrics(subject, [name])[0]


def pair(channels: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    both = torch.rand(2, 3, channels, height, width, generator=generator)
    return both[0], both[1]


@pytest.mark.parametrize("name", CASES)
def test_the_backbone_is_loaded_from_the_cache(name: str, cache) -> None:
    backbone = random_backbone(name)
    torch.save(backbone.state_dict(), cache / FILES[name][1])
    before = torch.get_rng_state()
    metric = one(name, Subject((3, 40, 40), UNIT))
    assert (metric.reason, metric.note) == (None, None)
    assert torch.equal(torch.get_rng_state(), before)
    guess, truth = pair(3, 40, 40)
    # The package's own way of taking a backbone: the modules of torchvision in its slices.
    direct = _without_backbone(metric.network)
    for piece in (getattr(direct.net, f"slice{place}") for place in range(1, direct.net.N_slices + 1)):
        for number, layer in piece.named_children():
            layer.load_state_dict(backbone.features[int(number)].state_dict())
    expected = direct(2 * guess - 1, 2 * truth - 1).flatten().double()
    found = metric(guess, truth)
    assert found.dtype is torch.float64
    torch.testing.assert_close(found, expected.detach())
    assert found.min() > 0
    assert metric(truth, truth).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", CASES)
def test_small_grey_images_are_repeated_and_enlarged(name: str, cache) -> None:
    torch.save(random_backbone(name).state_dict(), cache / FILES[name][1])
    least = METRICS[name].smallest_side
    guess, truth = pair(1, least - 1, least + 3)
    metric = one(name, Subject((1, least - 1, least + 3), UNIT))
    assert metric.note == f"images of {least - 1} x {least + 3} pixels are enlarged to 64 pixels"
    assert metric(guess, truth).min() > 0
    in_colour = one(name, Subject((3, least - 1, least + 3), UNIT))
    torch.testing.assert_close(in_colour(guess.repeat(1, 3, 1, 1), truth.repeat(1, 3, 1, 1)), metric(guess, truth))
    fits = one(name, Subject((1, least, least), UNIT))
    assert fits.note is None
    assert fits(*pair(1, least, least)).isfinite().all()


def test_the_input_range_is_what_is_scaled(cache) -> None:
    torch.save(random_backbone("lpips_squeeze").state_dict(), cache / FILES["lpips_squeeze"][1])
    guess, truth = pair(3, 32, 32)
    unit = one("lpips_squeeze", Subject((3, 32, 32), UNIT))(guess, truth)
    wide = one("lpips_squeeze", Subject((3, 32, 32), (-3.0, 5.0)))(8 * guess - 3, 8 * truth - 3)
    torch.testing.assert_close(unit, wide, rtol=1e-4, atol=1e-7)


def test_a_folder_of_weights_of_one_s_own(tmp_path, cache) -> None:
    torch.save(random_backbone("lpips_squeeze").state_dict(), tmp_path / FILES["lpips_squeeze"][1])
    assert one("lpips_squeeze", Subject((3, 32, 32), UNIT, weights_folder=tmp_path)).reason is None
    elsewhere = one("lpips_squeeze", Subject((3, 32, 32), UNIT, weights_folder=cache))
    assert "are not in the folder given" in elsewhere.reason
    assert str(cache) not in elsewhere.reason


@pytest.mark.parametrize("name", sorted(FILES))
def test_without_weights_the_reason_is_the_command_that_fetches_them(name: str, cache) -> None:
    metric = one(name, Subject((3, 32, 32), UNIT))
    url = f"https://download.pytorch.org/models/{FILES[name][1]}"
    assert f"torch.hub.load_state_dict_from_url('{url}')" in metric.reason
    assert str(cache) not in metric.reason
    guess, truth = pair(3, 32, 32)
    assert measure([metric], guess, truth) == [{name: None}] * 3
    with pytest.raises(ValueError, match="expected the backbone's weights"):
        metric(guess, truth)


class Harmful:
    def __reduce__(self):
        return (exec, ("raise AssertionError('code of a weights file ran')",))


@pytest.mark.parametrize("content", ["garbage", "truncated", "pickle", "other", "list", "folder"])
def test_broken_weights_are_a_reason_and_never_run(content: str, cache) -> None:
    path = cache / FILES["lpips_squeeze"][1]
    if content == "garbage":
        path.write_bytes(b"not weights at all")
    elif content == "truncated":
        torch.save(random_backbone("lpips_squeeze").state_dict(), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif content == "folder":
        path.mkdir()
    else:
        torch.save({"pickle": Harmful(), "other": {"features.0.weight": torch.zeros(3)}, "list": [1, 2]}[content], path)
    metric = one("lpips_squeeze", Subject((3, 32, 32), UNIT))
    expected = "are not in the torch hub cache" if content == "folder" else "can't be read as those of squeezenet1_1"
    assert expected in metric.reason
    assert str(cache) not in metric.reason


@pytest.mark.parametrize("shape", [(13,), (2, 32, 32), (3, 8, 32, 32)], ids=str)
def test_only_images_of_one_or_three_channels(shape: tuple[int, ...]) -> None:
    reason = one("lpips_squeeze", Subject(shape, UNIT)).reason
    assert reason == "the inputs are not images of one or three channels"
