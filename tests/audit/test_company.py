"""Models whose function of a batch isn't the function of its samples: every number is that of the sample alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import riskaudit
from riskaudit.errors import CoupledReleaseError, SamplesError

NOISY = "gaussian:0.05"


class TwoLayers(nn.Module):
    """Runs its hidden activations through what a test says, a function of the whole batch."""

    def __init__(self, change) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.change = nn.Linear(12, 8), nn.Linear(8, 3), change

    def forward(self, inputs: Tensor) -> Tensor:
        return self.b(torch.tanh(self.change(self.a(inputs))))


def rescale(h: Tensor) -> Tensor:
    return h * (2 / h.norm()) if h.norm() > 2 else h


def sign(h: Tensor) -> Tensor:
    return h if h.sum() > -2 else torch.sigmoid(h)


def crowd(h: Tensor) -> Tensor:
    """A branch by the size of the batch."""
    return h.relu() if len(h) > 4 else h


def layers(h: Tensor) -> Tensor:
    return h.sort(dim=0)[0].flip(0).roll(1, 0) if len(h) > 3 else h


def hooked(h: Tensor) -> Tensor:
    """The identity, whose gradient depends on the size of the batch."""
    if h.requires_grad and len(h) > 4:
        h.register_hook(lambda gradient: 3.0 * gradient)
    return h


def centred(h: Tensor) -> Tensor:
    """No copy of a sample shows it in its loss."""
    return h + (h - h.mean(0) if len(h) > 3 else 0 * h)


def samples(count: int = 11) -> riskaudit.Samples:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.rand(count, 12, generator=generator)
    return riskaudit.Samples.from_tensors(inputs, torch.arange(count) % 3)


def numbers(model: nn.Module, batch_size: int | None, **options) -> tuple[list[float], list[str]]:
    result = riskaudit.audit(model, samples(), release=NOISY, batch_size=batch_size, **options)
    return [row.proxies["revealed_fraction"].value for row in result.samples], result.warnings


def alone(model: nn.Module) -> list[float | None]:
    """Every sample in an audit of its own; None where its derivative isn't believed."""
    whole = samples()
    mean, std = float(whole.inputs.mean()), float(whole.inputs.std(correction=0))
    found = []
    for place in range(len(whole)):
        one = riskaudit.Samples.from_tensors(whole.inputs[[place]], whole.targets[[place]])
        try:
            result = riskaudit.audit(model, one, release=NOISY, prior_mean=mean, prior_std=std)
        except SamplesError:  # a branch so near that a small step takes it
            found.append(None)
        else:
            found.append(result.samples[0].proxies["revealed_fraction"].value)
    return found


@pytest.mark.sampled(1)
@pytest.mark.parametrize("change", [rescale, sign, crowd, layers, centred, hooked])
def test_every_batch_size_gives_the_numbers_of_samples_alone(change) -> None:
    model = TwoLayers(change)
    expected = alone(model)
    for batch_size in (3, 8, None):
        found, warnings = numbers(model, batch_size)
        assert found == pytest.approx(expected, rel=1e-9), batch_size
        if batch_size is None and change is not centred:
            assert any("audited one at a time" in warning for warning in warnings)


def test_the_numbers_are_those_of_the_function_of_one_sample() -> None:
    """A branch that no single sample takes is as if it weren't there."""
    plain, _ = numbers(TwoLayers(lambda h: h), None)
    assert numbers(TwoLayers(crowd), None)[0] == pytest.approx(plain, rel=1e-9)


def test_a_gradient_that_depends_on_the_batch_shows_where_the_losses_agree() -> None:
    found, warnings = numbers(TwoLayers(hooked), None)
    assert any("audited one at a time" in warning for warning in warnings)
    assert found == pytest.approx(numbers(TwoLayers(hooked), 1)[0], rel=1e-9)


def test_models_of_single_samples_are_audited_together() -> None:
    _, warnings = numbers(TwoLayers(torch.relu), None)
    assert not any("one at a time" in warning for warning in warnings)


def test_a_model_that_is_random_for_some_samples_only_is_refused() -> None:
    def noisy(h: Tensor) -> Tensor:
        return h + torch.rand_like(h) if float(h[:, place].max()) > threshold else h

    model = TwoLayers(noisy)
    hidden = model.a.double()(samples().inputs.double()).detach()
    place = next(k for k in range(8) if int(hidden[:, k].argmax()) > 3)
    first = hidden[:, place].tolist()
    threshold = (max(first[:4]) + max(first)) / 2
    assert max(first[:4]) < max(first)
    model.float()
    with pytest.raises(CoupledReleaseError, match="random"):
        numbers(model, None)


@pytest.mark.slow
@settings(max_examples=3, deadline=None)
@given(
    st.sampled_from(["norm", "sum", "max", "std", "len"]),
    st.floats(0.05, 6.0),
    st.sampled_from([torch.relu, torch.sigmoid, lambda h: 0.5 * h, torch.sin]),
    st.integers(2, 11),
)
def test_generated_branches_over_batch_statistics(statistic, threshold, other, batch_size) -> None:
    def branch(h: Tensor) -> Tensor:
        value = {
            "norm": h.norm, "sum": lambda: h.sum().abs(), "max": h.max,
            "std": lambda: h.std(correction=0), "len": lambda: torch.tensor(float(len(h))),
        }[statistic]()  # fmt: skip
        return other(h) if float(value) > threshold else h

    model = TwoLayers(branch)
    try:
        found, _ = numbers(model, batch_size)
    except (CoupledReleaseError, SamplesError):
        return
    for value, expected in zip(found, alone(model), strict=True):
        assert value is expected is None or value == pytest.approx(expected, rel=1e-9)
