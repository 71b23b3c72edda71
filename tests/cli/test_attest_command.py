"""``riskaudit attest``: exit codes, files, and one sentence for whatever can't be attested."""

from __future__ import annotations

import json

import pytest
import torch
from attestation_cases import DECLARED, STD, clean_update, network, noisy
from safetensors.torch import save_file

from riskaudit.results.attestation import Attestation

OUT = ("--out", "out")


@pytest.fixture
def files(tmp_path):
    """A working folder with an upload, one without noise on its biases, the clean one, and a model."""
    clean = clean_update()
    folder = tmp_path / "work"
    save_file(noisy(clean), folder / "update.safetensors")
    save_file(clean, folder / "clean.safetensors")
    torch.save({**noisy(clean), "1.bias": clean["1.bias"]}, folder / "bad.pt")
    torch.save(network().state_dict(), folder / "model.pt")
    return folder


def test_as_declared_is_0_with_both_files(command, files) -> None:
    outcome = command("attest", "update.safetensors", "--declared", DECLARED, "--clean", "clean.safetensors",
                      "--format", "json", "--format", "sarif", *OUT)  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    result = Attestation.load(files / "out" / "attestation.json")
    assert result.outcome == "as_declared"
    assert result.verdict in outcome.out
    assert result.command.startswith("riskaudit attest update.safetensors --declared")
    assert {"attestation.json", "attestation.sarif", "manifest.json"} == {
        path.name for path in outcome.folder.iterdir()
    }
    assert json.loads((files / "out" / "attestation.sarif").read_text())["runs"][0]["results"] == []


def test_not_as_declared_is_1(command, files) -> None:
    outcome = command("attest", "bad.pt", "--declared", DECLARED, *OUT)
    assert outcome.code == 1
    assert "1.bias" in outcome.out
    assert Attestation.load(files / "out" / "attestation.json").outcome == "not_as_declared"


def test_an_error_in_the_declaration_is_1(command, files) -> None:
    options = ("--declared", DECLARED, "--sensitivity", "0.0001", "--batch-size", "8")
    outcome = command("attest", "update.safetensors", *options, *OUT)
    assert outcome.code == 1
    assert "sensitivity-below-clip" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("update.safetensors", "--declared", f"gaussian:{STD}"), None),
        (("missing.pt", "--declared", DECLARED), "missing.pt"),
        (("manifest", "--declared", DECLARED), "can't find manifest"),
        (("update.safetensors", "--declared", "clip:none"), "clip"),
        (("update.safetensors", "--declared", DECLARED, "--clean", "model.pt", "--false-alarm", "2"), "--false-alarm"),
        (("update.safetensors", "--declared", DECLARED, "--loss", "mse"), "--loss"),
        (("update.safetensors", "--declared", DECLARED, "--batch-size", "0"), "--batch-size"),
    ],
)
def test_what_can_not_be_told_is_2(command, files, arguments, words) -> None:
    outcome = command("attest", *arguments, *OUT)
    assert outcome.code == 2
    if words is None:
        assert outcome.out.startswith("could not tell")
    else:
        assert outcome.err.count("\n") == 1
        assert words in outcome.err
        assert not (files / "out").exists()


def test_what_would_tell_is_on_the_console_in_json_and_in_sarif(command, files) -> None:
    outcome = command("attest", "update.safetensors", "--declared", f"gaussian:{STD}",
                      "--format", "json", "--format", "sarif", *OUT)  # fmt: skip
    verdict, second, third, *_ = outcome.out.splitlines()
    assert verdict.endswith("noise; give --clean, the update as it was right before its noise was added")
    assert second.startswith("or give --received and --loss cross-entropy, where")
    assert third.startswith("or give the clip norm in --declared (clip:C)")
    assert len(Attestation.load(files / "out" / "attestation.json").would_tell) == 3
    results = json.loads((files / "out" / "attestation.sarif").read_text())["runs"][0]["results"]
    message = next(row["message"]["text"] for row in results if row["ruleId"] == "attestation/noise-size")
    assert "; give --clean, the update" in message


def test_quiet_prints_nothing(command, files) -> None:
    assert command("attest", "update.safetensors", "--declared", DECLARED, "--quiet", *OUT).out == ""


def test_guard_check_says_what_in_its_settings_is_hardly_meant(command, tmp_path) -> None:
    config = tmp_path / "work" / "guard.toml"
    config.write_text('[policy]\nmax_revealed = 0.2\n\n[guard]\nrelease = "clip:1,gaussian:1"\nbatch_size = 64\n')
    outcome = command("guard-check", config)
    assert outcome.code == 0
    assert "warning: noise-per-sum" in outcome.out
    config.write_text('[policy]\nmax_revealed = 0.2\n\n[guard]\nrelease = "gaussian:1,clip:1"\n')
    outcome = command("guard-check", config)
    assert outcome.code == 2
    assert "clip-after-noise" in outcome.err
