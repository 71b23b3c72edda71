"""What every `Sign` must do. Inherit, and give ``sign_id`` and ``planted``."""

from __future__ import annotations

import math

import pytest
import received_cases
import torch
from torch import nn

from riskaudit.checks.received import SIGNS, Sign, SignNotApplicable, observe
from riskaudit.checks.received.judging import judge_model
from riskaudit.results.inspection import SignRow


class SignContract:
    sign_id: str

    def planted(self) -> tuple[nn.Module, str | None]:
        """A network that shows the sign, and the layer that it is at; None where it is of no layer."""
        raise NotImplementedError

    @property
    def sign(self) -> Sign:
        return SIGNS[self.sign_id]

    def rows(self, model: nn.Module, count: int = 64, previous: nn.Module | None = None) -> list[SignRow]:
        rows = judge_model(model, received_cases.inputs(count), previous=previous).rows
        return [row for row in rows if row.id == self.sign_id]

    def flags(self, model: nn.Module, count: int = 64, previous: nn.Module | None = None) -> list[str | None]:
        return [row.layer for row in self.rows(model, count, previous) if row.flagged]

    def test_what_is_planted_is_flagged_at_its_layer(self) -> None:
        model, layer = self.planted()
        assert self.flags(model) == [layer]

    def test_numbers_are_finite_and_the_same_every_time(self) -> None:
        model, _ = self.planted()
        first, second = self.rows(model), self.rows(model)
        assert first == second
        assert all(row.value is not None and math.isfinite(row.value) for row in first if row.status == "judged")

    def test_the_model_is_left_as_it_was(self) -> None:
        model, _ = self.planted()
        model.train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = torch.get_rng_state()
        self.rows(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(module.training for module in model.modules())
        assert torch.equal(torch.get_rng_state(), state)

    def test_one_sample_is_judged_or_the_reason_is_given(self) -> None:
        model, _ = self.planted()
        rows = self.rows(model, 1)
        assert rows
        assert all(row.status == "judged" or (row.value is None and row.reason and not row.flagged) for row in rows)
        if self.sign.min_samples > 1:
            assert [row.status for row in rows] == ["not_applicable"]

    def test_a_model_without_such_layers_is_not_judged(self) -> None:
        class Product(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.zeros(1))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.flatten(1)[:, :10] * self.scale

        with pytest.raises(SignNotApplicable):
            self.sign.measure(observe(Product(), received_cases.inputs(), 16))

    def test_words(self) -> None:
        info = self.sign.info()
        assert all((info.title, info.units, info.source))
        assert info.summary.endswith(".")
        assert info.innocent.endswith(".")
