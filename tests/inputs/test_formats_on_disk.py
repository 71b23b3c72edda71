"""Data as they lie on disk: read, or refused with advice that is followed here to its end."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_cases import refusal_of
from PIL import Image
from scan_cases import python
from torch.utils.data import TensorDataset

from riskaudit.errors import SamplesError
from riskaudit.inputs import load_samples

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 4, 5), dtype=np.uint8)
LABELS = np.arange(6)


def check(samples, pixels=PIXELS, labels=LABELS) -> None:
    assert np.allclose(samples.inputs.numpy().reshape(len(pixels), -1), pixels.reshape(len(pixels), -1) / 255)
    assert samples.targets.flatten().tolist() == list(labels)


# Arrays under other names


def test_splits_as_medmnist_has_them(tmp_path, refused) -> None:
    arrays = {"train_images": PIXELS, "train_labels": LABELS[:, None], "val_images": PIXELS[:2]}
    arrays |= {"val_labels": LABELS[:2, None], "test_images": PIXELS[3:], "test_labels": LABELS[3:, None]}
    np.savez(tmp_path / "med.npz", **arrays)
    message = refused(SamplesError, load_samples, tmp_path / "med.npz")
    assert "the splits train, val, test; choose one with `split`" in message
    check(load_samples(tmp_path / "med.npz", split="train"))
    check(load_samples(tmp_path / "med.npz", split="test", limit=2), PIXELS[3:5], LABELS[3:5])
    assert "choose another `split`" in refused(SamplesError, load_samples, tmp_path / "med.npz", split="dev")


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_splits_as_keras_has_them(tmp_path, refused, suffix) -> None:
    from input_cases import write_arrays

    arrays = {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS[:3], "y_test": LABELS[:3]}
    path = write_arrays(tmp_path / f"keras{suffix}", arrays)
    assert "`split`" in refused(SamplesError, load_samples, path)
    check(load_samples(path, split="test"), PIXELS[:3], LABELS[:3])
    only = write_arrays(tmp_path / f"only{suffix}", {"x_test": PIXELS, "y_test": LABELS})
    check(load_samples(only))
    plain = write_arrays(tmp_path / f"plain{suffix}", {"data": PIXELS, "target": LABELS})
    check(load_samples(plain))
    assert "no splits" in refused(SamplesError, load_samples, plain, split="test")


def test_split_of_folders(tmp_path, refused) -> None:
    for split in ("train", "test"):
        (tmp_path / "d" / split / "3").mkdir(parents=True)
        Image.fromarray(PIXELS[0]).save(tmp_path / "d" / split / "3" / "x.png")
    assert "`split`" in refused(SamplesError, load_samples, tmp_path / "d")
    check(load_samples(tmp_path / "d", split="test", channels=1), PIXELS[:1], [3])
    for split in ("dev", "../d", "/", ".."):
        assert "choose another `split`" in refused(SamplesError, load_samples, tmp_path / "d", split=split)


def test_words_as_labels(tmp_path, refused) -> None:
    words = np.array(["cat", "dog"] * 3)
    np.savez(tmp_path / "w.npz", images=PIXELS, labels=words)
    samples = load_samples(tmp_path / "w.npz")
    assert (samples.targets.tolist(), samples.class_names) == ([0, 1] * 3, ("cat", "dog"))
    np.savez(tmp_path / "o.npz", images=PIXELS, labels=words.astype(object))
    assert "array.astype(str)" in refused(SamplesError, load_samples, tmp_path / "o.npz")


def test_list_of_pairs(tmp_path) -> None:
    pairs = [(torch.from_numpy(image), int(label)) for image, label in zip(PIXELS, LABELS, strict=True)]
    for content in (pairs, [(image, torch.tensor(label)) for image, label in pairs], pairs[:2], tuple(pairs)):
        torch.save(content, tmp_path / "pairs.pt")
        check(load_samples(tmp_path / "pairs.pt"), PIXELS[: len(content)], LABELS[: len(content)])
    check(load_samples(tmp_path / "pairs.pt", limit=3), PIXELS[:3], LABELS[:3])
    torch.save((torch.from_numpy(PIXELS), torch.from_numpy(LABELS)), tmp_path / "whole.pt")
    check(load_samples(tmp_path / "whole.pt"))


# IDX


def idx(array: np.ndarray, code: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-images.idx3-ubyte"])
def test_idx(tmp_path, refused, name, zipped) -> None:
    pack, suffix = (gzip.compress, ".gz") if zipped else (bytes, "")
    images, labels = tmp_path / f"{name}{suffix}", name.replace("images", "labels").replace("idx3", "idx1") + suffix
    images.write_bytes(pack(idx(PIXELS)))
    message = refused(SamplesError, load_samples, images)
    assert labels.removesuffix(".gz") in message
    check(load_samples(images, labelled=False), labels=[0.0] * 6)
    (tmp_path / labels).write_bytes(pack(idx(LABELS.astype(np.uint8))))
    check(load_samples(images))
    check(load_samples(images, limit=2), PIXELS[:2], LABELS[:2])
    assert load_samples(images, classes=["1", "2", "3", "4", "5", "0"]).targets.tolist() == [5, 0, 1, 2, 3, 4]
    assert "hand in the file of images" in refused(SamplesError, load_samples, tmp_path / labels)
    before = load_samples(images).sha256
    (tmp_path / labels).write_bytes(pack(idx(LABELS[::-1].astype(np.uint8))))
    assert load_samples(images).sha256 != before
    (tmp_path / labels).write_bytes(pack(idx(LABELS[:5].astype(np.uint8))))
    assert "5 labels" in refused(SamplesError, load_samples, images)


def test_idx_of_other_types(tmp_path) -> None:
    values = RNG.normal(size=(6, 4, 5))
    (tmp_path / "labels-idx1").write_bytes(idx(LABELS.astype(">i4"), 0x0C))
    (tmp_path / "images-idx3").write_bytes(idx(values.astype(">f8"), 0x0E))
    samples = load_samples(tmp_path / "images-idx3")
    assert np.array_equal(samples.inputs.numpy()[:, 0], values)
    assert samples.targets.tolist() == LABELS.tolist()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 135), value=st.integers(0, 255), cut=st.integers(0, 136), zipped=st.booleans())
def test_damaged_idx(tmp_path, place, value, cut, zipped) -> None:
    content = bytearray(idx(PIXELS))
    content[place] = value
    damaged = bytes(content[:cut]) if cut < len(content) - 1 else bytes(content)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(damaged)[: -1 - cut % 3] if zipped else damaged)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS.astype(np.uint8)))
    samples, _ = refusal_of(load_samples, path)
    assert samples is None or len(samples) == 6


# Formats that aren't read


def follow(message: str, folder: Path, **names: str) -> None:
    """Run the Python of an advice, with the file's names put in."""
    code = re.search(r"in Python: (import .*)$", message)
    assert code is not None, message
    text = code[1].partition("), images of CIFAR")[0]
    text += ")" if text.count("(") > text.count(")") else ""
    for name, place in names.items():
        text = text.replace(name, place)
    done = python(text, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_pickle(tmp_path, refused) -> None:
    content = {b"data": PIXELS.reshape(6, -1), b"labels": LABELS.tolist()}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content))
    message = refused(SamplesError, load_samples, tmp_path / "data_batch_1")
    assert "refused unread" in message
    follow(message, tmp_path, FILE="data_batch_1")
    check(load_samples(tmp_path / "data.npz"))


def test_leaf(tmp_path, refused) -> None:
    users = {"f0": {"x": (PIXELS.reshape(6, -1) / 255).tolist(), "y": LABELS.tolist()}}
    (tmp_path / "leaf.json").write_text(json.dumps({"users": ["f0"], "user_data": users}))
    follow(refused(SamplesError, load_samples, tmp_path / "leaf.json"), tmp_path, FILE="leaf.json", USER="f0")
    check(load_samples(tmp_path / "data.npz"))


def test_npy(tmp_path, refused) -> None:
    np.save(tmp_path / "images.npy", PIXELS)
    np.save(tmp_path / "l.npy", LABELS)
    message = refused(SamplesError, load_samples, tmp_path / "images.npy")
    follow(message, tmp_path, FILE="images.npy", LABELS="l.npy")
    check(load_samples(tmp_path / "data.npz"))
    check(load_samples(tmp_path / "images.npy", labelled=False, limit=4), PIXELS[:4], [0.0] * 4)


def test_hdf5(tmp_path, refused) -> None:
    (tmp_path / "d.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    assert "HDF5" in refused(SamplesError, load_samples, tmp_path / "d.h5")


def test_tensor_dataset(tmp_path, refused) -> None:
    dataset = TensorDataset(torch.from_numpy(PIXELS), torch.from_numpy(LABELS))
    torch.save(dataset, tmp_path / "d.pt")
    message = refused(SamplesError, load_samples, tmp_path / "d.pt")
    assert "dataset.tensors" in message
    code = re.search(r"torch\.save\(\{.*?\}, 'data\.pt'\)", message)[0].replace(
        "'data.pt'", repr(str(tmp_path / "e.pt"))
    )
    x, y = dataset.tensors
    exec(code, {"torch": torch, "x": x, "y": y})
    check(load_samples(tmp_path / "e.pt"))


# Ranges of values


def stored(path: Path, pixels: np.ndarray) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            rows = [[int(label), *row.ravel().tolist()] for label, row in zip(LABELS, pixels, strict=True)]
            csv.writer(stream).writerows([["label", *(f"pixel{i}" for i in range(20))], *rows])
    elif path.suffix == ".pt":
        torch.save({"x": torch.from_numpy(pixels), "y": torch.from_numpy(LABELS)}, path)
    else:
        np.savez(path, images=pixels, labels=LABELS)
    return path


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".npz", "int64"),
        (".npz", "float32"),
        (".npz", "int16"),
        (".pt", "float64"),
        (".pt", "int32"),
        (".csv", "int64"),
    ],
)
def test_pixels_that_aren_t_bytes_are_said(tmp_path, suffix, dtype) -> None:
    path = stored(tmp_path / f"d{suffix}", PIXELS.astype(dtype))
    samples = load_samples(path)
    kind = "float64" if suffix == ".csv" else dtype
    top = PIXELS.max()
    assert samples.notes[0].startswith(f"values from {PIXELS.min()} to {top} as {kind} are audited as they are")
    assert "`scale=255`" in samples.notes[0]
    assert float(samples.inputs.max()) == top
    scaled = load_samples(path, scale=255)
    check(scaled)
    assert scaled.notes == ()


def test_ranges_that_need_no_word(tmp_path) -> None:
    for number, values in enumerate([PIXELS, PIXELS / 255, PIXELS / 127.5 - 1, RNG.normal(size=(6, 4, 5))]):
        assert load_samples(stored(tmp_path / f"{number}.npz", values)).notes == ()
    table = {"x": RNG.normal(size=(6, 20)) * 99, "y": LABELS}
    np.savez(tmp_path / "t.npz", **table)
    assert load_samples(tmp_path / "t.npz").notes == ()


def test_short_and_one_bit_pixels(tmp_path) -> None:
    short = load_samples(stored(tmp_path / "s.npz", PIXELS.astype(np.uint16) * 257))
    assert "`scale=65535`" in short.notes[0]
    bits = stored(tmp_path / "b.npz", PIXELS % 2)
    assert "`scale=1` keeps them" in load_samples(bits).notes[0]
    assert load_samples(bits, scale=1).inputs.max() == 1


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_scales_that_are_refused(tmp_path, refused, scale) -> None:
    assert "`scale`" in refused(SamplesError, load_samples, stored(tmp_path / "d.npz", PIXELS), scale=scale)


# Limits stop reading


def test_long_words_are_no_way_around_a_limit(tmp_path, refused, monkeypatch) -> None:
    from riskaudit.inputs.readers import npz

    monkeypatch.setattr(npz, "_MAX_WORD_BYTES", 1000)
    np.savez_compressed(tmp_path / "w.npz", images=PIXELS, labels=np.array(["cat", "dog" + " " * 300] * 3))
    assert "`classes`" in refused(SamplesError, load_samples, tmp_path / "w.npz", limit=2)
    assert load_samples(tmp_path / "w.npz", limit=2, classes=["dog", "cat"]).targets.tolist() == [1, 0]


def test_gzip_bomb(tmp_path, refused, monkeypatch) -> None:
    monkeypatch.setattr("riskaudit.inputs.readers.idx.SAFE_UNPACKED_BYTES", 1000)
    (tmp_path / "images-idx3.gz").write_bytes(gzip.compress(idx(np.zeros((100, 100, 100), np.uint8))))
    message = refused(SamplesError, load_samples, tmp_path / "images-idx3.gz", labelled=False)
    assert "claims" in message


def test_a_limit_reads_no_further(tmp_path) -> None:
    """What follows the rows that are asked for is broken, and of no concern."""
    (tmp_path / "t.csv").write_text("a,b,y\n1,2,0\n3,4,1\n5,six,zebra\n7\n")
    samples = load_samples(tmp_path / "t.csv", limit=2)
    assert samples.targets.tolist() == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("label", ["int8", "words", "float"])
def test_memory_of_a_large_parquet_under_a_limit(tmp_path, label) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = 3_000_000
    values = {
        "int8": np.zeros(rows, np.int8),
        "float": np.zeros(rows),
        "words": np.array(["a", "b"])[np.arange(rows) % 2],
    }
    columns = {"f0": pa.array(np.arange(rows, dtype=np.float32) % 2), "label": pa.array(values[label])}
    parquet.write_table(pa.table(columns), tmp_path / "b.parquet")
    code = """
import resource, sys
import pyarrow.parquet, torch
from riskaudit.inputs import load_samples
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(load_samples(sys.argv[1], limit=3)) == 3
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = python(code, str(tmp_path / "b.parquet"))
    assert done.returncode == 0, done.stderr
    # All labels as Python objects would take well over 100 MB.
    assert float(done.stdout) < 90
