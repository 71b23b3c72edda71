"""What every `Metric` must do. Inherit, and give ``name``, ``subject`` and the value of an exact match."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from riskaudit.metrics import METRICS, Metric, Subject, make_metrics, measure


class MetricContract:
    """Images [B, 3, 40, 40] from 0 to 1 unless ``subject`` says otherwise."""

    name: ClassVar[str]
    exact_match: ClassVar[float] = 0.0
    symmetric: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-9

    def subject(self) -> Subject:
        return Subject((3, 40, 40), (0.0, 1.0))

    @pytest.fixture
    def metric(self) -> Metric:
        metric = make_metrics(self.subject(), [self.name])[0]
        assert metric.reason is None
        return metric

    def inputs(self, count: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(count, *self.subject().input_shape, generator=generator, dtype=torch.float64).to(dtype)

    def near(self, values: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(values, expected, rtol=self.tolerance, atol=self.tolerance)

    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_one_number_per_sample(self, metric: Metric, count: int, dtype: torch.dtype) -> None:
        values = metric(self.inputs(count, 0, dtype), self.inputs(count, 1, dtype))
        assert (values.shape, values.dtype, values.device.type) == ((count,), torch.float64, "cpu")
        assert not values.requires_grad
        assert torch.isfinite(values).all()

    def test_identity(self, metric: Metric) -> None:
        truth = self.inputs()
        assert metric(truth, truth).tolist() == pytest.approx([self.exact_match] * 3, abs=self.tolerance)

    def test_symmetry(self, metric: Metric) -> None:
        if not self.symmetric:
            pytest.skip("not claimed to be symmetric")
        truth, guess = self.inputs(), self.inputs(seed=1)
        self.near(metric(guess, truth), metric(truth, guess))

    def test_direction(self, metric: Metric) -> None:
        """A guess ten times as far along the same way is the worse one, as ``higher_is_better`` has it."""
        truth, step = self.inputs(), self.inputs(seed=1) - 0.5
        near, far = metric(truth + 0.05 * step, truth), metric(truth + 0.5 * step, truth)
        assert bool(((near > far) == metric.higher_is_better).all())
        assert bool((near != far).all())

    def test_samples_are_apart(self, metric: Metric) -> None:
        truth, guess = self.inputs(), self.inputs(seed=1)
        values = metric(guess, truth)
        for i in range(3):
            self.near(metric(guess[i : i + 1], truth[i : i + 1]), values[i : i + 1])
        order = [2, 0, 2]
        self.near(metric(guess[order], truth[order]), values[order])

    def test_arguments_stay_as_they_are(self, metric: Metric) -> None:
        truth, guess = self.inputs(), self.inputs(seed=1)
        before = truth.clone(), guess.clone()
        metric(guess, truth)
        assert torch.equal(truth, before[0])
        assert torch.equal(guess, before[1])

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_not_finite_has_no_value(self, metric: Metric, bad: float) -> None:
        truth, guess = self.inputs(), self.inputs(seed=1)
        values = metric(guess, truth).tolist()
        guess[1].view(-1)[3] = bad
        rows = [row[self.name] for row in measure([metric], guess, truth)]
        assert rows[1] is None
        assert [rows[0], rows[2]] == pytest.approx([values[0], values[2]], abs=self.tolerance)

    def test_other_shapes_are_refused(self, metric: Metric) -> None:
        with pytest.raises(ValueError, match="the truth's shape"):
            measure([metric], self.inputs()[..., :-1], self.inputs())

    def test_what_it_says_of_itself(self, metric: Metric) -> None:
        assert METRICS[self.name] is type(metric)
        info = type(metric).info()
        assert info.id == metric.name == self.name
        assert info.higher_is_better == metric.higher_is_better
        assert all((metric.title, metric.units, metric.source, type(metric).__doc__))
