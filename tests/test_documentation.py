"""What the pages under docs/ point to is there, and their commands are those of the command line."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import attestation_cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import typer
from scan_cases import CHECKPOINT, DATA
from torch import nn

import riskaudit
from riskaudit.cli.app import app, run
from riskaudit.guard import Guard, Policy, SecureNoise
from riskaudit.inputs import load_checkpoint, load_loss, load_samples
from riskaudit.release import Noise

# Every page and every command, whatever their number.
pytestmark = pytest.mark.sampled(1000)

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page) -> None:
    text = prose(page)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


def test_theory_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(?:tests/[a-z/]*)?(test_\w+\.py)", text))
    assert len(names) > 15
    assert names <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    places = set(re.findall(r"`((?:tests|riskaudit|linalg|proxies)/[\w/.]*?)(?:::\w+)?`", text))
    assert [place for place in places if not any((base / place).exists() for base in (ROOT, ROOT / "riskaudit"))] == []
    sections = set(re.findall(r"^## (\d+)\.", text, re.MULTILINE))
    for path in (ROOT / "riskaudit").rglob("*.py"):
        assert set(re.findall(r"docs/theory\.md,\s+section (\d+)", path.read_text(encoding="utf-8"))) <= sections


@pytest.mark.parametrize("page", ["architecture.md", "extending.md"])
def test_pages_for_developers_name_modules_that_exist(page) -> None:
    text = prose(ROOT / "docs" / page)
    places = set(re.findall(r"`((?:riskaudit|tests)/[\w/.]*)`", text))
    assert places
    assert [place for place in places if not (ROOT / place).exists()] == []
    packages = {path.name for path in (ROOT / "riskaudit").iterdir() if path.is_dir()}
    modules = {name for name in re.findall(r"`([a-z]+\.[a-z_.]+)`", text) if name.partition(".")[0] in packages}
    modules -= {"audit.json", "audit.sarif"}
    paths = [ROOT / "riskaudit" / name.replace(".", "/") for name in modules]
    assert [str(path) for path in paths if not (path.is_dir() or path.with_suffix(".py").exists())] == []


def commands_of(page: Path) -> list[list[str]]:
    """The words of every `riskaudit` command in a page's blocks of shell."""
    blocks = re.findall(
        r"^ *```(?:sh|console)\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    blocks = [re.sub(r"\$\w+", "1", block) for block in blocks]
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("riskaudit ")]


COMMANDS = {page: commands_of(page) for page in PAGES}


@pytest.mark.parametrize("page", [page for page in PAGES if COMMANDS[page]], ids=lambda page: page.stem)
def test_commands_of_pages_are_those_of_the_command_line(page, tmp_path, monkeypatch) -> None:
    """Names of commands and options, and values where there is a choice; no file is looked at."""
    monkeypatch.chdir(tmp_path)
    root = typer.main.get_command(app)
    for words in COMMANDS[page]:
        command, rest = root, words[1:]
        path = "riskaudit"
        while hasattr(command, "commands"):
            assert rest[0] in command.commands, words
            path, command, rest = f"{path} {rest[0]}", command.get_command(None, rest[0]), rest[1:]
        command.make_context(path, rest, resilient_parsing=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is(page) -> None:
    """A command in a block without a language would be held against nothing."""
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(fences[::2])


# What the demo makes; commands on it run as they are printed.
ON_THE_DEMO = [
    words for page in PAGES for words in COMMANDS[page] if words[1:3] == ["scan", "digits-lenet.safetensors"]
]


@pytest.mark.slow
@pytest.mark.parametrize("words", ON_THE_DEMO, ids=lambda words: words[words.index("--release") + 1])
def test_commands_on_the_demo_run(words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (CHECKPOINT, DATA):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    expected = 1 if "--max-revealed" in words else 0
    assert run([*words[1:], "--format", "json", "--out", "out"]) == expected
    assert (tmp_path / "out" / "audit.json").is_file()


def test_the_site_has_every_page() -> None:
    """Sphinx says nothing of a page that only a search finds."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {line for block in re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL) for line in block.split()}
    pages = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages - listed == {"index"}


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_audit_in_python_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lenet.pt").write_bytes(CHECKPOINT.read_bytes())
    (tmp_path / "mnist.npz").write_bytes(DATA.read_bytes())
    (code,) = snippets("docs/howto/my-model.md")
    scope: dict[str, Any] = {}
    exec(code.replace("limit=32", "limit=2"), scope)
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert scope["outcome"].decision == "block"
    assert scope["html"].lower().startswith(b"<!doctype html>")
    assert (tmp_path / "audit.json").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/guard.md"])
def test_the_guard_of_the_first_page_runs(page, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3))
    inputs, targets = torch.rand(3, 1, 4, 4), torch.arange(3)
    gradient = torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(model.parameters()))
    noise = SecureNoise("gaussian", 0.01)
    sent: list[list[torch.Tensor]] = []
    scope = {"model": model, "loss_fn": F.cross_entropy, "inputs": inputs, "targets": targets, "send": sent.append}
    scope["update"] = [noise.added(part) for part in gradient]
    code = snippets(page)[0]
    # How long a review takes here is another matter.
    exec(code.replace("budget_seconds=2.0", "budget_seconds=600.0"), scope)
    assert scope["decision"].action == "sanitise", scope["decision"].reasons
    assert [len(update) for update in sent] == [4]
    assert (tmp_path / "guard.jsonl").read_text().count("\n") == 1


@pytest.fixture
def named_inputs(tmp_path, monkeypatch) -> None:
    """The files that pages name, two samples of them, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lenet.pt").write_bytes(CHECKPOINT.read_bytes())
    with np.load(DATA) as digits:
        np.savez(tmp_path / "mnist.npz", **{name: digits[name][:2] for name in ("images", "labels")})


@pytest.mark.usefixtures("named_inputs")
def test_the_run_in_python_runs() -> None:
    (code,) = snippets("docs/runs.md")
    scope: dict[str, Any] = {"riskaudit": riskaudit}
    exec(code.replace("workers=4", "workers=1"), scope)
    assert scope["run"].status().complete
    assert len(scope["result"].samples) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("named_inputs")
def test_the_commands_of_a_run_run(tmp_path) -> None:
    words = [each for each in COMMANDS[ROOT / "docs" / "runs.md"] if "runs/hospital" in each]
    assert [each[2] for each in words] == ["create", "work", "status", "merge"]
    assert [run(["1" if each == "4" else each for each in command[1:]]) for command in words] == [0, 0, 0, 0]
    assert (tmp_path / "reports" / "hospital" / "audit.json").is_file()


@pytest.mark.slow
def test_the_audit_of_the_flower_app_runs(tmp_path, monkeypatch) -> None:
    """On the digits that the app has, in the place of CIFAR-10."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples" / "flower" / "guarded" / "task.py", tmp_path)
    shutil.copy(DATA, tmp_path / "cifar10.npz")
    page = ROOT / "docs" / "tutorials" / "flower.md"
    (code,) = re.findall(r'^python -c "(.*)"$', page.read_text(encoding="utf-8"), re.MULTILINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    exec(code, {})
    (words,) = COMMANDS[page]
    assert run([*words[1:], "--format", "json", "--out", "out"]) in (0, 1)
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["release"]["coupling"] == "joint"


def test_the_inspection_in_python_runs(tmp_path, monkeypatch, capsys) -> None:
    checkpoint, samples = load_checkpoint(CHECKPOINT), load_samples(DATA, channels=1, limit=16)
    inspected, guarded = snippets("docs/inspect.md")
    exec(inspected, {"riskaudit": riskaudit, "checkpoint": checkpoint, "samples": samples, "last_round": checkpoint})
    assert capsys.readouterr().out.endswith("[]\n")
    policy = Policy(max_revealed=0.2, inspect_received=True)
    guard = Guard(checkpoint.model, F.cross_entropy, policy, prior_std=0.3, release="gaussian:0.01")
    said: list[str] = []
    code = guarded.replace("...  # don't train", "said.append(guard)")
    exec(code, {"guard": guard, "inputs": samples.inputs, "said": said})
    assert not said


def test_the_noise_of_the_guard_page_is_added() -> None:
    (code,) = [code for code in snippets("docs/guard.md") if "SecureNoise" in code]
    scope: dict[str, Any] = {"gradients": [torch.zeros(4000), torch.zeros(20, 50)]}
    exec(code, scope)
    assert [part.shape for part in scope["update"]] == [(4000,), (20, 50)]
    assert torch.cat([part.flatten() for part in scope["update"]]).std() == pytest.approx(0.01, rel=0.1)


def test_the_attestation_in_python_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    clean = attestation_cases.clean_update()
    torch.save(attestation_cases.network().state_dict(), "model.pt")
    torch.save(attestation_cases.noisy(clean, Noise("gaussian", 0.01)), "update.pt")
    (code,) = snippets("docs/attest.md")
    exec(code, {"riskaudit": riskaudit, "update_before_noise": clean})
    assert capsys.readouterr().out.startswith("as_declared ")


def test_the_search_of_transformations_in_python_runs() -> None:
    model, images, targets = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), torch.rand(3, 3, 4, 4), torch.arange(3)
    (code,) = snippets("docs/releases.md")
    scope: dict[str, Any] = {"model": model, "loss": load_loss("cross-entropy"), "images": images, "targets": targets}
    scope["fresh_model"] = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    exec(code.replace("draw_policies(100)", "draw_policies(2)"), scope)
    privacy = [score.privacy for score in scope["scores"]]
    assert len(privacy) == 2
    assert privacy == sorted(privacy)


def test_every_key_of_an_audit_is_described(monkeypatch) -> None:
    """In the docstring of its record, which is where the reference takes it from, and nothing but keys is."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import generate

    keys = {(record, key.name): key.words for record in generate.records() for key in generate.fields(record)}
    wordless = [f"{record.__name__}.{name}" for (record, name), words in keys.items() if not words.endswith(".")]
    assert wordless == []
    for record in generate.records():
        assert set(generate.own_attributes(record)) <= set(vars(record)["__annotations__"]), record.__name__
