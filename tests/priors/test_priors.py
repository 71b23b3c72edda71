"""Every prior against dense numpy, what it falls back to, and what data it can't be fitted to."""

from __future__ import annotations

import numpy as np
import oracles
import prior_cases
import pytest
import torch
from contracts.prior import PriorContract

from riskaudit.errors import PriorError, SettingsError
from riskaudit.inputs import Samples
from riskaudit.priors import (
    MIN_IMAGES,
    ClassPrior,
    GaussianPrior,
    IsotropicPrior,
    Prior,
    fit_prior,
    load_prior,
    save_prior,
)

TARGETS = torch.tensor([1, 0, 2, 1, 7])


def expected_moments(target: int):
    """Of a class with enough images its own, else everybody's."""
    data = prior_cases.samples()
    own = prior_cases.COUNTS.get(target, 0) >= MIN_IMAGES
    return prior_cases.shrunk(prior_cases.values_of(data, target if own else None))


class TestIsotropicPrior(PriorContract):
    covers = IsotropicPrior

    @pytest.fixture
    def prior(self) -> Prior:
        return IsotropicPrior(0.4, 0.3)

    @pytest.fixture
    def targets(self) -> torch.Tensor:
        return TARGETS

    @pytest.fixture
    def moments(self):
        return [(np.full(12, 0.4), 0.09 * np.eye(12))] * 5


class TestGaussianPrior(PriorContract):
    covers = GaussianPrior

    @pytest.fixture
    def prior(self) -> Prior:
        return fit_prior(prior_cases.samples())

    @pytest.fixture
    def targets(self) -> torch.Tensor:
        return TARGETS

    @pytest.fixture
    def moments(self):
        return [prior_cases.shrunk(prior_cases.values_of(prior_cases.samples()))] * 5


class TestClassPrior(PriorContract):
    covers = ClassPrior

    @pytest.fixture
    def prior(self) -> Prior:
        return fit_prior(prior_cases.samples(), "class")

    @pytest.fixture
    def targets(self) -> torch.Tensor:
        return TARGETS

    @pytest.fixture
    def moments(self):
        return [expected_moments(int(target)) for target in TARGETS]


class TestLoadedPrior(TestClassPrior):
    @pytest.fixture
    def prior(self, tmp_path) -> Prior:
        save_prior(fit_prior(prior_cases.samples(), "class"), tmp_path / "prior.safetensors")
        return load_prior(tmp_path / "prior.safetensors")


def dense(prior: GaussianPrior):
    components = prior.components.numpy()
    return (components * prior.variances.numpy()) @ components.T + prior.remainder * np.eye(prior.dimension)


@pytest.mark.parametrize("count", [MIN_IMAGES, 39, 40, 41, 90])
def test_more_coordinates_than_images_and_the_other_way_round(count: int) -> None:
    rng = np.random.default_rng(count)
    values = rng.standard_normal((count, 40)) @ (rng.standard_normal((40, 40)) * np.geomspace(1, 0.05, 40))
    data = Samples.from_tensors(torch.from_numpy(values), torch.zeros(count, dtype=torch.int64))
    found = fit_prior(data)
    mean, covariance = prior_cases.shrunk(values)
    assert oracles.relative_difference(found.mean, mean) < 1e-12
    assert oracles.relative_difference(dense(found), covariance) < 1e-10
    assert found.components.shape[1] <= count - 1


@pytest.mark.parametrize("kept", [1, 3, 11])
def test_fewer_components_keep_the_leading_ones_and_the_trace(kept: int) -> None:
    data = prior_cases.samples()
    _, covariance = prior_cases.shrunk(prior_cases.values_of(data))
    found = fit_prior(data, components=kept)
    assert found.components.shape[1] == kept
    values = np.linalg.eigvalsh(dense(found))[::-1]
    truth = np.linalg.eigvalsh(covariance)[::-1]
    assert values[:kept] == pytest.approx(truth[:kept], rel=1e-9)
    assert values[kept:] == pytest.approx(np.full(12 - kept, truth[kept:].mean()), rel=1e-9)
    assert np.trace(dense(found)) == pytest.approx(np.trace(covariance), rel=1e-12)


def test_one_coordinate() -> None:
    values = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
    found = fit_prior(Samples.from_tensors(values, torch.zeros(30, dtype=torch.int64)))
    assert found.remainder == pytest.approx(np.var(values.numpy()))
    assert found.components.shape == (1, 0)


def test_info_says_what_it_was_fitted_to() -> None:
    data = prior_cases.samples()
    one, each = fit_prior(data).info(), fit_prior(data, "class").info()
    assert (one.kind, each.kind) == ("data", "class")
    for info in (one, each):
        assert (info.source, info.num_images) == ("made", 70)
        assert info.class_counts == {"0": 40, "1": 25, "2": 5}
    assert one.std == pytest.approx(np.sqrt(np.trace(prior_cases.shrunk(prior_cases.values_of(data))[1]) / 12))
    variances = [np.trace(expected_moments(target)[1]) / 12 for target in (0, 1, 2)]
    assert each.std == pytest.approx(np.sqrt(np.average(variances, weights=[40, 25, 5])))
    # An average of means over the images is the mean, save for the class without a mean of its own.
    assert one.mean == pytest.approx(prior_cases.values_of(data).mean())


def test_classes_without_enough_images_fall_back() -> None:
    prior = fit_prior(prior_cases.samples(), "class")
    assert sorted(prior.classes) == [0, 1]
    assert prior.fallback_classes(TARGETS) == [2, 7]
    assert prior.fallback_classes(torch.tensor([0, 1, 1])) == []


def test_targets_that_are_no_classes_get_the_prior_of_everything() -> None:
    prior = fit_prior(prior_cases.samples(), "class")
    bound = prior.bind(torch.tensor([0.0, 1.0]), torch.zeros(2, 12, dtype=torch.float64))
    assert torch.equal(bound.mean, prior.everything.mean.expand(2, -1))


def without_spread(value: float = 0.5) -> Samples:
    return Samples.from_tensors(torch.full((24, 1, 2, 2), value), torch.arange(24) % 2)


@pytest.mark.parametrize(
    ("data", "kind", "components", "error", "words"),
    [
        (without_spread, "data", None, PriorError, "found 24 equal ones"),
        (
            lambda: Samples.from_tensors(torch.rand(19, 1, 2, 2), torch.zeros(19)),
            "data",
            None,
            PriorError,
            "at least 20 .* found 19",
        ),
        (lambda: Samples.from_tensors(torch.rand(29, 3), torch.rand(29)), "class", None, PriorError, "class labels"),
        (prior_cases.samples, "isotropic", None, SettingsError, "data or class, found 'isotropic'"),
        (prior_cases.samples, "data", 0, SettingsError, "`components`"),
    ],
    ids=["equal", "single", "no-classes", "kind", "components"],
)
def test_data_that_no_prior_can_be_fitted_to(data, kind, components, error, words) -> None:
    with pytest.raises(error, match=words):
        fit_prior(data(), kind, components)


def test_an_isotropic_prior_is_no_file(tmp_path) -> None:
    with pytest.raises(PriorError, match="found isotropic"):
        save_prior(IsotropicPrior(0.5, 0.3), tmp_path / "prior.safetensors")
    assert list(tmp_path.iterdir()) == []
