"""What isn't the run that was created is refused with one sentence, and nothing of anybody's is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_cases import create, work_here
from scan_cases import CHECKPOINT, DATA, save_digits, save_images

from riskaudit.errors import OutputError, RunError, SettingsError
from riskaudit.runs import work
from riskaudit.runs.run import Run

FACTORY = """
from riskaudit.inputs.architectures.registry import ARCHITECTURES

def build():
    return ARCHITECTURES["lenet"].build(features=48)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied where it is changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    create(folder, limit=2)
    work_here(folder)
    return folder


@pytest.fixture
def own(tmp_path: Path, finished: Path) -> Path:
    """A copy of it."""
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"written_by": "riskaudit run"}', "\0"])
def test_a_folder_that_is_no_run(tmp_path, content) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=r"run\.json"):
        Run(tmp_path)


def test_a_manifest_that_was_edited(own) -> None:
    document = json.loads((own / "run.json").read_text(encoding="utf-8"))
    document["settings"]["release"] = "gaussian:10"
    (own / "run.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RunError, match=r"was changed"):
        Run(own)


def test_a_place_that_is_taken(own, tmp_path) -> None:
    with pytest.raises(RunError, match=r"holds a run already"):
        create(own)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        create(other)
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        create(other / "thesis.txt")
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    images = save_images(tmp_path / "images", {"0": ["a.png"], "1": ["b.png"]}, size=8)
    with pytest.raises(OutputError, match=r"lies in"):
        Run.create(images / "run", [CHECKPOINT], images, arch="lenet")
    assert sorted(path.name for path in images.iterdir()) == ["0", "1"]


def test_an_empty_folder_is_taken(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    create(tmp_path / "run", limit=2)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["leases", "run.json", "shards"]


def test_nothing_is_left_of_a_run_that_could_not_be_created(tmp_path) -> None:
    with pytest.raises(SettingsError, match=r"`budget`"):
        create(tmp_path / "run", budget=10.0)
    with pytest.raises(SettingsError, match=r"`shard`"):
        create(tmp_path / "run", shard=0)
    with pytest.raises(SettingsError, match=r"checkpoint"):
        Run.create(tmp_path / "run", [], DATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changed", ["model.safetensors", "digits.npz", "factory.py"])
def test_other_inputs(tmp_path, changed) -> None:
    model, data, code = (tmp_path / name for name in ("model.safetensors", "digits.npz", "factory.py"))
    model.write_bytes(CHECKPOINT.read_bytes())
    save_digits(data)
    code.write_text(FACTORY, encoding="utf-8")
    run = Run.create(tmp_path / "run", [model], data, arch=f"{code}:build", release="gaussian:0.01")
    assert run.manifest.files.keys() == {str(code)}
    if changed == "digits.npz":
        save_digits(data, count=3)
    else:
        (tmp_path / changed).write_bytes((tmp_path / changed).read_bytes() + b"\n")
    with pytest.raises(RunError, match=changed.partition(".")[0]):
        work_here(tmp_path / "run")
    with pytest.raises(RunError, match=changed.partition(".")[0]):
        run.merge(partial=True)
    assert list((tmp_path / "run" / "leases").iterdir()) == []
    (tmp_path / changed).unlink()
    with pytest.raises(Exception, match=changed.partition(".")[0]):
        work_here(tmp_path / "run")


def test_another_version(own, monkeypatch) -> None:
    monkeypatch.setattr(work, "versions", lambda: {"riskaudit": "0.0.1"})
    with pytest.raises(RunError, match=r"expected riskaudit .*, found 0\.0\.1"):
        work_here(own)


def test_another_processor_s_threads_play_no_part(own) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        work_here(own)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_shard_that_isn_t_whole(own) -> None:
    (path,) = (own / "shards").iterdir()
    content = path.read_bytes()
    first, _, second = content.partition(b"\n")
    header = json.loads(first)
    broken = {
        "cut off": content[: len(content) // 2],
        "empty": b"",
        "changed": content.replace(b'"exact"', b'"exart"', 1),
        "another run's": json.dumps({**header, "run": "0" * 64}).encode() + b"\n" + second,
        "another shard's": json.dumps({**header, "shard": 7}).encode() + b"\n" + second,
    }
    for each in broken.values():
        path.write_bytes(each)
        with pytest.raises(RunError, match=r"000000\.json .*remove the file"):
            work_here(own)
        with pytest.raises(RunError, match=r"000000\.json .*remove the file"):
            Run(own).merge()
    path.unlink()
    work_here(own)
    assert path.read_bytes().partition(b"\n")[2] == second


def test_a_half_written_shard_is_none(own) -> None:
    (path,) = (own / "shards").iterdir()
    path.rename(path.with_name(f".{path.name}.0123456789ab"))
    assert not Run(own).status().complete
    work_here(own)
    assert Run(own).status().complete


@pytest.mark.parametrize("shard", [-1, 1])
def test_no_such_shard(own, shard) -> None:
    with pytest.raises(SettingsError, match=r"`shard` between 0 and 0"):
        Run(own).execute(shard=shard)
