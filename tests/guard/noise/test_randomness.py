"""Protective noise: its law, that nobody can repeat it, and that its floating point tells nothing."""

from __future__ import annotations

import inspect
import json
import pickle
import random
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from guard_cases import NOISE, PRIOR_STD, gradient, guard_of, images, network
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from scipy import stats

from riskaudit.errors import GuardError, SettingsError
from riskaudit.guard import Guard, Policy, SecureNoise
from riskaudit.guard.noise import randomness
from riskaudit.integrations.gradients import add_noise

COUNT = 200_000
LAWS = {"gaussian": stats.norm(scale=0.7), "laplace": stats.laplace(scale=0.7)}
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# A test that compares draws with their law fails so seldom by chance.
SELDOM = 1e-6


@pytest.mark.parametrize("law", LAWS)
def test_draws_follow_their_law(law) -> None:
    drawn = SecureNoise(law, 0.7).draw(COUNT).numpy()
    assert drawn.dtype == np.float64
    assert stats.kstest(drawn, LAWS[law].cdf).pvalue > SELDOM
    moments = [float(LAWS[law].stats(moments="v")), float(LAWS[law].stats(moments="k")) + 3]
    for power, expected in ((2, moments[0]), (4, moments[1] * moments[0] ** 2)):
        powers = drawn**power
        assert abs(powers.mean() - expected) < 6 * powers.std() / COUNT**0.5
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 6 / COUNT**0.5
    assert len(np.unique(drawn)) == COUNT


@pytest.mark.parametrize("law", LAWS)
def test_tails_go_beyond_what_53_bits_resolve(law, monkeypatch) -> None:
    """With the smallest magnitudes there are: no infinity, the relative precision of float64, and both signs."""
    words = iter([np.array([0, 1, 2**64 - 2, 2**64 - 1], np.uint64), np.array([0, 2**64 - 1], np.uint64)])
    monkeypatch.setattr(randomness, "_words", lambda count: next(words))
    low, high, *middle = SecureNoise(law, 1.0).draw(4).tolist()
    unit = {"gaussian": stats.norm(), "laplace": stats.laplace()}[law]
    assert high > 9 > -9 > low
    assert unit.cdf(low) == pytest.approx(2.0**-129, rel=1e-9)
    assert unit.sf(high) == pytest.approx(2.0**-64, rel=1e-9)
    assert all(abs(one) < 1e-8 for one in middle)


def test_the_middle_of_the_tail_is_as_frequent_as_it_should_be() -> None:
    drawn = np.abs(SecureNoise("gaussian", 1.0).draw(4_000_000).numpy())
    for far in (3.0, 4.0, 4.8):
        expected = 2 * stats.norm.sf(far)
        count = int((drawn > far).sum())
        low, high = stats.binom(len(drawn), expected).interval(1 - SELDOM)
        assert low <= count <= high


@pytest.mark.parametrize("law", ["", "student", None])
def test_other_laws_and_scales_are_refused(law) -> None:
    with pytest.raises(SettingsError, match="law"):
        SecureNoise(law, 1.0)
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(SettingsError, match="scale"):
            SecureNoise("gaussian", scale)


def test_nothing_takes_a_seed_or_a_generator() -> None:
    for function in (SecureNoise, SecureNoise.draw, SecureNoise.added, add_noise, Guard, Guard.review):
        names = set(inspect.signature(function).parameters)
        assert not names & {"seed", "generator", "rng", "random_state", "noise_generator"}, function
    with pytest.raises(TypeError):
        SecureNoise("gaussian", 1.0).draw(3, generator=torch.Generator())  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Guard(network(), "cross-entropy", Policy(max_revealed=1.0), prior_std=0.3, generator=torch.Generator())


def seed_everything(monkeypatch) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    monkeypatch.setattr(secrets, "randbits", lambda bits: 5)


def states() -> list[bytes]:
    legacy = np.random.get_state()
    return [torch.get_rng_state().numpy().tobytes(), pickle.dumps(legacy), pickle.dumps(random.getstate())]


def drawn_by_the_sampler() -> torch.Tensor:
    return SecureNoise("gaussian", 1.0).draw(50)


def drawn_by_add_noise() -> torch.Tensor:
    layer = torch.nn.Linear(5, 5)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state = torch.get_rng_state()
    add_noise(layer, 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    return layer.weight.grad


def drawn_by_sanitising() -> torch.Tensor:
    batch, model = images(), network()
    guard = guard_of(model, Policy(max_revealed=0.05, on_violation="sanitise"), None)
    return guard.review(batch, gradient(model, batch)).update[2]


@pytest.mark.slow
@pytest.mark.parametrize("draw", [drawn_by_the_sampler, drawn_by_add_noise, drawn_by_sanitising])
def test_seeds_set_elsewhere_change_nothing(draw, monkeypatch) -> None:
    drawn = []
    for _ in range(2):
        seed_everything(monkeypatch)
        drawn.append(draw())
    # Rounded to a grid, two independent draws may agree in an entry or two.
    assert float((drawn[0] == drawn[1]).double().mean()) < 0.1


def test_drawing_leaves_the_callers_random_numbers_alone() -> None:
    before = states()
    SecureNoise("gaussian", 1.0).draw(50)
    assert states() == before


FORK = """
import os
from riskaudit.guard import SecureNoise

noise = SecureNoise("gaussian", 1.0)
noise.draw(10)
child = os.fork()
if child:
    os.waitpid(child, 0)
os.write(1, noise.draw(20).numpy().tobytes())
os._exit(0)
"""


@pytest.mark.slow
def test_forked_processes_and_threads_share_no_draw() -> None:
    """The fork is in a process of its own: in one with threads it may wait for a lock that nobody holds any more."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, check=True, timeout=300)
    theirs = np.frombuffer(done.stdout)
    assert len(theirs) == 40
    noise = SecureNoise("gaussian", 1.0)
    with ThreadPoolExecutor(4) as pool:
        others = [part.numpy() for part in pool.map(noise.draw, [20] * 40)]
    every = np.concatenate([theirs, *others])
    assert len(np.unique(every)) == len(every) == 42 * 20


def test_two_draws_are_independent() -> None:
    first, second = (SecureNoise("gaussian", 1.0).draw(COUNT) for _ in range(2))
    assert abs(float(first @ second)) < 6 * COUNT**0.5


def lies_on_a_grid(held: torch.Tensor, std: float) -> bool:
    """Whether all entries are multiples of a power of two that is at most a quarter of the noise's std."""
    exact = held.double()
    step = 2.0 ** np.floor(np.log2(std / 4))
    finest = step * 2.0**-8
    return bool(torch.equal(exact, torch.round(exact / finest) * finest)) and bool(torch.isfinite(exact).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(
    shape=array_shapes(min_dims=0, max_dims=3, max_side=6, min_side=0),
    exponent=st.integers(-12, 4),
    ratio=st.floats(0, 30),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_releases_lie_on_the_grid_in_every_dtype(dtype, shape, exponent, ratio, seed) -> None:
    std = 1.37 * 2.0**exponent
    values = torch.from_numpy(np.random.default_rng(seed).normal(scale=ratio * std / 3, size=shape)).to(dtype)
    values = values.clamp(-ratio * std, ratio * std)
    held = SecureNoise("gaussian", std).added(values)
    assert (held.shape, held.dtype) == (values.shape, dtype)
    assert lies_on_a_grid(held, std)
    if held.numel():
        assert float((held.double() - values.double()).abs().max()) < 9 * std


def test_which_outputs_can_be_reached_does_not_depend_on_the_value() -> None:
    """The same multiples come of two values whose sums with noise in float32 would have other last bits."""
    reached = [
        set(SecureNoise("gaussian", 1.0).added(torch.full((400_000,), value)).tolist()) for value in (0.1, 0.7000001)
    ]
    # 2^-10 wide cells, 6000 of which lie within three standard deviations of both values.
    inner = [{one for one in each if abs(one - 0.4) < 0.5} for each in reached]
    assert inner[0] == inner[1]
    assert len(inner[0]) == pytest.approx(1024, abs=2)


def test_the_step_costs_next_to_no_variance() -> None:
    values = torch.full((COUNT,), 0.3141592653589793, dtype=torch.float64)
    left = SecureNoise("gaussian", 1.0).added(values) - values
    assert abs(float(left.square().mean()) - 1) < 6 * (2 / COUNT) ** 0.5
    assert abs(float(left.mean())) < 6 / COUNT**0.5


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float16, 600.0), (torch.bfloat16, 100.0), (torch.float32, 1e7), (torch.float16, 7e4)]
)
def test_a_dtype_that_can_not_hold_the_grid_is_refused(dtype, value) -> None:
    values = torch.tensor([0.0, value]).to(dtype)
    values[1] = min(value, torch.finfo(dtype).max)
    with pytest.raises(GuardError, match=r"entries of at most .* clip") as raised:
        SecureNoise("gaussian", 1.0).added(values)
    assert f"{value:g}" not in str(raised.value), "the private value isn't printed"


def test_add_noise_changes_nothing_where_it_refuses() -> None:
    layer = torch.nn.Linear(2, 2).half()
    for parameter, value in zip(layer.parameters(), (0.0, 1000.0), strict=True):
        parameter.grad = torch.full_like(parameter, value)
    with pytest.raises(GuardError, match="float16"):
        add_noise(layer, 1.0)
    assert not layer.weight.grad.any()


def test_no_noise_changes_nothing_and_what_overflowed_stays_no_number() -> None:
    values = torch.tensor([0.1, 1e30])
    assert torch.equal(SecureNoise("gaussian", 0.0).added(values), values)
    assert SecureNoise("gaussian", 1.0).added(torch.tensor([0.1, torch.inf])).isnan().all()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sanitiser", ["noise", "clip"])
def test_sanitised_updates_lie_on_the_grid(sanitiser, dtype) -> None:
    model, batch = network(), images()
    clip_norm = 0.05 if sanitiser == "clip" else None
    policy = Policy(max_revealed=0.05, on_violation="sanitise", sanitiser=sanitiser, clip_norm=clip_norm)
    update = [part.to(dtype) for part in gradient(model, batch, 4 * NOISE)]
    decision = guard_of(model, policy, 4 * NOISE).review(batch, update)
    assert decision.action == "sanitise", decision.reasons
    total = float(np.hypot(decision.noise_std, 4 * NOISE))
    assert all(part.dtype == dtype and lies_on_a_grid(part, total) for part in decision.update)


def test_sanitising_that_the_dtype_can_not_hold_withholds() -> None:
    model, batch = network(), images()
    update = [part.half() for part in gradient(model, batch)]
    policy = Policy(max_revealed=1 - 1e-7, on_violation="sanitise", on_failure="warn")
    decision = guard_of(model, policy, None).review(batch, update)
    assert (decision.action, decision.update) == ("block", None)
    assert "sanitising failed: expected entries" in decision.reasons[-1]


def test_neither_decision_nor_log_nor_ledger_hold_a_seed_or_the_noise(tmp_path) -> None:
    model, batch = network(), images()
    policy = Policy(max_revealed=0.05, on_violation="sanitise")
    files = {"log": tmp_path / "log.jsonl", "ledger": tmp_path / "ledger.db"}
    guard = guard_of(model, policy, None, **files)
    update = gradient(model, batch)
    decision = guard.review(batch, update)
    assert decision.action == "sanitise"
    (entry,) = [json.loads(line) for line in files["log"].read_text().splitlines()]
    assert not {name for name in [*entry, *vars(decision)] if "seed" in name or "generator" in name}
    guard.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    added = decision.update[2].double() - update[2].double()
    for dtype in (torch.float32, torch.float64):
        assert added[0, :2].to(dtype).numpy().tobytes() not in stored


def test_the_examples_use_this_noise() -> None:
    """No example draws what it sends from a generator that a seed repeats."""
    root = Path(__file__).parents[3]
    for path in [*root.glob("examples/**/*.py"), *root.glob("docs/*.md"), root / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert "randn_like" not in text, path
        assert "torch.normal" not in text, path


@pytest.mark.slow
def test_processes_started_alike_draw_differently() -> None:
    code = "import torch; torch.manual_seed(0)\nfrom riskaudit.guard import SecureNoise\n"
    code += "print(SecureNoise('gaussian', 1.0).draw(4).tolist())"
    lines = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(lines) == 2


def test_probes_of_a_review_are_not_foreseen(monkeypatch) -> None:
    """Who chose the weights could otherwise choose them against the probes."""
    model, batch = network(), images()
    seen = []
    for _ in range(2):
        seed_everything(monkeypatch)
        guard = Guard(
            model,
            "cross-entropy",
            Policy(max_revealed=0.9),
            prior_std=PRIOR_STD,
            release="gaussian:0.02",
            local_steps=1,
        )
        seen.append(guard.assess(batch).exposures)
    assert [one.revealed for one in seen[0]] != [one.revealed for one in seen[1]]
