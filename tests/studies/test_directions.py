"""The directions study against a dense oracle: spectra, predictions, layers, shapes of noise, attacks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from cases import SmallResidual
from scipy.optimize import minimize
from scipy.stats import ortho_group
from study_cases import digits, network
from torch import nn

import riskaudit.studies.directions.run as module
from riskaudit.audit import AuditSettings
from riskaudit.audit.client import make_client
from riskaudit.errors import SettingsError
from riskaudit.inputs import Samples
from riskaudit.inputs.architectures.registry import ARCHITECTURES
from riskaudit.release import PerSampleRelease
from riskaudit.results import AuditResult
from riskaudit.statistics.rank_correlation import scaling
from riskaudit.studies.base import StudyRun
from riskaudit.studies.directions.decomposition import effective_dimension, layer_places
from riskaudit.studies.directions.optimal_noise import (
    layered_covariance,
    per_layer,
    posterior_variances,
    shaped_rmse,
    water_filled,
)
from riskaudit.studies.directions.record import DirectionsStudy
from riskaudit.studies.directions.run import directions_study
from riskaudit.studies.directions.shaped_noise import StackedJacobian, Weighing
from riskaudit.studies.settings import DirectionSettings

TAU = 0.3


def study_of(result: AuditResult) -> DirectionsStudy:
    return result.studies.get(DirectionsStudy)


@pytest.fixture(scope="module")
def studied() -> AuditResult:
    """Four digits, attacked."""
    looked_at = DirectionSettings(norm=2e-4, shares=(0.0, 0.3, 0.7, 1.0), attack_names=("local",))
    return directions_study(network(), digits(4), AuditSettings(prior_std=TAU), StudyRun(attacks=True), looked_at)


def dense(index: int, samples: Samples, model: nn.Module) -> np.ndarray:
    return oracles.jacobian(model.double(), F.cross_entropy, samples.inputs[index].double(), samples.targets[index])


@pytest.mark.slow
def test_spectra_are_those_of_the_dense_jacobian(studied: AuditResult) -> None:
    samples, model = digits(4), network()
    for index, row in enumerate(study_of(studied).spectra):
        l = np.linalg.svd(dense(index, samples, model), compute_uv=False)[::-1] ** 2  # noqa: E741
        assert row.status == "exact"
        assert row.rank == len(l) == row.dimension == row.num_known
        assert row.values == pytest.approx(np.quantile(l, study_of(studied).quantile_shares), rel=1e-8)
        assert row.spread == pytest.approx(l[-1] / l[0], rel=1e-6)
        assert row.effective_rank == pytest.approx(l.sum() ** 2 / (l**2).sum(), rel=1e-9)
        p = l / l.sum()
        assert row.entropy_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-9)


def test_predictions_are_norm_over_singular_value(studied: AuditResult) -> None:
    study = study_of(studied)
    singular = [row for row in study.directions if row.eigenvalue is not None]
    assert [row.direction for row in singular[:4]] == ["largest", "quantile 0.7", "quantile 0.3", "smallest"]
    for row in singular:
        assert row.predicted_rmse == pytest.approx(study.norm / math.sqrt(row.eigenvalue * study.dimension))
    others = [row for row in study.directions if row.eigenvalue is None]
    assert {row.direction for row in others} == {"random", "pruning", "noise"}
    assert all(row.status == "exact" and row.predicted_rmse for row in others)


def test_pruning_goes_through_the_inverse(studied: AuditResult) -> None:
    samples, model = digits(4), network().double()
    J = dense(0, samples, model)
    r = oracles.released_mean(model, F.cross_entropy, samples.inputs[0].double(), samples.targets[0]).detach()
    delta = (oracles.pruned(0.9)(r) - r).numpy()
    delta *= 2e-4 / np.linalg.norm(delta)
    error = np.linalg.lstsq(J, delta, rcond=None)[0]
    row = next(row for row in study_of(studied).directions if row.direction == "pruning")
    assert row.predicted_rmse == pytest.approx(np.linalg.norm(error) / math.sqrt(64), rel=1e-6)


def test_local_attack_comes_out_as_predicted(studied: AuditResult) -> None:
    study = study_of(studied)
    for row in study.directions:
        assert row.attacked["local"] == pytest.approx(row.predicted_rmse, rel=0.02), row.direction
    (agreement,) = study.agreement
    assert agreement.spearman == pytest.approx(1, abs=0.01)
    assert agreement.slope == pytest.approx(1, abs=0.02)
    assert agreement.slope_low <= agreement.slope <= agreement.slope_high
    assert agreement.num_pairs == 16


def test_layers_are_rows_of_the_jacobian(studied: AuditResult) -> None:
    samples, model = digits(4), network()
    J, study = dense(1, samples, model), study_of(studied)
    own = [row for row in study.layer_rows if row.sample_id == samples.ids[1]]
    eps, first = (1e-3 / TAU) ** 2, 0

    def revealed(rows: np.ndarray) -> float:
        l = np.linalg.svd(rows, compute_uv=False) ** 2  # noqa: E741
        return float((l / (l + eps)).sum() / 64)

    for row, layer in zip(
        own, [layer for layer in model.modules() if list(layer.parameters(recurse=False))], strict=True
    ):
        count = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        assert row.num_entries == count
        part, others = J[first : first + count], np.delete(J, np.s_[first : first + count], axis=0)
        first += count
        assert row.revealed == pytest.approx(revealed(part), rel=1e-6)
        assert row.revealed_without == pytest.approx(revealed(others), rel=1e-6)
        assert row.information_share == pytest.approx((part**2).sum() / (J**2).sum(), rel=1e-8)
    assert sum(row.information_share for row in own) == pytest.approx(1)


def test_noise_shapes(studied: AuditResult) -> None:
    study = study_of(studied)
    l = np.linalg.svd(dense(0, digits(4), network()), compute_uv=False) ** 2  # noqa: E741
    row = study.shaping[0]
    expected = math.sqrt(np.mean(1e-6 / (l + (1e-3 / TAU) ** 2)))
    assert row.predicted["isotropic"] == pytest.approx(expected, rel=1e-6)
    assert study.power == pytest.approx(study.num_entries * 1e-6)
    for each in study.shaping:
        assert each.predicted["isotropic"] < each.predicted["water_filled_in_range"] < each.predicted["water_filled"]
        assert each.predicted["in_range"] < each.predicted["water_filled"]
        assert each.predicted["isotropic"] < each.predicted["per_layer"] < TAU
        sizes = {row.layer: row.num_entries for row in study.layers}
        assert sum(sizes[name] * std**2 for name, std in each.layer_stds.items()) == pytest.approx(study.power)
    by_scheme = {row.scheme: row for row in study.shaping_summary}
    assert by_scheme["water_filled"].share_better == 1
    # Noise on every entry comes out as predicted even against who knows it; noise that leaves entries bare doesn't.
    assert by_scheme["per_layer"].attacked["knows"] == pytest.approx(by_scheme["per_layer"].predicted, rel=0.25)
    assert by_scheme["isotropic"].attacked["knows"] == pytest.approx(by_scheme["isotropic"].predicted, rel=0.25)
    assert by_scheme["water_filled"].attacked["knows"] < 0.5 * by_scheme["water_filled"].predicted
    assert any("not differentially private" in note for note in study.notes)


@pytest.mark.parametrize("power", [1e-4, 0.3, 100.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_water_filling_is_optimal(power: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    l, tau2 = 10 ** rng.uniform(-3, 2, 6), 0.5  # noqa: E741
    q, level = water_filled(l, tau2, power)
    assert q.sum() == pytest.approx(power)
    assert np.all(q >= 0)
    assert np.all((q > 0) == (np.sqrt(l) < level))

    def negative(shares: np.ndarray) -> float:
        weights = np.exp(shares - shares.max())
        return -posterior_variances(l, power * weights / weights.sum(), tau2).sum() / tau2

    best = min(
        minimize(negative, rng.standard_normal(6), method="Nelder-Mead",
                 options={"maxiter": 20000, "maxfev": 20000, "xatol": 1e-9, "fatol": 1e-13}).fun
        for _ in range(3)
    )  # fmt: skip
    own = -posterior_variances(l, q, tau2).sum() / tau2
    assert own <= best + 1e-9
    assert own == pytest.approx(best, rel=1e-2)


def test_no_other_covariance_of_that_trace_does_better() -> None:
    rng = np.random.default_rng(0)
    U, V = ortho_group.rvs(8, random_state=1)[:, :5], ortho_group.rvs(5, random_state=2)
    l, tau2, power = 10 ** rng.uniform(-2, 1, 5), 0.25, 0.7  # noqa: E741
    J = (U * np.sqrt(l)) @ V.T

    def trace(S: np.ndarray) -> float:
        return float(np.trace(np.linalg.inv(J.T @ np.linalg.inv(S) @ J + np.eye(5) / tau2)))

    q, _ = water_filled(l, tau2, power)
    best = posterior_variances(l, q, tau2).sum()
    for _ in range(300):
        A = rng.standard_normal((8, 8)) * 10 ** rng.uniform(-1, 1, 8)
        S = A @ A.T
        assert trace(power * S / np.trace(S)) <= best + 1e-9
    nearly = (U * q) @ U.T + 1e-9 * np.eye(8)
    assert trace(nearly) == pytest.approx(best, rel=1e-4)


def test_water_filling_at_the_edges() -> None:
    assert water_filled(np.zeros(3), 1.0, 1.0)[0].tolist() == [0, 0, 0]
    q, level = water_filled(np.array([0.0, 4.0]), 1.0, 6.0)
    assert q.tolist() == [0.0, 6.0]
    assert level == pytest.approx(5)
    assert posterior_variances(np.array([0.0, 4.0]), np.zeros(2), 2.0).tolist() == [2.0, 0.0]
    assert shaped_rmse(np.array([1.0]), np.array([1e12]), 4.0) == pytest.approx(2)


def test_per_layer_noise_is_optimal() -> None:
    rng = np.random.default_rng(3)
    rows = [torch.from_numpy(rng.standard_normal((size, 4)) * scale) for size, scale in ((3, 2.0), (6, 0.3), (2, 1.0))]
    grams, sizes, tau2, power = [part.mT @ part for part in rows], [3, 6, 2], 0.4, 1.5
    q, rmse = per_layer(grams, sizes, tau2, power)
    assert q @ sizes == pytest.approx(power)
    assert rmse == pytest.approx(math.sqrt(float(layered_covariance(grams, q, tau2).trace()) / 4))
    for _ in range(200):
        shares = rng.dirichlet(np.ones(3))
        other = layered_covariance(grams, power * shares / np.array(sizes), tau2)
        assert float(other.trace()) / 4 <= rmse**2 * (1 + 1e-7)


def test_effective_dimension() -> None:
    rows = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    l = torch.linalg.svdvals(rows) ** 2  # noqa: E741
    for shift in (1e-9, 0.3):
        expected = float((l / (l + shift)).sum())
        assert effective_dimension(rows.mT @ rows, shift) == pytest.approx(expected, rel=1e-6)
        assert effective_dimension(rows @ rows.mT, shift) == pytest.approx(expected, rel=1e-6)


def test_layers_own_their_parameters() -> None:
    model = SmallResidual()
    places = layer_places(PerSampleRelease(model.eval(), F.cross_entropy))
    assert list(places) == ["stem", "norm1", "conv", "norm2", "fc"]
    assert torch.equal(torch.cat(list(places.values())), torch.arange(sum(map(len, places.values()))))


def test_slopes_resample_samples() -> None:
    pairs = {str(k): [(10.0**e, 10.0 ** (e * (1 + 0.1 * k))) for e in range(3)] for k in range(5)}
    found = scaling(pairs)
    assert found.slope == pytest.approx(1.2)
    assert found.slope_low == pytest.approx(1.08, abs=0.07)
    assert found.slope_high == pytest.approx(1.32, abs=0.07)
    assert scaling({"a": [(1.0, 2.0)]}).note
    assert scaling({"a": [(1.0, 2.0)] * 5}).note == "all values are equal"
    assert scaling({"a": [(1.0, 2.0), (2.0, 3.0), (4.0, 5.0)]}).slope_low is None


def test_the_stacked_jacobian_is_the_derivative_of_its_mean() -> None:
    client = make_client(network(), digits(1), AuditSettings())
    quiet, batch = client.jacobian(client.release), client.batch([0])
    inner = quiet(batch)
    basis = torch.linalg.qr(torch.randn(inner.shape[0], 7, dtype=torch.float64)).Q
    weighing = Weighing(torch.tensor([2.0], dtype=torch.float64), basis, torch.rand(7, dtype=torch.float64))
    stacked = StackedJacobian(inner, weighing, 0.3)
    v = torch.randn(1, 64, dtype=torch.float64)
    u = torch.randn(1, stacked.shape[0], dtype=torch.float64)
    assert float((stacked.matvec(v) * u).sum()) == pytest.approx(float((stacked.rmatvec(u) * v).sum()), rel=1e-9)
    step = 1e-5
    moved = [
        StackedJacobian(
            quiet(type(batch)(batch.inputs + s * step * v.reshape(batch.inputs.shape), batch.targets)), weighing, 0.3
        ).mean()
        for s in (1, -1)
    ]
    difference = (moved[0] - moved[1]) / (2 * step)
    assert oracles.relative_difference(stacked.matvec(v), difference) < 1e-6
    product = stacked.hessian().matvec(v)
    assert oracles.relative_difference(product, stacked.rmatvec(stacked.matvec(v))) < 1e-12


@pytest.mark.slow
def test_iterations_say_what_is_missing() -> None:
    study = study_of(directions_study(network(), digits(2), AuditSettings(solver="lanczos"), StudyRun(attacks=True)))
    for row in study.spectra:
        assert row.status == "bracketed"
        assert 0 < row.num_known < 64
        assert row.smallest is row.spread is row.rank is None
        assert "not all eigenvalues" in row.reason
    status = {row.direction: row.status for row in study.directions}
    assert status["largest"] == "exact"
    assert {status[name] for name in ("smallest", "quantile 0.5", "random", "noise")} == {"not_applicable"}
    largest = [row for row in study.directions if row.direction == "largest"]
    assert all(row.attacked["local"] == pytest.approx(row.predicted_rmse, rel=0.1) for row in largest)
    assert study.layers_reason
    assert sum(row.information_share for row in study.layers) == pytest.approx(1)
    assert all(row.revealed is None for row in study.layers)
    assert not study.shaping_summary
    assert study.shaping_reason


def test_a_singular_jacobian() -> None:
    """A clipped softmax regression on constant classes: P < d, so H has no inverse."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5, bias=False), nn.Tanh(), nn.Linear(5, 10)).eval()
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    study = study_of(directions_study(model, digits(1), AuditSettings()))
    assert study.spectra[0].rank <= 5
    assert study.spectra[0].smallest == 0
    status = {row.direction: row.status for row in study.directions}
    assert status["smallest"] == "exact"
    assert status["noise"] == "singular"
    assert study.shaping[0].predicted["isotropic"] < study.prior_std


def models() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {
        "mlp": ARCHITECTURES["mlp"].build(widths=(64, 12, 10)),
        "lenet": network(),
        "residual": SmallResidual(),
        "convnet-free": nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 10)),
    }


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", list(models()))
@pytest.mark.parametrize("release", ["gradient", "clip:1.0,gaussian:0.01", "mask:0.5,laplace:0.01"])
def test_every_architecture_and_release(name: str, release: str) -> None:
    result = directions_study(models()[name].eval(), digits(2), AuditSettings(release=release))
    study = study_of(result)
    assert len(study.spectra) == 2
    assert all(row.status == "exact" for row in study.layer_rows)
    assert study.reference == (release == "gradient")
    assert AuditResult.from_json(result.to_json()) == result
    revealed = [row.proxies["revealed_fraction"].value for row in result.samples]
    for index, value in enumerate(revealed):
        own = [row for row in study.layer_rows if row.sample_id == result.samples[index].id]
        assert max(row.revealed for row in own) <= value * (1 + 1e-6)


def test_resumed_trials_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (network(), digits(3), AuditSettings())
    log = tmp_path / "out.trials.jsonl"
    whole = study_of(directions_study(*arguments))
    real = module.SampleTrial.run
    monkeypatch.setattr(
        module.SampleTrial, "run", lambda self, client: _stop() if self.index == 2 else real(self, client)
    )
    with pytest.raises(KeyboardInterrupt):
        directions_study(*arguments, StudyRun(log=log))
    kept = [json.loads(line).get("trial") for line in log.read_text().splitlines()]
    assert kept == [None, "sample 0", "sample 1"]
    done: list[int] = []
    monkeypatch.setattr(
        module.SampleTrial, "run", lambda self, client: (done.append(self.index), real(self, client))[1]
    )
    again = study_of(directions_study(*arguments, StudyRun(log=log, resume=True)))
    assert done == [2]
    assert again.directions == whole.directions
    assert again.shaping == whole.shaping
    with pytest.raises(SettingsError, match="another study"):
        directions_study(*arguments, StudyRun(log=log, resume=True), DirectionSettings(norm=1.0))


def _stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"norm": 0.0}, "`norm`"), ({"shares": (1.5,)}, "`shares`"), ({"shares": ()}, "`shares`"),
     ({"prune_ratio": 1.0}, "`prune_ratio`")],
)  # fmt: skip
def test_settings_are_checked(changes: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        DirectionSettings(**changes)  # type: ignore[arg-type]


def test_samples_without_a_finite_gradient_are_left_out() -> None:
    class Explosive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * torch.where(x.flatten(1).amax(1) > 1.5, torch.inf, 1.0)[:, None].to(x)

    samples = digits(2)
    inputs = samples.inputs.clone()
    inputs[0, 0, 0, 0] = 2.0
    study = study_of(directions_study(Explosive(), Samples(inputs, samples.targets, samples.ids)))
    assert [row.sample_id for row in study.spectra] == [samples.ids[1]]
    assert any("left out" in note for note in study.notes)
