"""Each step of a release on its own."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from contracts.completeness import cases_of
from contracts.release_step import (
    LayerClip,
    Rounding,
    Squashing,
    StepContract,
    StraightThroughRounding,
    context,
    vectors,
)
from torch import Tensor, nn

from riskaudit.errors import ReleaseError
from riskaudit.release import Batch, Noise, PerSampleRelease
from riskaudit.release.arguments import Argument, positive_number
from riskaudit.release.model import ModelFunction
from riskaudit.release.steps import STEPS, Step, StepContext
from riskaudit.release.steps.base import VectorFunction
from riskaudit.release.steps.clip import Clip
from riskaudit.release.steps.closed_forms import Kept
from riskaudit.release.steps.dropout import Dropout
from riskaudit.release.steps.mask import Mask
from riskaudit.release.steps.prune import Prune
from riskaudit.release.steps.share import Share
from riskaudit.release.steps.soteria import Soteria


@dataclass(frozen=True)
class ChoosingRounding(Rounding):
    """A flat step that says it does nothing but choose."""

    chooses: ClassVar[bool] = True

    def derivative(self, released: Tensor, context: StepContext) -> Kept:
        return Kept(torch.zeros_like(released))


@dataclass(frozen=True)
class NoiseKeepingScaling(Step):
    """A linear step, which noise that was added before doesn't survive."""

    factor: float
    name: ClassVar[str] = "scale"
    summary: ClassVar[str] = "multiply by C"
    arguments: ClassVar[tuple[Argument, ...]] = (positive_number("C"),)
    keeps_noise: ClassVar[bool] = True

    def bind(self, context: StepContext) -> VectorFunction:
        return lambda released: self.factor * released


class TestClip(StepContract):
    covers = Clip
    arguments = ":2.5"

    @pytest.fixture
    def step(self) -> Step:
        return Clip(2.5)


class TestPrune(StepContract):
    covers = Prune
    arguments = ":0.3"

    @pytest.fixture
    def step(self) -> Step:
        return Prune(0.3)


class TestMask(StepContract):
    covers = Mask
    arguments = ":0.3:5"

    @pytest.fixture
    def step(self) -> Step:
        return Mask(0.3, 5)


class TestShare(StepContract):
    covers = Share
    arguments = ":b*"

    @pytest.fixture
    def step(self) -> Step:
        return Share("b*")

    @pytest.mark.parametrize(
        ("patterns", "parts"),
        [
            ("weight", ["weight"]),
            ("b*+weight", ["weight", "bias"]),
            ("*", ["weight", "bias"]),
            ("?ias", ["bias"]),
            ("!b*", ["weight"]),
            ("*+!w*", ["bias"]),
        ],
    )
    def test_entries_are_those_of_the_parameters_named(self, patterns: str, parts: list[str]) -> None:
        vector, step = vectors(1)[0], Share(patterns)
        pieces = context().split(vector)
        assert torch.equal(step.bind(context())(vector), torch.cat([pieces[name] for name in parts]))
        assert list(step.context_after(context()).shapes) == parts

    @pytest.mark.parametrize("patterns", ["head.*", "weight+head.*", "Weight", "weight+", "!head.*"])
    def test_a_pattern_that_matches_nothing_is_refused(self, patterns: str) -> None:
        for work in (Share(patterns).bind, Share(patterns).context_after):
            with pytest.raises(ReleaseError, match=r"matches some of the trainable parameters weight, bias, found"):
                work(context())


@pytest.mark.parametrize("text", ["share:fc.*", "share:model.fc.*", "share:!conv*", "soteria:60:fc"])
def test_names_are_those_of_the_users_own_checkpoint(text: str) -> None:
    """Wrapped, to normalise pixels, its parameters have a prefix that the user doesn't know of."""
    layers = OrderedDict(conv=nn.Linear(3, 4), act=nn.Tanh(), fc=nn.Linear(4, 2))
    bare, batch = nn.Sequential(layers).double(), Batch(torch.rand(2, 3, dtype=torch.float64), torch.tensor([0, 1]))
    wrapped = nn.Sequential(OrderedDict(model=bare))
    expected = PerSampleRelease(bare, nn.functional.cross_entropy, text.replace("model.", "")).mean(batch)
    assert torch.equal(PerSampleRelease(wrapped, nn.functional.cross_entropy, text).mean(batch), expected)


@pytest.mark.parametrize(
    ("text", "sent"),
    [("share:a.fc.*", ("a.fc",)), ("share:!a.fc.*", ("a.a.fc",)), ("share:fc.*", ("a.fc",))],
)
def test_whole_names_go_first(text: str, sent: tuple[str, ...]) -> None:
    """Else more would be taken for left out than is, and an audit would miss what leaves."""
    inner = nn.Sequential(OrderedDict(fc=nn.Linear(3, 3)))
    wrapped = nn.Sequential(OrderedDict(a=nn.Sequential(OrderedDict(a=inner, fc=nn.Linear(3, 2)))))
    release = PerSampleRelease(wrapped.double(), nn.functional.cross_entropy, text)
    sizes = {name: parameter.numel() for name, parameter in wrapped.named_parameters()}
    expected = sum(size for name, size in sizes.items() if name.rpartition(".")[0] in sent)
    assert release.num_entries == expected


class TestSoteria(StepContract):
    covers = Soteria
    arguments = ":60.0"

    def context(self, dtype: torch.dtype = torch.float64) -> StepContext:
        layer = nn.Linear(3, 10, dtype=dtype)
        function = ModelFunction(layer, nn.functional.cross_entropy)
        return replace(context(dtype=dtype), function=function, inputs=torch.tensor([0.3, 0.1, 0.7], dtype=dtype))

    @pytest.fixture
    def step(self) -> Step:
        return Soteria(60.0)


def test_sharing_nothing_is_refused() -> None:
    with pytest.raises(ReleaseError, match="all of them left out"):
        Share("weight+!*").bind(context())


class TestDropout(StepContract):
    covers = Dropout
    arguments = ":0.3"

    @pytest.fixture
    def step(self) -> Step:
        return Dropout(0.3)

    @pytest.mark.parametrize("probability", [0.0, 0.1, 0.9])
    def test_entries_are_gone_with_the_probability(self, probability: float) -> None:
        ones = torch.ones(4000, dtype=torch.float64)
        left = Dropout(probability).bind(context(4000))(ones)
        assert set(left.tolist()) <= {0.0, 1.0}
        # Five standard deviations.
        assert abs(float(1 - left.mean()) - probability) <= 5 * math.sqrt(probability * (1 - probability) / 4000)


class TestStepWithoutClosedForm(StepContract):
    covers = LayerClip
    arguments = ":2.5"

    @pytest.fixture
    def step(self, monkeypatch: pytest.MonkeyPatch) -> Step:
        monkeypatch.setitem(STEPS, "layer-clip", LayerClip)
        return LayerClip(2.5)

    def test_sees_where_parameters_begin(self, step: Step) -> None:
        parts = context().split(self.bound(step)(vectors(1)[0]))
        assert [float(part.norm()) for part in parts.values()] == pytest.approx([2.5, 2.5])


class TestFlatStep(StepContract):
    covers = StraightThroughRounding
    arguments = ":0.5"
    flat = True

    @pytest.fixture
    def step(self, monkeypatch: pytest.MonkeyPatch) -> Step:
        monkeypatch.setitem(STEPS, "round-through", StraightThroughRounding)
        return StraightThroughRounding(0.5)


@pytest.mark.parametrize("step", [Rounding(0.5), Rounding(1e-6), Squashing(1e-9)], ids=str)
def test_steps_that_hide_from_their_derivative_are_found(step: Step) -> None:
    with pytest.raises(AssertionError):
        StepContract().test_derivative_tells_of_large_steps(step, 1.0)


@pytest.mark.parametrize("step", [ChoosingRounding(0.5), NoiseKeepingScaling(2.0)], ids=str)
def test_claims_that_are_not_true_are_found(step: Step) -> None:
    suite = StepContract()
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        (suite.test_keeps_noise_where_claimed if step.keeps_noise else suite.test_chooses_where_claimed)(step)


def test_every_step_has_a_contract() -> None:
    # Contracts of steps that only tests have come on top.
    assert set(STEPS.values()) <= {case.covers for case in cases_of(StepContract, __file__)}


@pytest.mark.parametrize("bound", [0.5, 2.0, 100.0, 1e-200, 1e200])
def test_clip_scales_down_and_never_up(bound: float) -> None:
    for vector in vectors(4):
        clipped = Clip(bound).bind(context(40))(vector)
        expected = min(1.0, bound / float(vector.norm())) * vector
        torch.testing.assert_close(clipped, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("ratio", "removed"), [(0.0, 0), (0.1, 4), (0.5, 20), (0.51, 20), (0.99, 40)])
def test_prune_removes_exactly_the_smallest(ratio: float, removed: int) -> None:
    for vector in vectors(4):
        pruned = Prune(ratio).bind(context(40))(vector)
        gone = pruned == 0
        assert int(gone.sum()) == removed
        assert torch.equal(pruned[~gone], vector[~gone])
        if 0 < removed < 40:
            assert vector[gone].abs().max() < vector[~gone].abs().min()


def test_prune_keeps_the_count_among_equals() -> None:
    pruned = Prune(0.25).bind(context(8))(torch.ones(8, dtype=torch.float64))
    assert int((pruned != 0).sum()) == 6


@pytest.mark.parametrize(("ratio", "removed"), [(0.0, 0), (0.1, 4), (0.5, 20), (0.99, 40)])
def test_mask_removes_the_same_entries_for_all(ratio: float, removed: int) -> None:
    apply = Mask(ratio, 3).bind(context(40))
    gone = [apply(vector) == 0 for vector in vectors(3)]
    assert int(gone[0].sum()) == removed
    assert torch.equal(gone[0], gone[1])
    assert torch.equal(gone[0], gone[2])
    assert torch.equal(apply(vectors(1)[0])[~gone[0]], vectors(1)[0][~gone[0]])


def test_mask_depends_on_its_seed_alone() -> None:
    ones = torch.ones(400, dtype=torch.float64)
    torch.manual_seed(1)
    first = Mask(0.5, 0).bind(context(400))(ones)
    torch.manual_seed(2)
    assert torch.equal(first, Mask(0.5, 0).bind(context(400))(ones))
    assert not torch.equal(first, Mask(0.5, 1).bind(context(400))(ones))


def test_standard_deviations() -> None:
    assert Noise("gaussian", 0.2).std == Noise("gaussian", 0.2).fisher_std == 0.2
    laplace = Noise("laplace", 0.2)
    assert laplace.std == pytest.approx(0.2 * math.sqrt(2))
    # Fisher information of a location parameter under Laplace(b) is 1 / b^2.
    assert laplace.fisher_std == 0.2
