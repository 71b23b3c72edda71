"""The names that users import, and what using them from Python promises."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scan_cases import CHECKPOINT, DATA, demo_model, demo_samples, loaded_modules

import riskaudit
from riskaudit.errors import RiskauditError, SettingsError

NAMES = [
    "AttackSettings", "Attestation", "AuditResult", "AuditSettings", "Calibration", "Checkpoint", "InspectionResult",
    "Loss", "Policy", "Prior", "RiskauditError", "Run", "Samples", "__version__", "attest", "audit", "calibrate",
    "fit_prior", "foretell", "infer_encoding", "inspect_received", "load_checkpoint", "load_loss", "load_prior",
    "load_samples", "render", "save_encoding", "save_prior", "verify",
]  # fmt: skip


def test_names() -> None:
    assert sorted(riskaudit.__all__) == NAMES
    assert dir(riskaudit) == NAMES
    assert all(hasattr(riskaudit, name) for name in NAMES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'attack'"):
        riskaudit.attack  # noqa: B018


def test_import_loads_nothing_heavy() -> None:
    assert loaded_modules(["torch", "numpy", "scipy", "matplotlib", "pydantic"], "import riskaudit") == []


def test_results_and_policy_load_no_torch() -> None:
    assert loaded_modules(["torch"], "from riskaudit import AuditResult, Policy, RiskauditError, render") == []


def test_the_module_docstring_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lenet.pt").write_bytes(CHECKPOINT.read_bytes())
    (tmp_path / "mnist.npz").write_bytes(DATA.read_bytes())
    code = [line[4:] for line in riskaudit.__doc__.splitlines() if line.startswith("    ")]
    names = {"riskaudit": riskaudit}
    exec("\n".join(code).replace("limit=32", "limit=2"), names)
    result = riskaudit.AuditResult.load(tmp_path / "audit.json")
    assert result == names["result"]
    assert result.release.spec == "gradient,clip:1.0,gaussian:0.01"


def test_a_module_in_memory_gives_the_numbers_of_its_file() -> None:
    model = demo_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    memory = riskaudit.audit(model, demo_samples(2))
    assert (
        memory.samples == riskaudit.audit(riskaudit.load_checkpoint(CHECKPOINT, arch="lenet"), demo_samples(2)).samples
    )
    assert (memory.checkpoint.name, memory.checkpoint.sha256, memory.command) == ("model", None, None)
    assert memory.checkpoint.architecture == "LeNet"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert next(model.parameters()).dtype is torch.float32


def test_tensors_in_memory_give_the_numbers_of_their_file() -> None:
    loaded = demo_samples(3)
    samples = riskaudit.Samples.from_tensors(
        loaded.inputs, loaded.targets, ids=["a", "b", "c"], class_names=list("0123456789"), name="mine"
    )
    result = riskaudit.audit(demo_model(), samples)
    expected = riskaudit.audit(demo_model(), loaded)
    assert [row.id for row in result.samples] == ["a", "b", "c"]
    assert [row.proxies for row in result.samples] == [row.proxies for row in expected.samples]
    assert (result.data.name, result.data.sha256) == ("mine", None)


def test_bytes_in_memory_are_scaled() -> None:
    with_bytes = (demo_samples(2).inputs * 255).round().to(torch.uint8)
    samples = riskaudit.Samples.from_tensors(with_bytes, demo_samples(2).targets)
    assert torch.equal(samples.inputs, demo_samples(2).inputs)


def test_an_unknown_option_lists_the_known() -> None:
    with pytest.raises(SettingsError) as caught:
        riskaudit.audit(demo_model(), demo_samples(1), noise=0.1)
    for field in dataclasses.fields(riskaudit.AuditSettings):
        assert field.name in str(caught.value)
    assert "found 'noise'" in str(caught.value)


def test_settings_and_options_together() -> None:
    settings = riskaudit.AuditSettings(seed=3, release="gaussian:0.5")
    result = riskaudit.audit(demo_model(), demo_samples(1), settings, seed=4)
    assert (result.settings.seed, result.release.noise.std) == (4, 0.5)


def test_progress_is_told_per_batch() -> None:
    told = []
    riskaudit.audit(demo_model(), demo_samples(5), batch_size=2, progress=lambda *counts: told.append(counts))
    assert told == [(0, 5), (2, 5), (4, 5), (5, 5)]


def test_the_global_random_state_stays() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    riskaudit.audit(demo_model(), demo_samples(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_save_load_render_decide(tmp_path) -> None:
    result = riskaudit.audit(demo_model(), demo_samples(2), release="gaussian:0.01")
    result.save(tmp_path / "audit.json")
    assert [path.name for path in tmp_path.iterdir()] == ["audit.json"]
    again = riskaudit.AuditResult.load(tmp_path / "audit.json")
    assert again == result
    assert set(riskaudit.render(again, ["html", "md"])) == {"audit.html", "audit.md"}
    assert riskaudit.Policy(max_revealed=0.01).decide(again).decision == "block"


def test_pictures_only_when_asked_for() -> None:
    assert riskaudit.audit(demo_model(), demo_samples(1)).samples[0].image_png is None
    assert riskaudit.audit(demo_model(), demo_samples(1), show_samples=True).samples[0].image_png


def test_everything_raised_on_purpose_has_one_root() -> None:
    with pytest.raises(RiskauditError):
        riskaudit.load_checkpoint("missing.pt")
    with pytest.raises(RiskauditError):
        riskaudit.audit(torch.nn.ReLU(), demo_samples(1))
    with pytest.raises(RiskauditError):
        riskaudit.AuditResult.load("missing.json")
