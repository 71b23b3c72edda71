"""Noise of a client: tested tensor by tensor, and against that of earlier rounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from guard_cases import NOISE, gradient, guard_of, images, network
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from riskaudit.guard import Policy, SecureNoise
from riskaudit.guard.noise import traces
from riskaudit.guard.noise.law import noise_mismatch, normal_scores
from riskaudit.guard.noise.memory import NoiseMemory
from riskaudit.guard.noise.traces import Trace, repetition, trace_of
from riskaudit.release import Noise

LENIENT = Policy(max_revealed=0.999)
SANITISE = Policy(max_revealed=0.01, on_violation="sanitise")


def drawn(model, scale: float = NOISE) -> list[torch.Tensor]:
    return [
        SecureNoise("gaussian", scale).draw(value.numel()).reshape(value.shape).float() for value in model.parameters()
    ]


def plus(tensors, noise) -> list[torch.Tensor]:
    return [one + added for one, added in zip(tensors, noise, strict=True)]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("factor", [0.0, 1e-3, 20.0])
def test_noise_of_another_size_in_one_tensor_is_withheld(place, factor) -> None:
    """Among them a bias of four entries, which is 1 % of all."""
    model, batch = network(), images(2)
    noise = drawn(model)
    noise[place] = factor * noise[place]
    decision = guard_of(model, LENIENT).review(batch, plus(gradient(model, batch), noise))
    assert decision.action == "block"
    assert f" in {[name for name, _ in model.named_parameters()][place]}: its size is" in decision.reasons[0]


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_true_noise_passes_the_tests_per_tensor(law) -> None:
    shapes = {"a": torch.Size([1]), "b": torch.Size([3, 2]), "c": torch.Size([40, 50]), "d": torch.Size([0])}
    count = sum(shape.numel() for shape in shapes.values())
    noise, mean = Noise(law, 0.3), torch.linspace(-3, 5, count, dtype=torch.float64)
    for _ in range(300):
        assert noise_mismatch(noise, SecureNoise(law, 0.3).draw(count), mean, shapes) is None
    scores = normal_scores(SecureNoise(law, 0.3).draw(100_000), noise)
    assert abs(float(scores.pow(4).mean()) - 3) < 0.3


def test_a_multiple_of_the_release_in_one_tensor_is_found() -> None:
    shapes = {"large": torch.Size([100_000]), "small": torch.Size([400])}
    mean = torch.ones(100_400, dtype=torch.float64)
    noise = SecureNoise("gaussian", 1.0).draw(100_400)
    noise[-400:] += 0.5
    assert "in small: it holds" in noise_mismatch(Noise("gaussian", 1.0), noise, mean, shapes)


SHAPES = {"first": torch.Size([300, 64]), "bias": torch.Size([300]), "kernels": torch.Size([8, 16, 3, 3])}


@pytest.mark.parametrize(
    ("name", "places", "factor"),
    [
        ("first", slice(64 * 5, 64 * 6), 0.0),
        ("first", slice(7, 300 * 64, 64), 0.0),
        ("first", slice(1000, 1031), 1e-3),
        ("first", slice(64 * 9, 64 * 10), 2.5),
        ("kernels", slice(300 * 65, 300 * 65 + 144), 0.0),
    ],
    ids=["row", "column", "run", "loud-row", "channel"],
)
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_noise_that_is_not_alike_all_over_a_tensor_is_found(law, name, places, factor) -> None:
    count = sum(shape.numel() for shape in SHAPES.values())
    noise, mean = SecureNoise(law, 1.0).draw(count), torch.zeros(count, dtype=torch.float64)
    assert noise_mismatch(Noise(law, 1.0), noise, mean, SHAPES) is None
    noise[places] *= factor
    # Not by the size of the whole tensor, which hardly changes.
    assert f" all over {name}: some of its rows" in noise_mismatch(Noise(law, 1.0), noise, mean, SHAPES)


def test_one_entry_far_beyond_the_noise_is_found() -> None:
    count = sum(shape.numel() for shape in SHAPES.values())
    noise, mean = SecureNoise("gaussian", 1.0).draw(count), torch.zeros(count, dtype=torch.float64)
    noise[300 * 64 + 5] = 9.5
    assert "all over bias" in noise_mismatch(Noise("gaussian", 1.0), noise, mean, SHAPES)


def test_noise_on_the_coarsest_grid_passes() -> None:
    large = torch.full((300 * 64,), 3.9e6)
    shapes, mean = {"first": SHAPES["first"]}, torch.zeros(300 * 64, dtype=torch.float64)
    for _ in range(20):
        difference = SecureNoise("gaussian", 1.0).added(large).double() - large.double()
        assert noise_mismatch(Noise("gaussian", 1.0), difference, mean, shapes) is None


def equal(noise):
    return noise


def negated(noise):
    return [-one for one in noise]


def in_the_weight_only(noise):
    return [*drawn_like(noise[:2]), noise[2], *drawn_like(noise[3:])]


def in_a_small_bias_only(noise):
    return [*drawn_like(noise[:3]), noise[3]]


def correlated(noise):
    return [0.9 * one + 0.19**0.5 * other for one, other in zip(noise, drawn_like(noise), strict=True)]


def drawn_like(noise) -> list[torch.Tensor]:
    return [SecureNoise("gaussian", NOISE).draw(one.numel()).reshape(one.shape).float() for one in noise]


CHANGES = (equal, negated, in_the_weight_only, in_a_small_bias_only, correlated)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("first", "second", "change"),
    [
        *((LENIENT, second, change) for second in (LENIENT, SANITISE) for change in CHANGES),
        *((SANITISE, second, equal) for second in (LENIENT, SANITISE)),
    ],
    ids=lambda one: getattr(one, "__name__", None) or ("as-it-is" if one is LENIENT else "sanitised"),
)
def test_noise_of_an_earlier_round_withholds(first, second, change) -> None:
    model = network()
    guard, noise = guard_of(model, first), drawn(model)
    assert guard.review(images(2), plus(gradient(model, images(2)), noise)).allowed
    guard.policy = second
    other = images(2, seed=5)
    decision = guard.review(other, plus(gradient(model, other), change(noise)))
    assert (decision.action, decision.update) == ("block", None)
    assert "isn't fresh" in decision.reasons[0]
    assert guard.review(other, plus(gradient(model, other), drawn(model))).allowed, "the next round works"


@pytest.mark.slow
def test_noise_taken_from_a_sanitised_update_withholds() -> None:
    """Scaled, so that it is of the size that the guard expects."""
    model, batch, other = network(), images(2), images(2, seed=5)
    guard = guard_of(model, SANITISE)
    decision = guard.review(batch, gradient(model, batch, NOISE))
    total = float(np.hypot(decision.noise_std, NOISE))
    taken = [
        (sent - clean) * NOISE / total for sent, clean in zip(decision.update, gradient(model, batch), strict=True)
    ]
    assert "isn't fresh" in guard.review(other, plus(gradient(model, other), taken)).reasons[0]


KEY = bytes(32)


def trace(scores: torch.Tensor, sizes: list[int], digest: bytes) -> Trace:
    return trace_of(KEY, scores.numpy(), sizes, digest)


def test_one_stream_for_tensors_of_two_sizes_is_found_within_a_round() -> None:
    stream = SecureNoise("gaussian", 1.0).draw(300)
    own = trace(torch.cat([stream[:200], stream]), [200, 300], b"a")
    assert "begins as another one did" in repetition(own, [])
    shifted = trace(torch.cat([SecureNoise("gaussian", 1.0).draw(100), stream[:200]]), [100, 200], b"b")
    later = trace(torch.cat([stream[:200], SecureNoise("gaussian", 1.0).draw(100)]), [200, 100], b"c")
    assert repetition(shifted, []) is None
    assert "begins as another one did" in repetition(later, [shifted])


@given(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=6), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_repeated_tensor_of_any_size_is_found_and_fresh_noise_is_not(sizes, data) -> None:
    memory, noise = NoiseMemory(), SecureNoise("gaussian", 1.0)
    first = noise.draw(sum(sizes))
    assert memory.refuse_or_remember(memory.traces([first], sizes, "first")) is None
    assert memory.refuse_or_remember(memory.traces([noise.draw(sum(sizes))], sizes, "second")) is None
    place = data.draw(st.integers(0, len(sizes) - 1))
    factor = data.draw(st.sampled_from([1.0, -1.0, 0.5]))
    again = noise.draw(sum(sizes))
    start = sum(sizes[:place])
    again[start : start + sizes[place]] = factor * first[start : start + sizes[place]]
    problem = memory.refuse_or_remember(memory.traces([again], sizes, "third"))
    assert (problem is not None) == (sizes[place] >= 3)


@pytest.mark.parametrize("size", [3, 4, 7, 15, 16, 40, 128])
def test_small_tensors_of_independent_noise_differ_and_nearly_equal_ones_do_not(size) -> None:
    """Rounding to float32 of noise as large as the gradient moves a direction by 1e-7 or so."""
    noise = SecureNoise("gaussian", 1.0)
    first = noise.draw(size)
    own = trace(first, [size], b"own")
    others = [trace(noise.draw(size), [size], b"") for _ in range(1000)]
    assert repetition(own, others) is None
    num_repeated = 0
    for seed in range(20):
        moved = -0.3 * first * (1 + 1e-7 * torch.randn(size, generator=torch.Generator().manual_seed(seed)))
        num_repeated += repetition(trace(moved, [size], b""), [own]) is not None
    assert num_repeated >= (19 if size > 3 else 0)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("size", "differing"), [(16, 0), (16, 40), (100, 250), (128, 350)])
def test_the_law_of_a_small_tensors_signs(size, differing) -> None:
    """Against pairs of drawn directions, and a tighter limit for rarer events."""
    generator = np.random.default_rng(0)
    pairs = generator.normal(size=(2, 200_000, size))
    pairs /= np.linalg.norm(pairs, axis=-1, keepdims=True)
    angles = np.arccos((pairs[0] * pairs[1]).sum(-1))
    chance = 2 * float(stats.binom.cdf(differing, 1024, angles / np.pi).mean())
    assert traces._least_apart(size, 1e-13) < traces._least_apart(size, 1e-3)
    if chance > 1e-4:
        assert traces._least_apart(size, 1.1 * chance) >= differing
        assert traces._least_apart(size, 0.9 * chance) <= differing


def test_the_same_update_again_passes() -> None:
    """Bit by bit, it tells nothing new."""
    model, batch = network(), images(2)
    guard, update = guard_of(model, LENIENT), gradient(model, batch, NOISE)
    assert [guard.review(batch, update).action for _ in range(3)] == ["allow"] * 3
    nudged = [part * (1 + 1e-6) for part in update]
    assert "isn't fresh" in guard.review(batch, nudged).reasons[0]


@pytest.mark.parametrize("noise", [None, NOISE], ids=["undefended", "some-noise"])
def test_a_sanitised_update_gets_no_second_draw(noise) -> None:
    model, (inputs, targets) = network(), images(2)
    guard = guard_of(model, SANITISE, noise)
    update = gradient(model, (inputs, targets), noise or 0.0)
    first = guard.review((inputs, targets), update)
    assert first.action == "sanitise"
    named = dict(zip([name for name, _ in model.named_parameters()], update, strict=True))
    order = [1, 0]
    for batch, given_update in (((inputs, targets), update), ((inputs[order], targets[order]), named)):
        again = guard.review(batch, given_update)
        assert again.action == "sanitise"
        values = again.update.values() if isinstance(again.update, dict) else again.update
        assert all(torch.equal(*pair) for pair in zip(values, first.update, strict=True))
    guard.policy = Policy(max_revealed=1e-4, on_violation="sanitise")
    stricter = guard.review((inputs, targets), update)
    assert (stricter.action, stricter.update) == ("block", None)
    assert "no second draw" in stricter.reasons[0]


def test_results_are_held_for_the_last_update_and_known_for_the_others(monkeypatch) -> None:
    monkeypatch.setattr("riskaudit.guard.noise.memory.ENTRIES", 10)
    model, batch, other = network(), images(2), images(2, seed=5)
    guard = guard_of(model, SANITISE, None)
    for each in (batch, other):
        assert guard.review(each, gradient(model, each)).allowed
    assert guard.review(other, gradient(model, other)).allowed
    assert "no second draw" in guard.review(batch, gradient(model, batch)).reasons[0]


@pytest.mark.slow
def test_memory_is_bounded(monkeypatch) -> None:
    memory = NoiseMemory()
    for number in range(1100):
        fresh = memory.traces([SecureNoise("gaussian", 1.0).draw(200)], [150, 50], str(number))
        assert memory.refuse_or_remember(fresh) is None
    assert len(memory._traces) == 1024
