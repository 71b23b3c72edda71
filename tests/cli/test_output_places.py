"""What commands write never takes the place of anything that riskaudit didn't write, nor of what the run reads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scan_cases import CHECKPOINT, DATA, save_digits, save_images, save_mlp, words

from riskaudit.cli.prior import PRIOR_KEY
from riskaudit.errors import OutputError
from riskaudit.files import MANIFEST, add_to_folder, check_output_file, check_output_folder, write_folder
from riskaudit.priors.storage import METADATA_KEY

CSV = "a,b,label\n0.5,1,0\n0.1,0,1\n"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def refuse(command):
    """Run a command line that must be refused; nothing in the folder may change."""

    def check(root: Path, *arguments: object) -> str:
        before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        outcome = command(*map(str, arguments))
        assert (outcome.code, outcome.out) == (2, ""), outcome
        assert outcome.err.count("\n") == 1
        assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
        return outcome.err

    return check


@pytest.fixture
def table(tmp_path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples.csv").write_text(CSV, encoding="utf-8")
    return tmp_path / "run" / "samples.csv"


def test_a_users_file_of_a_results_name_stays(refuse, tmp_path, table) -> None:
    model = save_mlp(tmp_path / "m.pt", (2, 8, 2))
    assert "run" in refuse(tmp_path, *words(checkpoint=model, data=table, out=table.parent))
    assert "samples.csv" in refuse(tmp_path, *words(out=table.parent))


@pytest.mark.parametrize("change", ["edited", "added", "linked", "no manifest", "another manifest", "folder"])
def test_an_audit_that_was_changed_since_stays(scan, scanned, tmp_path, change) -> None:
    folder = shutil.copytree(scanned, tmp_path / "work" / "out")
    own = folder / "audit.json"
    if change == "edited":
        own.write_bytes(own.read_bytes() + b"\n")
    elif change == "added":
        (folder / "notes.txt").touch()
    elif change == "linked":
        own.rename(tmp_path / "moved.json")
        own.symlink_to(tmp_path / "moved.json")
    elif change == "no manifest":
        (folder / MANIFEST).unlink()
    elif change == "another manifest":
        (folder / MANIFEST).write_text('{"files": {"audit.json": []}}')
    else:
        (folder / "audit.html").mkdir()
    before = sorted(folder.rglob("*"))
    outcome = scan()
    assert outcome.code == 2
    assert "new or empty folder with --out" in outcome.err
    assert sorted(folder.rglob("*")) == before


def test_an_untouched_audit_is_replaced_through_a_link_too(command, scanned, tmp_path) -> None:
    folder = shutil.copytree(scanned, tmp_path / "work" / "out")
    (tmp_path / "link").symlink_to(folder)
    assert command(*words("--seed", "4", out=tmp_path / "link")).code == 0
    assert (tmp_path / "link").is_symlink()
    assert json.loads((folder / "audit.json").read_bytes())["settings"]["seed"] == 4


@pytest.mark.parametrize("way", ["itself", "link", "hard link", "parent", "inside"])
@pytest.mark.parametrize("what", ["--data", "--baseline", "--policy", "--config"])
def test_inputs_of_a_scan_stay(refuse, scanned, tmp_path, what, way) -> None:
    """The earlier audit's own files, which its manifest lists, are inputs of this run."""
    earlier = shutil.copytree(scanned, tmp_path / "earlier")
    data = save_digits(tmp_path / "d.npz")
    write_folder(earlier, {"audit.json": (earlier / "audit.json").read_bytes(), "d.npz": data.read_bytes(),
                           "limits.toml": b"max_revealed = 0.5\n", "options.toml": b"seed = 1\n"})  # fmt: skip
    names = {"--data": "d.npz", "--baseline": "audit.json", "--policy": "limits.toml", "--config": "options.toml"}
    source: Path = earlier / names[what]
    out = earlier
    if way == "link":
        (tmp_path / "source").symlink_to(source)
        source = tmp_path / "source"
        (tmp_path / "folder").symlink_to(earlier)
        out = tmp_path / "folder"
    elif way == "hard link":
        os.link(source, tmp_path / f"other{source.suffix}")
        source = tmp_path / f"other{source.suffix}"
    elif way == "parent":
        out = tmp_path
    elif way == "inside":
        if what != "--data":
            pytest.skip("only data come as folders")
        source = save_images(tmp_path / "images", {"0": ["x.png"], "1": ["y.png"]})
        out = source / "out"
    given = words(what, str(source), out=out) if what != "--data" else words(data=source, out=out)
    assert "choose" in refuse(tmp_path, *given)


def test_single_files_are_no_place_for_anything_else(refuse, tmp_path, command) -> None:
    data = tmp_path / "p.npz"
    shutil.copy(DATA, data)
    os.link(data, tmp_path / "q.npz")
    for out in (data, tmp_path / "q.npz"):
        assert "choose another --out" in refuse(tmp_path, "prior", "fit", data, "--out", out)
        assert "choose another --out" in refuse(
            tmp_path, "calibrate", CHECKPOINT, "--data", data, "--out", out, "--release", "gaussian:0.1"
        )
    weights = save_mlp(tmp_path / "m.pt", (2, 8, 2))
    assert "no earlier result" in refuse(tmp_path, "prior", "fit", data, "--out", weights)
    assert "device" in refuse(tmp_path, "prior", "fit", data, "--out", "/dev/null")
    out = tmp_path / "prior.safetensors"
    for _ in range(2):
        assert command("prior", "fit", str(data), "--out", str(out)).code == 0
    assert mode(out) == 0o600
    assert f'"{METADATA_KEY}"'.encode() == PRIOR_KEY


def test_trials_take_no_other_files_place(refuse, tmp_path) -> None:
    (tmp_path / "out.trials.jsonl").write_text('{"mine": 1}\n')
    given = words("--attack-steps", "1", out=tmp_path / "out")[1:]
    assert "no file of trials" in refuse(tmp_path, "verify", *given).splitlines()[-1]


@pytest.mark.slow
def test_reports_beside_an_audit(refuse, command, scan, tmp_path) -> None:
    audit = scan().folder / "audit.json"
    assert command("report", audit).code == 0
    assert command("report", audit).code == 0
    assert scan("--seed", "2").code == 0, "what report wrote is in the manifest"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "audit.html").write_text("my notes")
    assert "audit.html exists" in refuse(mine, "report", audit, "--out", mine)


def test_the_demo_keeps_a_users_file(refuse, command, tmp_path) -> None:
    (tmp_path / "demo").mkdir()
    np.savez(tmp_path / "demo" / DATA.name, images=np.zeros(3))
    assert DATA.name in refuse(tmp_path, "demo", "--out", tmp_path / "demo")


@pytest.mark.parametrize(("umask", "options", "folder", "file"), [
    (0o022, [], 0o755, 0o644), (0o027, [], 0o750, 0o640), (0o077, [], 0o700, 0o600),
    (0o022, ["--show-samples"], 0o700, 0o600), (0o022, ["--plain-ids"], 0o700, 0o600),
])  # fmt: skip
def test_modes(command, tmp_path, umask, options, folder, file) -> None:
    before = os.umask(umask)
    try:
        assert command(*words("-q", *options, limit=1, out=tmp_path / "out")).code == 0
        assert mode(tmp_path / "out") == folder
        assert {mode(path) for path in (tmp_path / "out").iterdir()} == {file}
        assert command("report", str(tmp_path / "out" / "audit.json"), "--format=md", "-q").code == 0
        assert mode(tmp_path / "out" / "audit.md") == file
    finally:
        os.umask(before)


NAMES = st.sampled_from(["audit.json", "audit.html", "samples.csv", MANIFEST, "notes.txt", "x.json"])
KIND = st.sampled_from(["own", "foreign", "link", "folder"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.dictionaries(NAMES, KIND, max_size=5), numbers=st.uuids())
def test_random_folders(tmp_path_factory, entries, numbers) -> None:
    """Whatever lies there: nothing but what the manifest vouches for goes away."""
    root = tmp_path_factory.mktemp(str(numbers))
    folder, secret = root / "out", root / "secret"
    secret.write_bytes(b"secret")
    own = {name: b"own" for name, kind in entries.items() if kind == "own" and name != MANIFEST}
    if own:
        write_folder(folder, own)
    folder.mkdir(exist_ok=True)
    foreign = {name: kind for name, kind in entries.items() if kind != "own"}
    for name, kind in foreign.items():
        path = folder / name
        path.unlink(missing_ok=True)
        if kind == "foreign":
            path.write_bytes(b"foreign")
        elif kind == "link":
            path.symlink_to(secret)
        else:
            path.mkdir()
    before = {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}
    if foreign:
        with pytest.raises(OutputError):
            check_output_folder(folder)
        with pytest.raises(OutputError):
            write_folder(folder, {"audit.json": b"new"})
    else:
        check_output_folder(folder)
        write_folder(folder, {"audit.json": b"new"})
        assert (folder / "audit.json").read_bytes() == b"new"
        assert {path.name for path in folder.iterdir()} == {"audit.json", MANIFEST}
        return
    assert {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()} == before
    try:
        add_to_folder(folder, {"audit.json": b"new"})
    except OutputError:
        assert {path.name for path in folder.iterdir()} == set(before)
    assert {path.name for path in folder.iterdir()} >= set(before)
    assert secret.read_bytes() == b"secret"
    for name in foreign:
        if name not in (MANIFEST, "audit.json") and before[name] is not None:
            assert (folder / name).read_bytes() == before[name]


def test_a_device_and_a_missing_folder(tmp_path) -> None:
    for place in (Path("/dev/null"), tmp_path, tmp_path / "no" / "file"):
        with pytest.raises(OutputError):
            check_output_file(place)
    (tmp_path / "empty").touch()
    check_output_file(tmp_path / "empty")
