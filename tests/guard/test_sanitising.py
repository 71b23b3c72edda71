"""What sanitising sends: the least noise, clipped gradients, or fewer samples; always within the limits."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from guard_cases import NOISE, PRIOR_STD, gradient, guard_of, images, network, revealed, spectra
from scipy.optimize import brentq

from riskaudit.guard import Guard, Policy

LIMIT = 0.05


def sanitise(**options):
    return Policy(max_revealed=LIMIT, on_violation="sanitise", **options)


def flat(update) -> torch.Tensor:
    return torch.cat([part.reshape(-1).double() for part in update])


def smallest_noise(model, batch, limit: float = LIMIT) -> float:
    """By bisection on the exact spectra."""
    eigenvalues = spectra(model, batch)
    root = brentq(lambda log: float(revealed(eigenvalues, math.exp(log)).max()) - limit, -12, 5, xtol=1e-10)
    return math.exp(root)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("noise", [None, NOISE], ids=["undefended", "some-noise"])
def test_noise_is_the_smallest_within_five_percent(noise) -> None:
    model, batch = network(), images(3)
    decision = guard_of(model, sanitise(), noise).review(batch, gradient(model, batch, noise or 0.0))
    total = math.hypot(decision.noise_std, noise or 0.0)
    smallest = smallest_noise(model, batch)
    assert decision.action == "sanitise"
    assert smallest <= total <= 1.05 * smallest
    assert float(revealed(spectra(model, batch), total).max()) <= LIMIT
    assert all(one.revealed.high <= LIMIT for one in decision.exposures)


def test_min_rmse_is_met_too() -> None:
    model, batch, least = network(), images(3), 0.29
    policy = Policy(min_rmse=least, on_violation="sanitise")
    decision = guard_of(model, policy).review(batch, gradient(model, batch, NOISE))
    total = math.hypot(decision.noise_std, NOISE)
    errors = PRIOR_STD * (1 - revealed(spectra(model, batch), total)).sqrt()
    assert least <= float(errors.min()) <= least + 0.001


def test_the_noise_is_on_the_update() -> None:
    model, batch = network(), images(3)
    update = gradient(model, batch)
    first, second = (guard_of(model, sanitise(), None).review(batch, update) for _ in range(2))
    added = flat(first.update) - flat(update)
    count = len(added)
    assert first.noise_std * (1 - 5 / math.sqrt(2 * count)) < float(added.std()) < first.noise_std * 1.3
    assert not torch.equal(first.update[0], second.update[0]), "noise that repeats can be taken off"


def test_an_update_within_the_limits_is_left_alone() -> None:
    model, batch = network(), images(3)
    loud = 10 * smallest_noise(model, batch)
    decision = guard_of(model, sanitise(), loud).review(batch, gradient(model, batch, loud))
    assert (decision.action, decision.noise_std) == ("allow", 0.0)


def test_gaussian_noise_on_top_of_laplace_noise_does_not_count_on_it() -> None:
    model, batch, scale = network(), images(3), 1e-4
    release = torch.distributions.Laplace(0.0, scale)
    torch.manual_seed(1)
    update = [part + release.sample(part.shape) for part in gradient(model, batch)]
    decision = guard_of(model, sanitise(), release=f"laplace:{scale}").review(batch, update)
    assert decision.action == "sanitise", decision.reasons
    assert smallest_noise(model, batch) <= decision.noise_std <= 1.05 * smallest_noise(model, batch)


def test_clipping_comes_first() -> None:
    model, batch, norm = network(), images(3), 0.2
    policy = sanitise(sanitiser="clip", clip_norm=norm)
    decision = guard_of(model, policy, None).review(batch, gradient(model, batch))
    assert decision.action == "sanitise"
    assert any("clipped to 0.2" in reason for reason in decision.reasons)
    clipped = spectra(model, batch, f"clip:{norm}")
    assert float(revealed(clipped, decision.noise_std).max()) <= LIMIT
    assert decision.noise_std < smallest_noise(model, batch)
    each = [gradient(model, (batch[0][k : k + 1], batch[1][k : k + 1])) for k in range(3)]
    mean = torch.stack([flat(one) * min(1.0, norm / float(flat(one).norm())) for one in each]).mean(0)
    count = len(mean)
    distance = float((flat(decision.update) - mean).norm()) / math.sqrt(count)
    assert 0.7 * decision.noise_std < distance < 1.3 * decision.noise_std


def exposed_one() -> tuple[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A batch in which one sample reveals far more than the others: only its loss is large."""
    model, inputs = network(), images(8)[0]
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))
    return model, (inputs, torch.tensor([0, 0, 0, 1, 0, 0, 0, 0]))


def test_the_exposed_are_left_out() -> None:
    model, batch = exposed_one()
    exact, noise = spectra(model, batch), 1e-3
    shares = revealed(exact, noise).tolist()
    assert shares[3] > 0.3
    assert shares[0] < 0.01
    policy = Policy(max_revealed=0.2, on_violation="sanitise", sanitiser="drop")
    update = gradient(model, batch, noise)
    decision = guard_of(model, policy, noise).review(batch, update)
    assert (decision.action, decision.dropped, len(decision.exposures)) == ("sanitise", 1, 7)
    kept = [0, 1, 2, 4, 5, 6, 7]
    remaining = gradient(model, (batch[0][kept], batch[1][kept]))
    drawn = flat(update) - flat(gradient(model, batch))
    torch.testing.assert_close(flat(decision.update), flat(remaining) + drawn, rtol=0, atol=1e-6)
    assert float(revealed(exact[kept], noise).max()) <= 0.2


def test_leaving_out_everybody_is_blocking() -> None:
    model, batch = network(), images(3)
    policy = Policy(max_revealed=1e-4, on_violation="sanitise", sanitiser="drop")
    decision = guard_of(model, policy).review(batch, gradient(model, batch, NOISE))
    assert (decision.action, decision.update) == ("block", None)
    assert "sanitising by drop" in decision.reasons[-1]


def test_a_limit_that_no_noise_reaches() -> None:
    model, batch = network(), images(3)
    policy = Policy(min_rmse=2 * PRIOR_STD, on_violation="sanitise")
    decision = guard_of(model, policy).review(batch, gradient(model, batch, NOISE))
    assert decision.action == "block"
    assert "sanitising by noise" in decision.reasons[-1]


@pytest.mark.slow
def test_totals_of_the_ledger_are_kept(tmp_path) -> None:
    """The noise grows with what has left already, until no noise will do."""
    model, batch = network(), images(3)
    policy = Policy(max_total_revealed=0.2, on_violation="sanitise")
    guard = guard_of(model, policy, ledger=tmp_path / "ledger.db")
    decisions = [guard.review(batch, gradient(model, batch, NOISE, seed), ids=range(3)) for seed in range(8)]
    assert all(one.total_revealed.high <= 0.2 for each in decisions if each.allowed for one in each.exposures)
    assert {each.action for each in decisions} <= {"allow", "sanitise", "block"}
    assert any(each.noise_std > 0 for each in decisions)
    noises = [each.noise_std for each in decisions if each.action == "sanitise"]
    # Each is known by draws of its own.
    assert all(later > 0.9 * earlier for earlier, later in pairwise(noises))


def test_a_gap_between_classes_is_closed() -> None:
    model, batch = exposed_one()
    policy = Policy(max_class_gap=0.05, on_violation="sanitise")
    decision = guard_of(model, policy, 1e-3).review(batch, gradient(model, batch, 1e-3))
    assert decision.action == "sanitise"
    shares = revealed(spectra(model, batch), math.hypot(decision.noise_std, 1e-3))
    assert abs(float(shares[3]) - float(shares[[0, 1, 2, 4, 5, 6, 7]].mean())) <= 0.05


def test_what_the_comparison_tolerates_does_not_leave() -> None:
    """Without noise of its own, an update may differ from the gradient by a little: nobody has reviewed that part."""
    model, batch = network(), images(3)
    update = gradient(model, batch)
    length = float(flat(update).norm())
    hidden = torch.zeros_like(update[-2])
    hidden[0] = batch[0][0].reshape(-1)
    hidden *= 9e-4 * length / float(hidden.norm())
    update[-2] = update[-2] + hidden
    policy = Policy(max_revealed=0.9, on_violation="sanitise", sanitiser="clip", clip_norm=1e-5)
    decision = guard_of(model, policy, None).review(batch, update)
    assert decision.action == "sanitise"
    assert float(flat(decision.update).norm()) < 1e-5 + 3 * decision.noise_std * len(flat(update)) ** 0.5


def test_noise_that_would_leave_nothing_of_the_update_withholds_it() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)).double()
    inputs = images(2)[0].double()
    with torch.no_grad():
        # Fitted but for a trifle: next to no gradient, and a derivative all the same.
        targets = model(inputs) + 1e-3
    loss = torch.nn.MSELoss()
    update = torch.autograd.grad(loss(model(inputs), targets), list(model.parameters()))
    policy = Policy(max_revealed=1e-4, on_violation="sanitise")
    guard = Guard(model, loss, policy, prior_std=PRIOR_STD, release="gradient", local_steps=1)
    decision = guard.review((inputs, targets), update)
    assert (decision.action, decision.update) == ("block", None)
    assert any("norm of the whole update" in reason for reason in decision.reasons), decision.reasons
