from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from input_cases import IMAGES, LABELS, RNG, write_arrays

from riskaudit.errors import SamplesError
from riskaudit.inputs import load_loss, load_samples


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("inputs_key", ["images", "x", "inputs"])
@pytest.mark.parametrize("targets_key", ["labels", "y", "targets"])
def test_array_files(tmp_path: Path, suffix: str, inputs_key: str, targets_key: str) -> None:
    path = write_arrays(tmp_path / f"d{suffix}", {inputs_key: IMAGES, targets_key: LABELS, "other": np.ones(3)})
    samples = load_samples(path, channels=1)
    assert samples.inputs.dtype == torch.float64
    assert np.array_equal(samples.inputs.numpy(), IMAGES / 255.0)
    assert samples.targets.dtype == torch.int64
    assert samples.targets.tolist() == LABELS.tolist()
    assert samples.ids == ("0", "1", "2", "3", "4", "5")
    assert samples.are_images
    assert samples.class_names is None
    assert samples.name == f"d{suffix}"
    assert samples.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(samples) == 6


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
@pytest.mark.parametrize("limit", [1, 4, 6, 100])
def test_limit_takes_the_first(tmp_path: Path, suffix: str, limit: int) -> None:
    samples = load_samples(write_arrays(tmp_path / f"d{suffix}", {"x": IMAGES, "y": LABELS}), limit=limit)
    assert len(samples) == min(limit, 6)
    assert np.array_equal(samples.inputs.numpy(), IMAGES[:limit] / 255.0)


def test_npz_fortran_order_big_endian_compressed(tmp_path: Path) -> None:
    x = RNG.normal(size=(5, 3, 2))
    np.savez_compressed(tmp_path / "d.npz", x=np.asfortranarray(x).astype(">f4"), y=np.arange(5, dtype=">i2"))
    samples = load_samples(tmp_path / "d.npz", limit=3)
    assert np.array_equal(samples.inputs.numpy()[:, 0], x[:3].astype("f4").astype("f8"))
    assert samples.targets.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u2", "u4", "i8", "?"])
def test_other_dtypes_keep_their_numbers(tmp_path: Path, dtype: str) -> None:
    x = np.array([[0, 1], [1, 0]]).astype(dtype)
    np.savez(tmp_path / "d.npz", x=x, y=[0, 1])
    assert load_samples(tmp_path / "d.npz").inputs.tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_lengths_are_compared_before_the_limit(tmp_path: Path, refused, suffix: str) -> None:
    path = write_arrays(tmp_path / f"d{suffix}", {"x": IMAGES, "y": LABELS[:5]})
    refused(SamplesError, load_samples, path, limit=2)


def test_pair_in_pt(tmp_path: Path) -> None:
    torch.save((torch.ones(3, 2), torch.tensor([0, 1, 0])), tmp_path / "d.pt")
    assert load_samples(tmp_path / "d.pt").inputs.shape == (3, 2)


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((2, 4, 5), 1, (2, 1, 4, 5)),
        ((2, 4, 5), None, (2, 1, 4, 5)),
        ((2, 3, 5), 3, (2, 3, 5)),
        ((2, 1, 4, 5), 1, (2, 1, 4, 5)),
        ((2, 4, 5, 1), 1, (2, 1, 4, 5)),
        ((2, 4, 5, 3), 3, (2, 3, 4, 5)),
        ((2, 3, 4, 5), 3, (2, 3, 4, 5)),
        ((2, 3, 4, 3), 3, (2, 3, 4, 3)),
        ((2, 4, 5, 3), None, (2, 3, 4, 5)),
        ((2, 3, 4, 3), None, (2, 3, 4, 3)),
        ((2, 7, 5, 6), None, (2, 7, 5, 6)),
        ((2, 7), None, (2, 7)),
        ((2, 7), 3, (2, 7)),
        ((2,), None, (2, 1)),
    ],
)
def test_layouts(tmp_path: Path, shape, channels, expected) -> None:
    x = RNG.normal(size=shape)
    np.savez(tmp_path / "d.npz", x=x, y=np.zeros(2, dtype=int))
    inputs = load_samples(tmp_path / "d.npz", channels=channels).inputs
    assert inputs.shape == expected
    if shape == (2, 4, 5, 3):
        assert np.array_equal(inputs.numpy(), x.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("shape", "channels"), [((2, 4, 5), 3), ((2, 4, 5, 2), 3), ((2, 3, 4, 5), 1)])
def test_layout_that_fits_nothing(tmp_path: Path, refused, shape, channels) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros(shape), y=np.zeros(2, dtype=int))
    message = refused(SamplesError, load_samples, tmp_path / "d.npz", channels=channels)
    assert str(tuple(shape)) in message
    assert f"{channels} channels" in message


@pytest.mark.parametrize(
    ("loss", "targets", "dtype", "expected"),
    [
        (None, [0, 1], torch.int64, [0, 1]),
        (None, [0.5, 1.0], torch.float64, [0.5, 1.0]),
        ("cross-entropy", [0.0, 1.0], torch.int64, [0, 1]),
        ("cross-entropy", [[0], [1]], torch.int64, [0, 1]),
        ("mse", [0, 1], torch.float64, [0.0, 1.0]),
        ("mse", [[0.5, 2], [1, 1]], torch.float64, [[0.5, 2], [1, 1]]),
        ("bce", [0, 1], torch.int64, [0, 1]),
        ("bce", [0.0, 1.0], torch.float64, [0.0, 1.0]),
    ],
)
def test_targets(tmp_path: Path, loss, targets, dtype, expected) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3)), y=np.array(targets))
    found = load_samples(tmp_path / "d.npz", loss=loss and load_loss(loss)).targets
    assert found.dtype == dtype
    assert found.tolist() == expected


def test_fractions_as_classes(tmp_path: Path, refused) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3)), y=np.array([0.5, 1]))
    assert "fractions" in refused(SamplesError, load_samples, tmp_path / "d.npz", loss=load_loss("cross-entropy"))


# Identifiers


def test_ids_are_hidden_unless_asked_for(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "d.npz", x=np.zeros((3, 2)), y=[0, 1, 0], ids=["anna", "bob", "anna"], class_names=["no", "yes"]
    )
    samples = load_samples(tmp_path / "d.npz")
    assert samples.class_names == ("no", "yes")
    assert all(len(name.partition("-")[0]) == 12 for name in samples.ids)
    assert samples.ids[2] == f"{samples.ids[0]}-2"
    assert len(set(samples.ids)) == 3
    assert samples.ids == load_samples(tmp_path / "d.npz").ids
    assert load_samples(tmp_path / "d.npz", plain_ids=True).ids == ("anna", "bob", "anna-2")


def test_hidden_ids_depend_on_the_content(tmp_path: Path) -> None:
    ids = []
    for value in (0.0, 1.0):
        np.savez(tmp_path / "d.npz", x=np.full((1, 2), value), y=[0], ids=["anna"])
        samples = load_samples(tmp_path / "d.npz")
        published = bytes.fromhex(samples.sha256 or "")
        ids.append(samples.ids[0])
        # What a reader of the report could compute.
        guesses = [hashlib.blake2b(b"anna", key=key, digest_size=6).hexdigest() for key in (b"", published)]
        guesses.append(hashlib.sha256(b"anna").hexdigest()[:12])
        assert samples.ids[0] not in guesses
    assert ids[0] != ids[1]
