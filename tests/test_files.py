"""Files and folders are written whole or not at all, wherever a failure or a kill falls."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from scan_cases import python

from riskaudit import files
from riskaudit.errors import OutputError
from riskaudit.files import MANIFEST, check_output_folder, write_file, write_folder

NAMES = ("audit.html", "audit.json")
OLD = dict.fromkeys(NAMES, b"old")
NEW = dict.fromkeys(NAMES, b"new")


def content(folder: Path) -> dict[str, bytes] | None:
    """The files of a folder, after a look at their manifest, which names them all with their hashes."""
    if not folder.exists():
        return None
    held = {path.name: path.read_bytes() for path in folder.iterdir()}
    if MANIFEST in held:
        listed = json.loads(held.pop(MANIFEST))["files"]
        assert listed == {name: [hashlib.sha256(text).hexdigest()] for name, text in sorted(held.items())}
    return held


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def no_exchange(_first: Path, _second: Path) -> bool:
    return False


@pytest.fixture(params=["exchange", "two-renames"])
def way(request, monkeypatch) -> str:
    """Both ways to replace a folder; the first needs Linux."""
    if request.param == "two-renames":
        monkeypatch.setattr(files, "_exchange", no_exchange)
    elif sys.platform != "linux":
        pytest.skip("folders can be exchanged in one step on Linux only")
    return request.param


def test_write_file_replaces_and_leaves_nothing_else(tmp_path) -> None:
    write_file(tmp_path / "a.json", b"old")
    write_file(tmp_path / "a.json", b"new")
    assert content(tmp_path) == {"a.json": b"new"}
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_write_folder(tmp_path) -> None:
    write_folder(tmp_path / "deep" / "out", NEW)
    assert content(tmp_path / "deep" / "out") == NEW
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o755


def test_write_folder_into_an_empty_one(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", NEW)
    assert content(tmp_path / "out") == NEW


def test_write_folder_replaces_as_a_whole(tmp_path, way) -> None:
    write_folder(tmp_path / "out", {**OLD, "samples.csv": b"old"})
    write_folder(tmp_path / "out", NEW)
    assert content(tmp_path / "out") == NEW
    assert names(tmp_path) == ["out"]


def fail_at(monkeypatch, name: str, call: int, error: BaseException) -> None:
    """Let the given call of Path.rename or os.fsync raise."""
    owner = Path if name == "rename" else os
    real, calls = getattr(owner, name), iter(range(1000))

    def failing(*arguments):
        if next(calls) == call:
            raise error
        return real(*arguments)

    monkeypatch.setattr(owner, name, failing)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("name", "call"), [("fsync", 0), ("fsync", 1), ("rename", 0)])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["disk-full", "interrupt"])
def test_a_failure_leaves_no_folder(tmp_path, monkeypatch, name, call, error) -> None:
    fail_at(monkeypatch, name, call, error)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        write_folder(tmp_path / "out", NEW)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("name", "call"), [("fsync", 0), ("fsync", 1), ("rename", 0), ("rename", 1)])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["disk-full", "interrupt"])
def test_a_failure_keeps_the_earlier_folder(tmp_path, monkeypatch, name, call, error) -> None:
    write_folder(tmp_path / "out", OLD)
    monkeypatch.setattr(files, "_exchange", no_exchange)
    fail_at(monkeypatch, name, call, error)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        write_folder(tmp_path / "out", NEW)
    assert content(tmp_path / "out") == OLD
    assert names(tmp_path) == ["out"]


def test_a_full_disk_is_told(tmp_path, monkeypatch) -> None:
    fail_at(monkeypatch, "fsync", 0, FULL)
    with pytest.raises(OutputError, match="No space left on device; choose another place"):
        write_file(tmp_path / "a.json", b"new")
    assert names(tmp_path) == []


# Kills itself at one call that the audit hook sees (open, rename, rmdir...), or never.
KILLED = """
import os, signal, sys
from pathlib import Path
from riskaudit.files import write_folder
stop, calls = int(sys.argv[2]), 0
def hook(event, _arguments):
    global calls
    if event.split(".")[0] in ("open", "os", "shutil", "tempfile", "ctypes"):
        calls += 1
        if calls - 1 == stop:
            os.kill(os.getpid(), signal.SIGKILL)
for stop in range(stop, 60):
    child = os.fork()
    if not child:
        folder = Path(sys.argv[1]) / str(stop) / "out"
        write_folder(folder, {"audit.html": b"old", "audit.json": b"old"})
        sys.addaudithook(hook)
        write_folder(folder, {"audit.html": b"new", "audit.json": b"new"})
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
print(stop)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="folders can be exchanged in one step on Linux only")
def test_a_kill_at_any_call_leaves_the_old_or_the_new_folder(tmp_path) -> None:
    done = python(KILLED, str(tmp_path), "0")
    assert done.returncode == 0, done.stderr
    last = int(done.stdout)
    assert last > 5
    found = [content(tmp_path / str(stop) / "out") for stop in range(last + 1)]
    assert all(state in (OLD, NEW) for state in found)
    assert found[0] == OLD
    assert found[-1] == NEW


def test_check_makes_nothing(tmp_path) -> None:
    check_output_folder(tmp_path / "a" / "b" / "out")
    assert names(tmp_path) == []


def test_check_takes_an_earlier_audit(tmp_path) -> None:
    write_folder(tmp_path / "out", OLD)
    check_output_folder(tmp_path / "out")
    assert content(tmp_path / "out") == OLD


@pytest.mark.parametrize("name", ["demo", "mnist-lenet"])
def test_the_committed_reports_can_be_made_anew(name) -> None:
    """What `make demo` and `make example` write over carries a manifest."""
    folder = Path(__file__).resolve().parents[1] / "reports" / name
    check_output_folder(folder)
    assert set(content(folder)) >= {"audit.html", "audit.pdf", "audit.json", "samples.csv", "audit.md"}


def test_check_in_the_working_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_output_folder(Path("out"))
    with pytest.raises(OutputError, match="choose another `out`"):
        check_output_folder(Path("/proc/none/out"))


def test_hash_of_a_file(tmp_path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256_of_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
