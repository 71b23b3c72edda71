"""The initialization study: what is drawn, how it is ranked and recommended, that it resumes, and what fails."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from study_cases import NOISE, digits, network
from torch import nn

from riskaudit.audit import AuditSettings
from riskaudit.errors import SettingsError
from riskaudit.inputs.architectures import get_architecture
from riskaudit.results import Estimate
from riskaudit.statistics.groups import compare_medians
from riskaudit.studies.base import StudyRun
from riskaudit.studies.initialization import run as module
from riskaudit.studies.initialization.record import InitializationStudy, InitializationTrial
from riskaudit.studies.initialization.run import (
    CHECKPOINT,
    INITIALIZATIONS,
    initialization_study,
    initialize,
    summarise,
)
from riskaudit.studies.rows import SampleRisk

SETTINGS = AuditSettings(release=f"gaussian:{NOISE}")


class Tokens(nn.Module):
    """A parameter of its own, and one that no initialization names."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.scale = nn.Parameter(torch.zeros(1, 4, 8)), nn.Parameter(torch.full((8,), 7.0))
        self.layer = nn.Linear(8, 3)


ARCHITECTURES = {
    "lenet": lambda: get_architecture("lenet").build(channels=3, features=768, classes=10),
    "mlp": lambda: get_architecture("mlp").build(widths=(64, 32, 10)),
    "convbig": lambda: get_architecture("convbig").build(channels=3, features=5184, classes=10),
    "resnet18": lambda: get_architecture("resnet18").build(channels=3, classes=10),
    "transformer": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    "tokens": Tokens,
}
VARIANCES = {
    "uniform": lambda fan_in, fan_out: 1 / 12,
    "normal": lambda fan_in, fan_out: 1 / 12,
    "kaiming_uniform": lambda fan_in, fan_out: 2 / fan_in,
    "kaiming_normal": lambda fan_in, fan_out: 2 / fan_in,
    "xavier_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "xavier_normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "default": lambda fan_in, fan_out: 1 / (3 * fan_in),
}


@pytest.mark.parametrize("name", VARIANCES)
def test_weights_have_the_variance_that_the_paper_gives(name) -> None:
    model = nn.Sequential(nn.Linear(300, 200), nn.Conv2d(20, 40, 5))
    assert initialize(model, name, 0, 0) == []
    for layer, fan_in, fan_out in ((model[0], 300, 200), (model[1], 500, 1000)):
        weights = layer.weight.detach().flatten()
        assert weights.var().item() == pytest.approx(VARIANCES[name](fan_in, fan_out), rel=0.05)
        assert abs(weights.mean().item()) < 4 * weights.std().item() / len(weights) ** 0.5
        uniform = name.endswith("uniform") or name == "default"
        assert (weights.abs().max() < 1.75 * weights.std()) == uniform


def test_biases() -> None:
    for name, (low, high) in {"uniform": (0.2, 0.5), "kaiming_normal": (0, 0), "default": (0.01, 0.06)}.items():
        model = nn.Linear(300, 200)
        initialize(model, name, 0, 0)
        assert low <= model.bias.abs().max().item() <= high


def test_orthogonal_is_orthogonal() -> None:
    model = nn.Sequential(nn.Linear(30, 20), nn.Conv2d(2, 4, 3))
    initialize(model, "orthogonal", 0, 0)
    for layer in model:
        rows = layer.weight.detach().flatten(1)
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", INITIALIZATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_drawn_anew(architecture, name) -> None:
    model = ARCHITECTURES[architecture]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    for module_ in model.modules():
        if isinstance(module_, nn.BatchNorm2d):
            module_.running_mean.fill_(7.0)
    kept = initialize(model, name, 3, 1)
    assert kept == ({"default": ["token", "scale"]}.get(name, ["scale"]) if architecture == "tokens" else [])
    for path, parameter in model.named_parameters():
        assert path in kept or not (parameter == 7).any(), path
    for module_ in model.modules():
        if isinstance(module_, nn.BatchNorm2d | nn.LayerNorm):
            assert (module_.weight == 1).all()
            assert (module_.bias == 0).all()
        if isinstance(module_, nn.BatchNorm2d):
            assert (module_.running_mean == 0).all()


def test_draws_are_seeded_and_leave_the_callers_randomness_alone() -> None:
    def drawn(*words: object) -> torch.Tensor:
        model = nn.Linear(9, 9)
        initialize(model, *words)  # type: ignore[arg-type]
        return model.weight.detach().clone()

    assert torch.equal(drawn("uniform", 0, 0), drawn("uniform", 0, 0))
    for other in (("uniform", 0, 1), ("uniform", 1, 0), ("kaiming_uniform", 0, 0)):
        assert not torch.equal(drawn("uniform", 0, 0), drawn(*other))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    initialize(nn.Sequential(), "uniform", 0, 0)
    assert torch.equal(torch.rand(3), expected)


def risk(place: int, error: float | None, **changes: object) -> SampleRisk:
    status = "failed" if error is None else "exact"
    fields = {
        "sample_id": str(place),
        "status": status,
        "largest_eigenvalue": None if error is None else 1 / error,
        "expected_rmse": Estimate(value=None, status="singular"),
        "posterior_rmse": Estimate(value=error, status=status),
        "revealed_fraction": Estimate(value=None if error is None else 1 - error, status=status),
    }
    return SampleRisk(**(fields | changes))


def trial(name: str, errors: list[float | None], number: int | None = 0, reason: str | None = None):
    samples = [risk(place, error) for place, error in enumerate(errors)]
    return InitializationTrial(initialization=name, number=number, samples=samples, reason=reason)


def study(trials) -> InitializationStudy:
    return summarise(trials, architecture="lenet", noise_std=0.01, reference_noise=False, prior_rmse=0.5)


SPREAD = [0.9, 0.95, 1.0, 1.05, 1.1, 0.97, 1.03, 0.99]


def test_ranked_by_the_median_and_told_apart() -> None:
    found = study(
        [
            trial(CHECKPOINT, [0.5 * x for x in SPREAD], None),
            trial("uniform", [0.1 * x for x in SPREAD]),
            trial("normal", [0.3 * x for x in SPREAD]),
            trial("default", [], reason="the loss or the gradient is not finite"),
        ]
    )
    assert [(row.initialization, row.rank) for row in found.rows] == [
        (CHECKPOINT, 1), ("normal", 2), ("uniform", 3), ("default", None),
    ]  # fmt: skip
    assert found.recommended == "normal"
    assert [row.told_apart for row in found.rows] == [True, None, True, None]
    uniform, failed = found.rows[2], found.rows[3]
    assert uniform.posterior_rmse.median == pytest.approx(0.1 * np.median(SPREAD))
    assert uniform.difference == pytest.approx(0.2 * np.median(SPREAD))
    assert uniform.low <= uniform.posterior_rmse.median <= uniform.high
    assert (uniform.expected_rmse.median, uniform.expected_rmse.num_infinite) == (None, 8)
    assert failed.num_failed_seeds == 1
    assert ["not finite" in reason for reason in failed.reasons] == [True]
    assert found.recommendation.startswith("Recommended: normal")
    assert "told apart from every other" in found.recommendation


def test_overlapping_intervals_are_not_told_apart() -> None:
    rng = np.random.default_rng(0)
    noisy = {name: rng.uniform(0.1, 0.4, 12).tolist() for name in ("uniform", "normal")}
    found = study([trial(name, errors) for name, errors in noisy.items()])
    assert found.rows[1].told_apart is False
    assert found.recommendation.startswith("No recommendation")
    assert "overlap" in found.recommendation
    third = study([*(trial(name, errors) for name, errors in noisy.items()), trial("default", [0.01] * 12)])
    assert third.recommendation.startswith("Recommended")
    assert "not told apart" in third.recommendation


def test_paired_samples_tell_apart_what_intervals_alone_would_not() -> None:
    difficulty = np.linspace(0.1, 0.5, 20)
    found = compare_medians({"a": difficulty[None], "b": 0.95 * difficulty[None]})
    assert found["b"].high > found["a"].low
    assert found["b"].difference_low > 0


def test_few_samples_have_no_interval_and_nothing_is_recommended_on_them() -> None:
    found = study([trial("uniform", [0.1, 0.2]), trial("normal", [0.3, 0.4])])
    assert found.rows[0].low is None
    assert "too few samples" in found.recommendation
    assert study([trial("uniform", [], reason="no")]).recommendation.startswith("No initialization")
    assert "nothing else" in study([trial("uniform", SPREAD)]).recommendation


def test_missing_values_are_left_out() -> None:
    found = study([trial("uniform", [*SPREAD, None]), trial("normal", [0.5 * x for x in SPREAD] + [0.5])])
    assert found.rows[0].num_failed_samples == 1
    assert found.rows[0].posterior_rmse.num_values == 8
    assert found.rows[0].posterior_rmse.median == pytest.approx(np.median(SPREAD))


@pytest.fixture(scope="module")
def result():
    return initialization_study(network(), digits(5), SETTINGS, seeds=2, names=("uniform", "kaiming_normal"))


def test_the_study_stands_beside_the_audit_of_the_checkpoint(result) -> None:
    found = result.studies.get(InitializationStudy)
    assert result.studies.model_dump_json()
    assert {row.initialization: row.num_seeds for row in found.rows} == {
        "kaiming_normal": 2, "uniform": 2, CHECKPOINT: 1,
    }  # fmt: skip
    own = next(trial for trial in found.trials if trial.initialization == CHECKPOINT)
    assert [one.posterior_rmse for one in own.samples] == [row.proxies["posterior_rmse"] for row in result.samples]
    # On sigmoid networks uniform weights leak more than Kaiming's.
    assert found.rows[0].initialization == "kaiming_normal"
    assert found.rows[0].attack_rmse is None
    for one in own.samples:
        assert 0 < one.largest_eigenvalue < one.trace
    assert found.noise_std == NOISE
    assert not found.reference_noise


# Those of the other study of several models are run every time: `tests/studies/test_training.py`.
@pytest.mark.slow
def test_attacks_are_at_the_noise_of_the_predictions() -> None:
    run = StudyRun(attacks=True, attack_steps=15)
    found = initialization_study(
        network(), digits(5), SETTINGS, run, seeds=1, names=("uniform",), attacks=("gauss-newton", "local")
    ).studies.get(InitializationStudy)
    assert found.control.status in ("passed", "failed")
    for row in found.rows:
        assert 0.3 < row.oracle_rmse.median / row.posterior_rmse.median < 3
        assert row.attack_rmse is not None


def test_exploding_networks_are_rows_with_a_reason(monkeypatch) -> None:
    def explode(tensor: torch.Tensor) -> object:
        return tensor.fill_(1e200) if tensor.dtype is torch.float64 else tensor.fill_(3e38)

    broken = INITIALIZATIONS["default"].__class__("default", "huge", explode, explode)
    monkeypatch.setitem(INITIALIZATIONS, "default", broken)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()
    found = initialization_study(model, digits(5), SETTINGS, seeds=1, names=("default", "uniform"))
    rows = {row.initialization: row for row in found.studies.get(InitializationStudy).rows}
    assert rows["default"].rank is None
    assert "not finite" in rows["default"].reasons[0]
    assert rows["uniform"].rank is not None


@pytest.mark.slow
def test_finished_trials_are_not_run_again(tmp_path, monkeypatch) -> None:
    log = tmp_path / "trials.jsonl"
    options = {"seeds": 1, "names": ("uniform", "default")}
    done = []
    whole = initialization_study(
        network(), digits(5), SETTINGS, StudyRun(log=log, progress=lambda *count: done.append(count)), **options
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][: len(lines[-1]) // 2])
    measured = []
    original = module.measure
    monkeypatch.setattr(module, "measure", lambda *given: measured.append(1) or original(*given))
    again = initialization_study(network(), digits(5), SETTINGS, StudyRun(log=log, resume=True), **options)
    assert len(measured) == 1
    assert again.studies == whole.studies
    with pytest.raises(SettingsError, match="another study"):
        initialization_study(network(1), digits(5), SETTINGS, StudyRun(log=log, resume=True), **options)


def test_other_proxies_asked_for_do_not_matter() -> None:
    settings = AuditSettings(release=f"gaussian:{NOISE}", proxies=("gradient_norm",))
    found = initialization_study(network(), digits(5), settings, seeds=1, names=("default",))
    assert all(row.rank is not None for row in found.studies.get(InitializationStudy).rows)


@pytest.mark.parametrize(
    ("options", "run", "words"),
    [
        ({"seeds": 0}, StudyRun(), "`seeds`"),
        ({"names": ("he",)}, StudyRun(), "he"),
        ({}, StudyRun(attack_steps=3), "`attacks`"),
        ({"attacks": ("magic",)}, StudyRun(attacks=True), "magic"),
    ],
)
def test_bad_options(options, run, words) -> None:
    with pytest.raises(SettingsError, match=words):
        initialization_study(network(), digits(5), SETTINGS, run, **options)


def test_the_model_handed_in_stays_as_it_is() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    initialization_study(model, digits(5), SETTINGS, seeds=1, names=("default",))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert math.isfinite(sum(float(value.sum()) for value in model.state_dict().values()))
