from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from input_cases import IMAGES, LABELS, write_arrays
from PIL import Image

from riskaudit.errors import SamplesError
from riskaudit.inputs import load_samples


def image_folder(root: Path, counts=(3, 2, 4), mode: str = "L", size=(5, 4)) -> Path:
    for label, count in enumerate(counts):
        (root / f"class{label}").mkdir(parents=True)
        for number in range(count):
            shade = 10 * label + number
            colour = (shade, 0, 255) if mode == "RGB" else shade
            Image.new(mode, size, colour).save(root / f"class{label}" / f"person{number}.png")
    return root


def test_image_folder(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "faces")
    samples = load_samples(root, channels=1)
    assert samples.inputs.shape == (9, 1, 4, 5)
    assert samples.inputs[:, 0, 0, 0].mul(255).round().tolist() == [0, 1, 2, 10, 11, 20, 21, 22, 23]
    assert samples.targets.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert all(re.fullmatch("class-[0-9a-f]{12}", name) for name in samples.class_names)
    assert len(set(samples.class_names)) == 3
    assert samples.name == "faces"
    assert samples.are_images
    assert all(len(name) == 12 and "person" not in name for name in samples.ids)
    plain = load_samples(root, channels=1, plain_ids=True)
    assert plain.ids[0] == "class0/person0.png"
    assert plain.class_names == ("class0", "class1", "class2")


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (7, [0, 0, 0, 1, 1, 2, 2]), (50, None)]
)
def test_folder_limit_is_spread(tmp_path: Path, limit: int, expected) -> None:
    samples = load_samples(image_folder(tmp_path / "f"), limit=limit)
    assert samples.targets.tolist() == (expected or [0, 0, 0, 1, 1, 2, 2, 2, 2])
    assert samples.class_names == load_samples(tmp_path / "f").class_names


def test_folder_hash_covers_names_and_content(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "f")
    hashes = [load_samples(root).sha256, load_samples(root).sha256]
    assert hashes[0] == hashes[1]
    (root / "class0" / "person0.png").rename(root / "class0" / "other.png")
    hashes.append(load_samples(root).sha256)
    Image.new("L", (5, 4), 99).save(root / "class0" / "other.png")
    hashes.append(load_samples(root).sha256)
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3, None])
def test_image_modes(tmp_path: Path, mode: str, channels) -> None:
    (tmp_path / "f" / "a").mkdir(parents=True)
    suffix = ".tif" if mode == "CMYK" else ".png"
    Image.new(mode, (3, 2)).save(tmp_path / "f" / "a" / f"x{suffix}")
    inputs = load_samples(tmp_path / "f", channels=channels).inputs
    assert inputs.shape == (1, channels or (1 if mode in ("1", "L", "I;16") else 3), 2, 3)
    assert 0 <= inputs.min() <= inputs.max() <= 1


def test_sixteen_bits_keep_their_scale(tmp_path: Path) -> None:
    (tmp_path / "f" / "a").mkdir(parents=True)
    Image.fromarray(np.array([[0, 65535], [13107, 0]], dtype=np.uint16)).save(tmp_path / "f" / "a" / "x.png")
    Image.new("L", (2, 2), 51).save(tmp_path / "f" / "a" / "y.png")
    inputs = load_samples(tmp_path / "f").inputs
    assert inputs[0, 0].tolist() == [[0, 1], [0.2, 0]]
    assert inputs[1, 0, 0, 0] == 0.2


def test_colour_is_in_order(tmp_path: Path) -> None:
    samples = load_samples(image_folder(tmp_path / "f", (2,), "RGB"), channels=3)
    assert samples.inputs[1, :, 0, 0].tolist() == [1 / 255, 0, 1]


def test_folder_refusals(tmp_path: Path, refused) -> None:
    root = image_folder(tmp_path / "f", (2, 1))
    assert "1 or 3" in refused(SamplesError, load_samples, root, channels=4)
    Image.new("L", (9, 9)).save(root / "class1" / "large.png")
    message = refused(SamplesError, load_samples, root)
    assert "images of 5x4 and 9x9" in message
    assert "image 0 of class folder 1" in message
    content = (root / "class0" / "person0.png").read_bytes()
    for damaged in (content[:40], b"no image"):
        (root / "class1" / "large.png").write_bytes(damaged)
        message = refused(SamplesError, load_samples, root)
        assert "image 0 of class folder 1" in message
        assert "large" not in message
        assert "large.png" in refused(SamplesError, load_samples, root, plain_ids=True)


def test_flat_folder(tmp_path: Path, refused) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    assert "folder per class" in refused(SamplesError, load_samples, tmp_path)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_link_out_of_the_folder(tmp_path: Path, refused, what: str) -> None:
    root = image_folder(tmp_path / "f", (1, 1))
    other = image_folder(tmp_path / "secret", (1,))
    if what == "file":
        (root / "class0" / "link.png").symlink_to(other / "class0" / "person0.png")
    else:
        (root / "class9").symlink_to(other / "class0")
    assert "leads out of the folder" in refused(SamplesError, load_samples, root)


def test_image_bomb(tmp_path: Path, refused, monkeypatch) -> None:
    root = image_folder(tmp_path / "f", (1,), size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    assert "too many pixels" in refused(SamplesError, load_samples, root)
    assert "person0.png" in refused(SamplesError, load_samples, root, plain_ids=True)


def test_names_lose_control_characters(tmp_path: Path) -> None:
    (tmp_path / "f" / "<b>a\x1b[31m\n").mkdir(parents=True)
    Image.new("L", (2, 2)).save(tmp_path / "f" / "<b>a\x1b[31m\n" / "x.png")
    assert load_samples(tmp_path / "f", plain_ids=True).class_names == ("<b>a[31m",)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path, refused) -> None:
    path = write_arrays(tmp_path / "d.npz", {"x": IMAGES, "y": LABELS})
    path.chmod(0)
    assert "permissions" in refused(SamplesError, load_samples, path)
