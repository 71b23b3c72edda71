"""``riskaudit prior fit`` and ``scan --prior``: what is written, what the scan makes of it, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scan_cases import DATA, save_digits, words

from riskaudit.priors import load_prior


@pytest.fixture
def prior_file(command, tmp_path) -> Path:
    outcome = command("prior", "fit", str(DATA), "--out", str(tmp_path / "prior.safetensors"))
    assert outcome.code == 0, outcome.err
    return tmp_path / "prior.safetensors"


def test_fit_writes_one_file_and_says_what(command, tmp_path) -> None:
    out = tmp_path / "p.safetensors"
    outcome = command("prior", "fit", str(DATA), "--out", str(out), "--kind", "class", "--components", "7")
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search("class prior .*60 samples of digits.npz", outcome.out)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["p.safetensors"]
    found = load_prior(out)
    assert found.everything.components.shape[1] == 7
    assert found.info().sha256 is not None


def test_quiet_and_limit(command, tmp_path) -> None:
    outcome = command("prior", "fit", str(DATA), "--out", str(tmp_path / "p.safetensors"), "--limit", "25", "-q")
    assert (outcome.code, outcome.out) == (0, "")
    assert load_prior(tmp_path / "p.safetensors").info().num_images == 25


def test_a_file_is_the_prior_of_the_audit(command, prior_file: Path) -> None:
    outcome = command(
        *words(
            "--arch",
            "lenet",
            "--release",
            "gaussian:0.01",
            "--prior",
            str(prior_file),
            limit=3,
            formats=("json", "html"),
        )
    )
    assert outcome.code == 0, outcome.err
    info, expected = outcome.result.prior, load_prior(prior_file).info()
    assert (info.kind, info.num_images, info.source, info.sha256) == ("data", 60, "digits.npz", expected.sha256)
    assert "--prior prior.safetensors" in outcome.document["command"]
    assert not any("fitted to the audited" in text for text in outcome.result.warnings)
    for row in outcome.result.samples:
        assert row.proxies["posterior_rmse"].value <= info.std
        assert row.noise_std_for_target.target_rmse == info.std / 2
        assert [each.tolerance for each in row.success_probability] == [0.05, 0.1, 0.2]
        assert row.predicted_rmse.low < row.predicted_rmse.value < row.predicted_rmse.high
    assert len(outcome.result.noise_curve) == 25
    assert outcome.result.noise_needed
    page = (outcome.folder / "audit.html").read_text()
    assert "60 samples of digits.npz" in page
    assert 'id="table-success-probability"' in page


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["data", "class"])
def test_fitted_to_the_audited_data_it_says_so(command, kind: str) -> None:
    outcome = command(*words("--release", "gaussian:0.01", "--prior", kind, limit=30))
    assert outcome.code == 0, outcome.err
    assert (outcome.result.prior.kind, outcome.result.prior.num_images) == (kind, 30)
    assert any("fitted to the audited" in text for text in outcome.result.warnings)
    fallback = outcome.result.prior.fallback_classes
    assert fallback == ([] if kind == "data" else sorted({row.target for row in outcome.result.samples}))
    assert any("too few images of" in text for text in outcome.result.warnings) == (kind == "class")


def test_a_correlated_prior_is_not_the_isotropic_one(command, prior_file: Path) -> None:
    isotropic = command(*words("--release", "gaussian:0.01"))
    data = command(*words("--release", "gaussian:0.01", "--prior", str(prior_file)))
    assert isotropic.result.prior.kind == "isotropic"
    assert isotropic.values("i2f") == data.values("i2f")
    assert isotropic.values("lavp_l2_max") == data.values("lavp_l2_max")
    assert isotropic.values("posterior_rmse") != data.values("posterior_rmse")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("solver", ["lanczos", "power"])
def test_other_solvers(command, prior_file: Path, solver: str) -> None:
    outcome = command(*words("--release", "gaussian:0.01", "--prior", str(prior_file), "--solver", solver))
    assert outcome.code == 0, outcome.err
    statuses = {each.status for row in outcome.result.samples for each in row.success_probability}
    assert statuses == {"bracketed" if solver == "lanczos" else "not_applicable"}


def test_tolerances_are_repeatable(command) -> None:
    options = ["--tolerance", "0.3", "--tolerance", "0.02", "--tolerance", "0.3"]
    outcome = command(*words("--release", "gaussian:0.01", *options))
    for row in outcome.result.samples:
        assert [each.tolerance for each in row.success_probability] == [0.02, 0.3]
        low, high = row.success_probability
        assert 0 <= low.probability <= high.probability <= 1
    assert " ".join(options) in outcome.document["command"]


def refused(outcome) -> str:
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert not outcome.err.startswith("riskaudit: unexpected")
    return outcome.err


def test_files_that_are_refused(command, tmp_path, prior_file: Path) -> None:
    other = tmp_path / "small.npz"
    np.savez(other, images=np.random.default_rng(0).random((30, 1, 4, 4)), labels=np.zeros(30, dtype=np.int64))
    small = tmp_path / "small.safetensors"
    assert command("prior", "fit", str(other), "--out", str(small)).code == 0
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(prior_file.read_bytes()[:-100])
    assert "(1, 4, 4)" in refused(command(*words("--prior", str(small))))
    assert "truncated" in refused(command(*words("--prior", str(truncated))))
    assert "can't find" in refused(command(*words("--prior", "missing.safetensors")))


def test_fits_that_are_refused(command, tmp_path) -> None:
    few = save_digits(tmp_path / "few.npz")
    out = str(tmp_path / "p.safetensors")
    assert "at least 20 samples" in refused(command("prior", "fit", str(few), "--out", out))
    assert "data or class" in refused(command("prior", "fit", str(DATA), "--out", out, "--kind", "magic"))
    assert "--components" in refused(command("prior", "fit", str(DATA), "--out", out, "--components", "0"))
    assert "nowhere" in refused(command("prior", "fit", str(DATA), "--out", str(tmp_path / "nowhere" / "p")))
    assert "--out" in refused(command("prior", "fit", str(DATA)))
    assert not Path(out).exists()
    assert "at least 20 samples" in refused(command(*words("--prior", "data")))
