"""Metrics against their definitions, and what they say where they can't be computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scan_cases import loaded_modules
from scipy.ndimage import correlate
from torch import nn

from riskaudit.errors import SettingsError
from riskaudit.metrics import METRICS, Subject, make_metrics, measure, metric_notes, prior_only, reported_metrics
from riskaudit.metrics.base import Metric, register
from riskaudit.metrics.features import penultimate_features
from riskaudit.metrics.pixels import PSNR_CAP

UNIT = (0.0, 1.0)
SIMPLE = ["mse", "rmse", "psnr"]
KNOWN = (*SIMPLE, "ssim", "feature_mse", "lpips", "lpips_vgg", "lpips_squeeze")


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def one(name: str, subject: Subject) -> Metric:
    return make_metrics(subject, [name])[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(7,), (1, 12, 12), (3, 16, 20)], ids=str)
def test_pixel_errors_by_definition(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    guess, truth = images(4, *shape, dtype=dtype), images(4, *shape, seed=1, dtype=dtype)
    subject = Subject(shape, (-1.0, 3.0))
    mse = ((guess.double() - truth.double()) ** 2).reshape(4, -1).mean(1)
    expected = {"mse": mse, "rmse": mse.sqrt(), "psnr": 10 * torch.log10(16 / mse)}
    for name, values in expected.items():
        found = one(name, subject)(guess, truth)
        assert (found.dtype, found.shape) == (torch.float64, (4,))
        # torchmetrics keeps the logarithm of the range in float32.
        torch.testing.assert_close(found, values, rtol=1e-6, atol=0)


def plain_ssim(guess: np.ndarray, truth: np.ndarray, window: int, span: float) -> float:
    """SSIM of one channel from the paper's formula, mirrored at the borders as torchmetrics does."""
    offsets = np.arange(window) - window // 2
    weights = np.exp(-(offsets**2) / (2 * (1.5 * window / 11) ** 2))
    kernel = np.outer(weights, weights) / weights.sum() ** 2

    def mean(values: np.ndarray) -> np.ndarray:
        return correlate(values, kernel, mode="mirror")

    a, b = mean(guess), mean(truth)
    var_a, var_b, both = mean(guess**2) - a**2, mean(truth**2) - b**2, mean(guess * truth) - a * b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    return float(((2 * a * b + c1) * (2 * both + c2) / ((a**2 + b**2 + c1) * (var_a + var_b + c2))).mean())


@pytest.mark.parametrize(
    ("size", "window"), [((28, 28), 11), ((11, 20), 11), ((8, 8), 7), ((5, 9), 5), ((4, 4), 3)], ids=str
)
def test_ssim_is_the_paper_s(size: tuple[int, int], window: int) -> None:
    subject = Subject((2, *size), (0.0, 2.0))
    metric = one("ssim", subject)
    guess, truth = 2 * images(3, 2, *size), 2 * images(3, 2, *size, seed=1)
    expected = [
        np.mean([plain_ssim(a.numpy(), b.numpy(), window, 2.0) for a, b in zip(x, y, strict=True)])
        for x, y in zip(guess, truth, strict=True)
    ]
    np.testing.assert_allclose(metric(guess, truth).numpy(), expected, atol=1e-7)
    assert metric.reason is None
    assert (metric.note is None) == (window == 11)


def test_an_exact_match_is_finite() -> None:
    assert math.isfinite(PSNR_CAP)
    assert pytest.approx(313.07, abs=0.01) == PSNR_CAP


@given(st.integers(0, 100), st.floats(1e-3, 1.0))
def test_a_larger_error_is_never_the_better_reconstruction(seed: int, scale: float) -> None:
    truth, step = images(1, 1, 12, 12, seed=seed), images(1, 1, 12, 12, seed=seed + 1) - 0.5
    for metric in make_metrics(Subject((1, 12, 12), UNIT), SIMPLE):
        near, far = metric(truth + 0.5 * scale * step, truth).item(), metric(truth + scale * step, truth).item()
        assert (near > far) == metric.higher_is_better


@pytest.mark.parametrize(
    ("subject", "applicable"),
    [
        (Subject((13,)), {"mse", "rmse"}),
        (Subject((13,), UNIT), set(SIMPLE)),
        (Subject((13,), (2.0, 2.0)), {"mse", "rmse"}),
        (Subject((1, 2, 8), UNIT), set(SIMPLE)),
        (Subject((1, 8, 8), UNIT), {*SIMPLE, "ssim"}),
        (Subject((13,), UNIT, nn.Linear(13, 2)), {*SIMPLE, "feature_mse"}),
    ],
    ids=["no-range", "row", "empty-range", "flat", "image", "model"],
)
def test_what_is_applicable(subject: Subject, applicable: set[str], tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    metrics = make_metrics(subject, KNOWN)
    assert {metric.name for metric in metrics if metric.reason is None} == applicable
    truth = images(2, *subject.input_shape)
    for row in measure(metrics, truth + 0.1, truth):
        assert set(row) == set(KNOWN)
        assert {name for name, value in row.items() if value is not None} == applicable
    assert all(len(reason) > 10 for reason in metric_notes(metrics).values())
    assert set(metric_notes(metrics)) >= set(KNOWN) - applicable


def test_a_reconstruction_that_is_not_finite_has_no_value() -> None:
    truth = images(3, 1, 12, 12)
    guess = truth + 0.1
    guess[1, 0, 3, 3] = math.nan
    guess[2, 0, 0, 0] = math.inf
    rows = measure(make_metrics(Subject((1, 12, 12), UNIT), [*SIMPLE, "ssim"]), guess, truth)
    assert rows[0]["rmse"] == pytest.approx(0.1)
    assert all(value is None for row in rows[1:] for value in row.values())


def test_no_samples() -> None:
    assert measure(make_metrics(Subject((4,)), ["mse"]), torch.zeros(0, 4), torch.zeros(0, 4)) == []


def test_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"the truth's shape \(2, 4\), found \(2, 5\)"):
        measure(make_metrics(Subject((4,)), ["mse"]), torch.zeros(2, 5), torch.zeros(2, 4))


@pytest.mark.parametrize("form", ["scalar", "one", "flat", "each", "each-flat"])
def test_the_prior_only_guess(form: str) -> None:
    truth = images(3, 1, 4, 4)
    means = {
        "scalar": torch.tensor(0.25),
        "one": torch.full((1, 4, 4), 0.25),
        "flat": torch.full((16,), 0.25),
        "each": torch.full((3, 1, 4, 4), 0.25),
        "each-flat": torch.full((3, 16), 0.25),
    }
    rows = prior_only(make_metrics(Subject((1, 4, 4), UNIT), ["rmse"]), means[form], truth)
    expected = (truth - 0.25).square().flatten(1).mean(1).sqrt()
    assert [row["rmse"] for row in rows] == pytest.approx(expected.tolist())


def test_a_prior_mean_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="a prior mean that fits"):
        prior_only(make_metrics(Subject((4,)), ["rmse"]), torch.zeros(3), torch.zeros(2, 4))


class Branches(nn.Module):
    """Registered in one order, run in another; one linear layer never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2)
        self.body = nn.Linear(4, 5)
        self.unused = nn.Linear(7, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x)))


def test_features_are_those_of_the_layer_that_runs_last() -> None:
    torch.manual_seed(0)
    model = Branches().double()
    guess, truth = images(6, 4), images(6, 4, seed=1)
    a, b = torch.tanh(model.body(guess)), torch.tanh(model.body(truth))
    found = one("feature_mse", Subject((4,), model=model))(guess.float(), truth.float())
    torch.testing.assert_close(found, (a - b).square().mean(1).detach(), rtol=1e-5, atol=1e-9)
    assert not model.body._forward_pre_hooks
    assert not model.head._forward_pre_hooks


def test_what_of_features_lies_outside_the_span_of_an_upload() -> None:
    """By least squares: of two uploads of two samples, each by its own reconstructions."""
    torch.manual_seed(0)
    model = Branches().double()
    guess, truth = images(4, 4), images(4, 4, seed=1)
    found = one("feature_span", Subject((4,), model=model, upload_size=2))(guess, truth)
    recovered, features = (torch.tanh(model.body(each)).detach().numpy() for each in (guess, truth))
    for place in range(4):
        basis = recovered[place // 2 * 2 : place // 2 * 2 + 2].T
        left = features[place] - basis @ np.linalg.lstsq(basis, features[place], rcond=None)[0]
        assert float(found[place]) == pytest.approx(np.linalg.norm(left) / np.linalg.norm(features[place]), rel=1e-9)
    mixed = truth[[1, 0, 3, 2]]
    assert float(one("feature_span", Subject((4,), model=model, upload_size=2))(mixed, truth).max()) < 1e-12


def test_features_of_positions_are_not_taken_for_samples() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.reshape(-1, 2)).reshape(len(x), -1)

    assert penultimate_features(Positions(), images(3, 8, dtype=torch.float32)) is None
    assert "one row per sample" in one("feature_mse", Subject((8,), model=Positions())).reason


def test_a_model_without_linear_layers_has_no_features() -> None:
    assert one("feature_mse", Subject((1, 4, 4), model=nn.Conv2d(1, 2, 3))).reason == "the model has no linear layer"


def test_an_unknown_metric_lists_the_known() -> None:
    with pytest.raises(SettingsError, match=r"unknown metric 'nice'; known are .*rmse"):
        make_metrics(Subject((4,)), ["nice"])


def test_a_name_can_be_taken_once() -> None:
    with pytest.raises(SettingsError, match="'rmse' is registered twice"):
        register(METRICS["rmse"])


def test_reports_show_every_metric_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [name for name in reported_metrics() if name in KNOWN]
    assert known == ["rmse", "mse", "psnr", "ssim", "lpips", "feature_mse"]
    monkeypatch.setitem(METRICS, "new", type("New", (METRICS["mse"],), {"name": "new", "order": 15}))
    assert reported_metrics()[:3] == ("rmse", "new", "mse")
    monkeypatch.setitem(METRICS, "new", type("New", (METRICS["mse"],), {"name": "new", "in_reports": False}))
    assert "new" not in reported_metrics()


def test_nothing_is_imported_before_it_is_needed() -> None:
    libraries = ["torchmetrics", "lpips", "torchvision"]
    assert loaded_modules(libraries, "import riskaudit.metrics, riskaudit.cli") == []
    assert loaded_modules([*libraries, "torch"], "import riskaudit") == []
