"""Calibration: the file, what it is bound to, and what it adds to a scan."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_cases import digits, network

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit
from riskaudit.errors import ResultError, SettingsError
from riskaudit.policy import Policy
from riskaudit.results import AuditResult, Calibration
from riskaudit.studies.calibrate.run import calibrate
from riskaudit.studies.rows import Control
from riskaudit.studies.settings import AttackSettings

NOISE = 0.02
PRIOR = {"prior_mean": 0.3, "prior_std": 0.35}
RELEASE = f"gradient,gaussian:{NOISE}"


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = calibrate(
        network(), digits(19), AuditSettings(release=RELEASE, **PRIOR),
        AttackSettings(("gauss-newton",), steps=15), coverage=0.9,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    found.save(path)
    return path


@pytest.fixture(scope="module")
def plain() -> AuditResult:
    return audit(network(), digits(4, first=30), AuditSettings(release=RELEASE, **PRIOR))


@pytest.fixture(scope="module")
def calibrated(calibration: Path) -> AuditResult:
    settings = AuditSettings(release=RELEASE, calibration=str(calibration), **PRIOR)
    return audit(network(), digits(4, first=30), settings)


@pytest.mark.slow
def test_factors_are_the_conformal_ranks(calibration: Path) -> None:
    found = Calibration.load(calibration)
    assert [level.proxy for level in found.levels] == ["map_rmse", "posterior_rmse"]
    for level in found.levels:
        assert level.num_samples == 19
        # (19 + 1) x 0.05 = 1: the least and the largest of 19 ratios.
        assert level.low_factor == pytest.approx(level.ratios[0])
        assert level.high_factor == pytest.approx(level.ratios[-1])


def test_intervals_are_the_predictions_times_the_factors(calibration: Path, calibrated: AuditResult) -> None:
    level = Calibration.load(calibration).levels[0]
    assert level.low_factor is not None
    assert level.high_factor is not None
    assert calibrated.calibration is not None
    assert calibrated.calibration.coverage == 0.9
    for row in calibrated.samples:
        value, found = row.proxies["map_rmse"].value, row.calibrated["map_rmse"]
        assert value is not None
        assert found.low == pytest.approx(level.low_factor * value)
        assert found.high == pytest.approx(level.high_factor * value)
        revealed = row.calibrated["revealed_fraction"]
        assert revealed.high == pytest.approx(max(0.0, 1 - (found.low / 0.35) ** 2))
        assert revealed.low is not None
        assert revealed.high is not None
        assert revealed.low <= revealed.high


def test_success_probability_is_widened(plain: AuditResult, calibrated: AuditResult) -> None:
    for before, after in zip(plain.samples, calibrated.samples, strict=True):
        assert before.calibrated == {}
        for one, other in zip(before.success_probability, after.success_probability, strict=True):
            assert one.probability == other.probability
            assert other.status == "bracketed"
            assert other.low is not None
            assert other.high is not None
            assert 0 <= other.low <= other.high <= 1


def test_verdict_and_policy_take_the_cautious_end(plain: AuditResult, calibrated: AuditResult) -> None:
    row = calibrated.samples[0]
    high, own = row.calibrated["revealed_fraction"].high, row.proxies["revealed_fraction"].value
    assert high is not None
    assert own is not None
    assert high != own
    between = (high + own) / 2
    policy = Policy(max_revealed=between)
    alone = calibrated.model_copy(update={"samples": [row]})
    assert policy.decide(alone).decision == "block"
    low = row.calibrated["posterior_rmse"].low
    error = row.proxies["posterior_rmse"].value
    assert low is not None
    assert error is not None
    strict = Policy(min_rmse=(min(low, error) + max(low, error)) / 2)
    assert strict.decide(alone).decision == "block"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"release": "gradient,gaussian:0.03"}, "noise 0.03"),
        ({"release": f"clip:1.0,gaussian:{NOISE}"}, "calibrated for"),
        ({"prior_std": 0.3}, "calibrated for"),
        ({"release": "gradient"}, "Gaussian noise"),
        ({"loss": "mse"}, "."),
    ],
)
def test_bound_to_release_prior_and_noise(calibration: Path, changes: dict[str, object], words: str) -> None:
    options: dict[str, object] = {"release": RELEASE, "calibration": str(calibration), **PRIOR, **changes}
    with pytest.raises(Exception, match=words) as caught:
        audit(network(), digits(2), AuditSettings(**options))  # type: ignore[arg-type]
    assert type(caught.value).__module__ == "riskaudit.errors"


@pytest.mark.slow
def test_wide_intervals_are_told_before_anything_is_attacked(monkeypatch) -> None:
    def no_attack(*_: object) -> None:
        raise AssertionError("attacked")

    passed = Control(status="passed", rmse=0.0)
    monkeypatch.setattr("riskaudit.studies.attacking.AttackTrial.run", no_attack)
    monkeypatch.setattr("riskaudit.studies.control.control", lambda *_: passed)
    options: dict[str, object] = {"release": RELEASE, **PRIOR}
    attacks = AttackSettings(("gauss-newton",), steps=1)
    wide = AuditSettings(solver="lanczos", max_matvecs=1, **options)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"of 19 .* noise 0\.02 .*`solver=dense`"):
        calibrate(network(), digits(19), wide, attacks)
    # The advice works: nothing is left in the way of the attacks.
    narrow = AuditSettings(solver="dense", **options)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="attacked"):
        calibrate(network(), digits(19), narrow, attacks)


def test_bound_to_the_weights(calibration: Path) -> None:
    settings = AuditSettings(release=RELEASE, calibration=str(calibration), **PRIOR)
    with pytest.raises(SettingsError, match="calibrated for"):
        audit(network(seed=1), digits(2), settings)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 2}', "null"])
def test_broken_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(ResultError):
        Calibration.load(path)


def test_too_few_samples_no_noise_or_weak_attacks_are_refused() -> None:
    settings = AuditSettings(release=RELEASE, **PRIOR)
    with pytest.raises(SettingsError, match="at least 19"):
        calibrate(network(), digits(18), settings)
    with pytest.raises(SettingsError, match="needs noise"):
        calibrate(network(), digits(19), AuditSettings(**PRIOR))
    with pytest.raises(SettingsError, match="positive control"):
        calibrate(network(), digits(19), settings, AttackSettings(("inverting-gradients",), steps=1))
    with pytest.raises(SettingsError, match="coverage"):
        calibrate(network(), digits(19), settings, coverage=1.0)
