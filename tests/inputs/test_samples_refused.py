from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_cases import IMAGES, LABELS, Attack, check_sentence, table, write_arrays

from riskaudit.errors import RiskauditError, SamplesError
from riskaudit.inputs import load_samples


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"pixels": IMAGES, "y": LABELS}, "expected inputs under images, x, inputs in"),
        ({"x": IMAGES, "answers": LABELS}, "expected targets under labels, y, targets in"),
        ({"x": IMAGES, "y": LABELS[:5]}, "6 "),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "no samples"),
        ({"x": IMAGES[:, :, :0], "y": LABELS}, "no samples"),
        ({"x": np.array([[1.0], [np.nan], [np.inf]]), "y": LABELS[:3]}, "sample 1 in"),
        ({"x": np.ones((2, 1)), "y": np.array([0.0, np.nan])}, "sample 1 in"),
        ({"x": np.array(1.0), "y": np.array(1)}, "single numbers"),
        ({"x": np.ones((2, 1), dtype=np.complex64), "y": LABELS[:2]}, "inputs in"),
    ],
)
def test_wrong_arrays(tmp_path: Path, refused, suffix: str, content, words: str) -> None:
    path = write_arrays(tmp_path / f"d{suffix}", content)
    message = refused(SamplesError, load_samples, path)
    assert words in message
    assert path.name in message


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one(tmp_path: Path, refused, limit: int) -> None:
    path = write_arrays(tmp_path / "d.npz", {"x": IMAGES, "y": LABELS})
    assert "expected `limit` of at least 1" in refused(SamplesError, load_samples, path, limit=limit)


@pytest.mark.parametrize("name", ["no.npz", "empty.npz", "empty.csv", "empty.parquet", "a.txt", "emptydir", "noimages"])
def test_missing_empty_unknown(tmp_path: Path, refused, name: str) -> None:
    for suffix in (".npz", ".csv", ".parquet"):
        (tmp_path / f"empty{suffix}").touch()
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "emptydir").mkdir()
    (tmp_path / "noimages" / "cat").mkdir(parents=True)
    assert name in refused(SamplesError, load_samples, tmp_path / name)


@pytest.mark.parametrize("kind", ["object array", "pickle in pt", "plain pickle", "structured"])
def test_pickles_are_not_run(tmp_path: Path, refused, kind: str) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / ("d.npz" if kind in ("object array", "structured") else "d.pt")
    if kind == "object array":
        np.savez(path, x=np.array([Attack(marker)], dtype=object), y=[0])
    elif kind == "structured":
        np.savez(path, x=np.zeros(2, dtype=[("a", "f4")]), y=[0, 1])
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Attack(marker)))
    else:
        torch.save({"x": Attack(marker), "y": torch.ones(1)}, path)
    assert "pickle" in refused(SamplesError, load_samples, path)
    assert not marker.exists()


def npy_header(shape: str, descr: str = "<f8") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


@pytest.mark.parametrize(
    "shape", ["(1000000000000,)", "(100000, 100000, 100)", "(-5,)", "(2, 'a')", "__import__('os')", "9"]
)
def test_npy_header_that_claims_too_much(tmp_path: Path, refused, shape: str) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", npy_header(shape) + bytes(64))
        archive.writestr("y.npy", npy_header("(1,)") + bytes(8))
    assert "x in d.npz" in refused(SamplesError, load_samples, tmp_path / "d.npz")


def test_npz_bomb(tmp_path: Path, refused, monkeypatch) -> None:
    from riskaudit.inputs.readers import archives

    monkeypatch.setattr(archives, "SAFE_UNPACKED_BYTES", 10**6)
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((1000, 2000)), y=np.zeros(1000))
    assert "claims" in refused(SamplesError, load_samples, tmp_path / "d.npz")


def test_too_many_values(tmp_path: Path, refused, monkeypatch) -> None:
    from riskaudit.inputs import arrays

    path = write_arrays(tmp_path / "d.npz", {"x": IMAGES, "y": LABELS})
    monkeypatch.setattr(arrays, "MAX_INPUT_BYTES", 8 * 100)
    assert "`limit`" in refused(SamplesError, load_samples, path)
    assert len(load_samples(path, limit=5)) == 5


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_truncated_anywhere(tmp_path: Path, suffix: str) -> None:
    path = write_arrays(tmp_path / f"d{suffix}", {"x": IMAGES, "y": LABELS})
    whole = path.read_bytes()
    for cut in range(1, len(whole) - 1, max(1, len(whole) // 60)):
        path.write_bytes(whole[:cut])
        with pytest.raises(SamplesError, match=path.name):
            load_samples(path)


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors", ".csv", ".parquet"])
def test_flipped_bytes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d{suffix}"
    if suffix in (".csv", ".parquet"):
        table(path)
    else:
        write_arrays(path, {"x": IMAGES, "y": LABELS})
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 80)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xA5]) + whole[place + 1 :])
        try:
            load_samples(path)
        except RiskauditError as error:
            check_sentence(error)


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors", ".csv", ".parquet", ".png", ""])
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(min_size=1, max_size=80), start=st.sampled_from([b"", b"PK\x03\x04", b"PAR1", b"a,b\n"]))
def test_random_bytes(tmp_path: Path, suffix: str, content: bytes, start: bytes) -> None:
    path = tmp_path / f"r{suffix}"
    path.write_bytes(start + content)
    try:
        load_samples(path)
    except RiskauditError as error:
        check_sentence(error)
    else:
        assert suffix == ".csv"
