"""Noise that isn't drawn anew for every entry, within an update and over rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from guard_cases import NOISE, gradient, guard_of, images, network
from hypothesis import given, settings
from hypothesis import strategies as st

from riskaudit.guard import Policy, SecureNoise
from riskaudit.guard.noise.law import normal_scores
from riskaudit.guard.noise.memory import NoiseMemory
from riskaudit.guard.noise.order import digit_width, extremes_of, ladder, least_distance, most_crowded
from riskaudit.guard.noise.patterns import _least_determinant, noise_pattern
from riskaudit.release import Noise

LENIENT = Policy(max_revealed=0.999)
SANITISE = Policy(max_revealed=0.01, on_violation="sanitise", on_failure="warn")
SMALL = {"conv": (4, 1, 3, 3), "conv.bias": (4,), "linear": (4, 64), "linear.bias": (4,)}
LENET = {
    "0": (12, 1, 5, 5), "0.bias": (12,), "1": (12, 12, 5, 5), "1.bias": (12,), "2": (12, 12, 5, 5), "2.bias": (12,),
    "3": (12, 12, 5, 5), "3.bias": (12,), "4": (10, 588), "4.bias": (10,),
}  # fmt: skip


def count_of(shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def draw(*shape: int, law: str = "gaussian") -> np.ndarray:
    return SecureNoise(law, 1.0).draw(math.prod(shape)).numpy().reshape(shape)


def judged(scores: np.ndarray, update: np.ndarray, noise_std: float, shapes) -> str | None:
    """As a guard does."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    return noise_pattern(scores, extremes_of(scores, sizes, digit_width(update, noise_std)), shapes)


def pattern(noise: np.ndarray, name: str = "linear") -> str | None:
    """Of noise on one tensor, besides a larger one with fresh noise, on a release of the same size, in float32."""
    shapes = {"other": (30, 30), name: noise.shape}
    scores = np.concatenate([draw(900), noise.reshape(-1)])
    release = draw(len(scores))
    update = (release + scores).astype(np.float32).astype(np.float64)
    return judged(update - release, update, 1.0, shapes)


def rows(a, b):
    return np.tile(draw(1, b), (a, 1))


def columns(a, b):
    return np.tile(draw(a, 1), (1, b))


def rows_in_pairs(a, b):
    return np.repeat(draw(a // 2, b), 2, axis=0)


def rows_negated(a, b):
    return np.concatenate([half := draw(a // 2, b), -half])


def rows_scaled(a, b):
    return rows(a, b) * np.sign(draw(a, 1)) * (0.5 + np.abs(draw(a, 1)))


def half_again_in_another_order(a, b):
    half = draw(a * b // 2)
    return np.concatenate([half, np.random.default_rng(0).permutation(half)]).reshape(a, b)


def half_reversed_with_other_signs(a, b):
    half = draw(a * b // 2)
    return np.concatenate([half, half[::-1] * np.sign(draw(a * b // 2))]).reshape(a, b)


def rows_rolled(a, b):
    one = draw(b)
    return np.stack([np.roll(one, place) for place in range(a)])


def sums_of_three_rows(a, b):
    return draw(a, 3) @ draw(3, b) / math.sqrt(3)


def repeated_block(a, b):
    return np.resize(draw(a * b // 4 + 1), a * b).reshape(a, b)


WITHIN = [
    rows, columns, rows_in_pairs, rows_negated, rows_scaled, half_again_in_another_order,
    half_reversed_with_other_signs, rows_rolled, sums_of_three_rows, repeated_block,
]  # fmt: skip


@pytest.mark.parametrize("shape", [(16, 8), (8, 16), (10, 588), (64, 64), (256, 100)], ids=str)
@pytest.mark.parametrize("change", WITHIN, ids=lambda one: one.__name__)
def test_one_draw_in_several_places_of_a_tensor_is_noticed(change, shape) -> None:
    assert pattern(draw(*shape)) is None
    assert "isn't fresh in every entry" in pattern(change(*shape))


@pytest.mark.parametrize("axis", range(4))
def test_noise_equal_along_an_axis_of_a_kernel_is_noticed(axis) -> None:
    shape = [12, 6, 5, 5]
    taken = [1 if place == axis else size for place, size in enumerate(shape)]
    assert "every entry in linear" in pattern(np.broadcast_to(draw(*taken), shape).copy())


def test_smoothed_noise_is_noticed() -> None:
    """Of the right size, but every entry depends on its neighbours."""
    noise = draw(5001)
    assert "entries follow" in pattern((noise[1:] + noise[:-1]) / math.sqrt(2))


def test_noise_of_one_tensor_in_another_is_noticed() -> None:
    shapes = {"a": (20, 20), "b": (30, 20), "c": (12,), "d": (12,)}
    fresh = draw(count_of(shapes))
    fresh[400:800] = np.random.default_rng(0).permutation(fresh[:400])
    assert "values come several times" in judged(fresh, fresh, 1.0, shapes)
    again = draw(count_of(shapes))
    again[1012:] = -again[1000:1012][::-1]
    memory = NoiseMemory()
    told = memory.refuse_or_remember(memory.traces([torch.tensor(again)], [400, 600, 12, 12], "first"))
    assert "another order or another tensor" in told


CHANGES = {
    "permuted": lambda one: np.random.default_rng(0).permutation(one),
    "rolled": lambda one: np.roll(one, len(one) // 3 + 1),
    "reversed": lambda one: one[::-1],
    "sorted": np.sort,
    "of other signs": lambda one: one * np.where(draw(len(one)) > 0, 1, -1),
}


@given(
    shape=st.lists(st.integers(8, 2000), min_size=1, max_size=4),
    changes=st.lists(st.sampled_from(list(CHANGES)), min_size=1, max_size=3),
    factor=st.sampled_from([1.0, -1.0, 0.98]),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_an_earlier_rounds_noise_in_another_order_is_noticed(shape, changes, factor, data) -> None:
    """In one tensor, handed over to another one as large, with whatever order and signs; in float32."""
    sizes = [*shape, shape[0]]
    first, second, third = draw(sum(sizes)), draw(sum(sizes)), draw(sum(sizes))
    place = data.draw(st.integers(0, len(sizes) - 1))
    target = data.draw(st.sampled_from([number for number, size in enumerate(sizes) if size == sizes[place]]))
    starts = np.cumsum([0, *sizes])
    changed = first[starts[place] : starts[place + 1]]
    for change in changes:
        changed = CHANGES[change](changed)
    third[starts[target] : starts[target + 1]] = factor * changed
    rounding = 1e-7 * draw(sum(sizes))
    memory = NoiseMemory()
    answers = [
        memory.refuse_or_remember(memory.traces([torch.tensor(noise)], sizes, str(number)))
        for number, noise in enumerate((first, second, third + rounding))
    ]
    assert answers[:2] == [None, None]
    assert answers[2] is not None


@pytest.mark.parametrize("change", CHANGES)
def test_all_noise_in_another_order_is_noticed(change) -> None:
    sizes = [300, 12, 40]
    memory, first = NoiseMemory(), draw(352)
    assert memory.refuse_or_remember(memory.traces([torch.tensor(first)], sizes, "first")) is None
    again = torch.tensor(CHANGES[change](first).copy())
    assert memory.refuse_or_remember(memory.traces([again], sizes, "second")) is not None


@pytest.mark.sampled(1)
@pytest.mark.parametrize("policy", [LENIENT, SANITISE], ids=["as-it-is", "sanitised"])
def test_the_guard_withholds_whatever_the_policy_says(policy) -> None:
    model, batch, other = network(), images(2), images(2, seed=5)
    guard, fresh = guard_of(model, policy), torch.tensor(NOISE * draw(count_of(SMALL))).float()
    sizes, clean = [36, 4, 256, 4], gradient(model, batch)

    def review(given_batch, noise):
        update = [
            one + each.reshape(one.shape)
            for one, each in zip(gradient(model, given_batch), noise.split(sizes), strict=True)
        ]
        return guard.review(given_batch, update)

    linear = clean[2].numel()
    equal_rows = fresh.clone()
    equal_rows[40:296] = (fresh[40:104].reshape(1, -1).expand(4, -1)).reshape(-1)
    said = review(batch, equal_rows)
    assert linear == 256
    assert (said.action, said.update) == ("block", None)
    assert "isn't fresh in every entry" in said.reasons[0]
    assert review(batch, fresh).allowed
    for changed in (fresh.roll(7), fresh.flip(0), -fresh[torch.randperm(300)]):
        said = review(other, changed)
        assert (said.action, said.update) == ("block", None)
        assert "isn't fresh" in said.reasons[0]
    assert review(other, torch.tensor(NOISE * draw(300)).float()).allowed, "the next round works"


def rounds_of(shapes, law: str, made, rounds: int) -> int:
    """How many rounds of fresh noise are taken for something else."""
    noise, memory, alarms = Noise(law, 0.3), NoiseMemory(), 0
    sizes = [math.prod(shape) for shape in shapes.values()]
    release = torch.linspace(-1, 1, count_of(shapes), dtype=torch.float64) ** 3
    release[: count_of(shapes) // 3] = 0
    for number in range(rounds):
        update = made(release)
        scores = normal_scores(update - release, noise)
        alarms += judged(scores.numpy(), update.numpy(), noise.std, shapes) is not None
        extremes = extremes_of(scores.numpy(), sizes, digit_width(update.numpy(), noise.std))
        made_of_it = memory.traces([scores], sizes, str(number), extremes)
        alarms += memory.refuse_or_remember(made_of_it) is not None
    return alarms


@pytest.mark.sampled(2)
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shapes", [SMALL, LENET], ids=["small", "lenet"])
def test_fresh_noise_passes(shapes, law, dtype) -> None:
    """On the grid that the guard's own noise is rounded to; a third of the release is zero, where grids show."""
    made = lambda release: SecureNoise(law, 0.3).added(release.to(dtype)).double()  # noqa: E731
    assert rounds_of(shapes, law, made, 40) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_fresh_noise_of_a_clients_own_generator_passes(dtype) -> None:
    def made(release):
        return (release.to(dtype) + (0.3 * torch.randn(len(release))).to(dtype)).double()

    assert rounds_of(SMALL, "gaussian", made, 40) == 0


@pytest.mark.parametrize("step_size", [1.0, 0.1, 0.3, 1e-3])
@pytest.mark.parametrize("shape", [(32, 64), (256, 784)], ids=str)
def test_fresh_noise_on_a_grid_passes_when_it_is_read_off_weights(step_size, shape) -> None:
    """Without a gradient only the grid's noise is left, divided by a step size that is no power of two."""
    for _ in range(10):
        noisy = SecureNoise("gaussian", 0.3).added(torch.zeros(shape).reshape(-1))
        weights = torch.zeros(len(noisy)).sub(noisy, alpha=step_size)
        update = -weights.double().numpy() / step_size
        assert 2.0**-12 < digit_width(update, 0.3) < 2.0**-7
        assert judged(update / 0.3, update, 0.3, {"weight": shape}) is None


@pytest.mark.sampled(2)
@pytest.mark.parametrize("count", [8, 12, 40, 300, 3600])
def test_independent_fingerprints_are_near_each_other_as_rarely_as_stated(count) -> None:
    prints = np.stack([one.fingerprint() for _ in range(1000) for one in extremes_of(draw(count), [count])])
    distances = np.abs(prints[:, None] - prints[None]).sum(-1)[np.triu_indices(1000, 1)]
    assert prints.shape[1] == len(ladder(count)) - 1
    for failure in (1e-1, 1e-2, 1e-3, 1e-4):
        # Without what the bound has in reserve.
        assert (distances <= least_distance(prints.shape[1], 10 * failure)).mean() <= 1.2 * failure


@pytest.mark.parametrize("count", [8, 64])
def test_crowding_is_as_rare_as_stated(count) -> None:
    crowding = np.array([one.crowding() for _ in range(4000) for one in extremes_of(draw(count), [count])])
    for failure in (0.3, 1e-1, 1e-2):
        assert 0 < (crowding > most_crowded(count, failure)).mean() <= failure


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("rows_of", "columns_of"), [(2, 4), (12, 300), (32, 64)])
def test_determinants_are_as_rarely_small_as_stated(rows_of, columns_of) -> None:
    drawn = draw(4000, rows_of, columns_of)
    logarithms = np.linalg.slogdet(drawn @ drawn.transpose(0, 2, 1))[1]
    for failure in (0.3, 1e-1, 1e-2):
        rate = (logarithms < _least_determinant(rows_of, columns_of, failure)).mean()
        # The rarest may not come at all in 4000 draws.
        assert (0 if failure < 0.1 else 1e-9) <= rate <= failure


@pytest.mark.parametrize(("step", "width"), [(2.0**-10, 2.0**-10), (2.0**-3, 2.0**-3), (None, 0.0)])
def test_the_width_of_the_last_digit(step, width) -> None:
    values = draw(4000)
    values = values if step is None else np.round(values / step) * step
    assert width <= digit_width(values, 1.0) <= max(1e-14, 4 * width)


def test_two_equal_values_in_single_precision_are_no_pattern() -> None:
    """As chance makes them once in some thousand updates."""
    for _ in range(20):
        update = draw(300).astype(np.float32).astype(np.float64)
        update[7] = -update[3]
        assert judged(update, update, 1.0, SMALL) is None
