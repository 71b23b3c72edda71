"""What a review decides, and what it hands back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from guard_cases import NOISE, PRIOR_STD, gradient, guard_of, images, network, revealed, spectra
from torch import nn

from riskaudit import audit
from riskaudit.errors import ReleaseError, SettingsError
from riskaudit.guard import Guard, Policy
from riskaudit.inputs import Samples
from riskaudit.priors import GaussianPrior, fit_prior, save_prior


@pytest.fixture
def client():
    model, batch = network(), images()
    return model, batch, gradient(model, batch, NOISE)


def test_within_the_limit_passes_as_it_is(client) -> None:
    model, batch, update = client
    decision = guard_of(model, Policy(max_revealed=0.9)).review(batch, update)
    assert (decision.action, decision.allowed) == ("allow", True)
    assert ["all 6 samples" in reason for reason in decision.reasons] == [True]
    for sent, made in zip(decision.update, update, strict=True):
        assert torch.equal(sent, made)
        assert sent.dtype == made.dtype


def test_over_the_limit_is_withheld(client) -> None:
    model, batch, update = client
    decision = guard_of(model, Policy(max_revealed=0.01)).review(batch, update)
    assert (decision.action, decision.update, decision.update_digest) == ("block", None, "")
    assert ["6 of 6 samples" in reason and "0.01" in reason for reason in decision.reasons] == [True]


def test_warn_passes_and_says_why(client) -> None:
    model, batch, update = client
    decision = guard_of(model, Policy(max_revealed=0.01, on_violation="warn")).review(batch, update)
    assert decision.action == "warn"
    assert all(torch.equal(*pair) for pair in zip(decision.update, update, strict=True))
    assert ["6 of 6 samples" in reason and "0.01" in reason for reason in decision.reasons] == [True]


def test_an_update_without_noise_reveals_everything() -> None:
    model, batch = network(), images()
    decision = guard_of(model, Policy(max_revealed=0.99), None).review(batch, gradient(model, batch))
    assert decision.action == "block"
    assert "no noise: assume full disclosure" in decision.reasons[0]


def test_a_mapping_comes_back_as_a_mapping(client) -> None:
    model, batch, update = client
    named = dict(zip([name for name, _ in model.named_parameters()], update, strict=True))
    decision = guard_of(model, Policy(max_revealed=0.9)).review(batch, dict(reversed(named.items())))
    assert decision.action == "allow"
    assert {name: value.tolist() for name, value in decision.update.items()} == {
        name: value.tolist() for name, value in named.items()
    }


def test_arrays_are_taken_too(client) -> None:
    model, (inputs, targets), update = client
    guard = guard_of(model, Policy(max_revealed=0.9))
    decision = guard.review((inputs.numpy(), targets.numpy()), [value.numpy() for value in update])
    assert decision.action == "allow"
    np.testing.assert_array_equal(decision.update[0].numpy(), update[0].numpy())


def test_changing_the_update_afterwards_changes_nothing(client) -> None:
    model, batch, update = client
    decision = guard_of(model, Policy(max_revealed=0.9)).review(batch, update)
    before = decision.update[0].clone()
    update[0].add_(1.0)
    assert torch.equal(decision.update[0], before)


def test_the_model_stays_as_it_was(client) -> None:
    model, batch, update = client
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guard_of(model, Policy(max_revealed=0.9)).review(batch, update)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None and value.requires_grad for value in model.parameters())


def test_every_interval_holds_the_dense_value(client) -> None:
    model, batch, update = client
    decision = guard_of(model, Policy(max_revealed=0.9)).review(batch, update)
    exact = revealed(spectra(model, batch), NOISE)
    for one, value in zip(decision.exposures, exact.tolist(), strict=True):
        assert one.revealed.low <= value <= one.revealed.high
        assert one.rmse.low <= PRIOR_STD * (1 - value) ** 0.5 <= one.rmse.high
        assert one.revealed.high < 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize("release", ["gaussian", "clip", "mask", "laplace"])
def test_numbers_are_those_of_an_audit_with_batch_size_times_the_noise(release) -> None:
    """One definition of the release for the scan and for the guard."""
    model, batch = network(), images()
    steps = {"gaussian": "", "laplace": "", "clip": "clip:0.5,", "mask": "mask:0.5:3,"}[release]
    law = "laplace" if release == "laplace" else "gaussian"
    whole = audit(
        model.eval(), Samples.from_tensors(*batch), release=f"{steps}{law}:{6 * NOISE}", prior_mean=0.0,
        prior_std=PRIOR_STD, solver="dense",
    )  # fmt: skip
    guard = guard_of(model, Policy(max_revealed=0.0, max_gradients=None), release=f"{steps}{law}:{NOISE}")
    guard.client.refresh()
    mean = guard.client.mean(guard.client.batch(*batch))
    drawn = guard.client.noise.sample(len(mean), torch.Generator().manual_seed(0), torch.float64)
    sizes = [value.numel() for value in model.parameters()]
    parts = torch.split(mean + drawn, sizes)
    update = [part.reshape(value.shape).float() for part, value in zip(parts, model.parameters(), strict=True)]
    decision = guard.review(batch, update)
    assert decision.exposures, decision.reasons
    for one, row in zip(decision.exposures, whole.samples, strict=True):
        exact = row.proxies["revealed_fraction"].value
        assert one.revealed.low - 1e-6 <= exact <= one.revealed.high + 1e-6


def test_without_a_bound_on_the_cost_undecided_samples_are_refined(client) -> None:
    model, batch, update = client
    exact = revealed(spectra(model, batch), NOISE)
    limit = 1.05 * float(exact.max())
    quick = guard_of(model, Policy(max_revealed=limit)).review(batch, update)
    refined = guard_of(model, Policy(max_revealed=limit, max_gradients=None)).review(batch, update)
    assert (quick.action, refined.action) == ("block", "allow")
    assert refined.products > quick.products


@pytest.mark.parametrize("gradients", [10.0, 60.0, 150.0])
def test_the_cost_is_bounded_by_the_policy(client, gradients) -> None:
    model, batch, update = client
    decision = guard_of(model, Policy(max_revealed=0.9, max_gradients=gradients)).review(batch, update)
    assert decision.products <= max(3, (gradients - 8) / 6) * 6


def test_a_correlated_prior(tmp_path) -> None:
    model, batch = network(), images()
    known = images(64, seed=1)
    prior = fit_prior(Samples.from_tensors(*known), "data")
    save_prior(prior, tmp_path / "prior.safetensors")
    update = gradient(model, batch, NOISE)
    for given in (prior, tmp_path / "prior.safetensors"):
        guard = Guard(
            model, "cross-entropy", Policy(max_revealed=0.999), prior=given, release=f"gaussian:{NOISE}",
            dtype=torch.float64, local_steps=1,
        )  # fmt: skip
        assert isinstance(guard.prior, GaussianPrior)
        decision = guard.review(batch, update)
        whole = audit(
            model.eval(), Samples.from_tensors(*batch), release=f"gaussian:{6 * NOISE}", solver="dense",
            prior=str(tmp_path / "prior.safetensors"),
        )  # fmt: skip
        for one, row in zip(decision.exposures, whole.samples, strict=True):
            assert one.revealed.low <= row.proxies["revealed_fraction"].value <= one.revealed.high


def test_classes_that_differ() -> None:
    model, batch = network(), images(8)
    policy = Policy(max_class_gap=0.0)
    decision = guard_of(model, policy).review(batch, gradient(model, batch, NOISE))
    assert decision.action == "block"
    assert decision.reasons[0].startswith("classes may differ by")
    assert guard_of(model, Policy(max_class_gap=1.0)).review(batch, gradient(model, batch, NOISE)).action == "allow"


def test_a_step_that_fails_is_logged_without_its_words(client, tmp_path) -> None:
    guard = guard_of(client[0], Policy(max_revealed=0.9), log=tmp_path / "log.jsonl")
    assert guard.withhold(RuntimeError("secret pixel 0.123")).action == "block"
    (entry,) = guard.log.entries()
    assert entry["decision"] == "block"
    assert "RuntimeError" in entry["reasons"][0]
    assert "secret" not in (tmp_path / "log.jsonl").read_text()


def test_frozen_layers_are_not_part_of_the_update() -> None:
    model, batch = network(), images()
    model[0].requires_grad_(False)
    decision = guard_of(model, Policy(max_revealed=0.95)).review(batch, gradient(model, batch, NOISE))
    assert decision.action == "allow"
    assert len(decision.update) == 2


def test_training_changes_what_is_reviewed() -> None:
    """The live weights count, whatever happened to them since the last review."""
    model, batch = network(), images()
    guard = guard_of(model, Policy(max_revealed=0.95))
    assert guard.review(batch, gradient(model, batch, NOISE)).action == "allow"
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(3.0)
    decision = guard.review(batch, gradient(model, batch, NOISE))
    assert decision.exposures, decision.reasons
    exact = revealed(spectra(model, batch), NOISE)
    for one, value in zip(decision.exposures, exact.tolist(), strict=True):
        assert one.revealed.low <= value <= one.revealed.high


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": Policy()}, "a policy with a limit"),
        ({"prior_std": None}, "either prior or prior_std"),
        ({"policy": Policy(max_total_revealed=0.5)}, "give a ledger"),
        ({"release": "prune:0.5,gaussian:0.1"}, "use a mask"),
        ({"release": "gaussian:0.1,mask:0.5"}, "noise as the last step"),
        *[
            ({"prior_std": wrong}, "number above 0 as prior standard deviation")
            for wrong in (-1.0, 0, True, math.nan, math.inf, "1")
        ],
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_make_no_guard(options, words) -> None:
    policy = options.pop("policy", Policy(max_revealed=0.5))
    with pytest.raises((SettingsError, ReleaseError), match=words):
        Guard(network(), nn.CrossEntropyLoss(), policy, **{"prior_std": 0.3, **options})


@pytest.mark.sampled(4)
@pytest.mark.parametrize("wrong", [1.0, True, "1", math.nan, math.inf, -1, [1], torch.ones(1)], ids=repr)
@pytest.mark.parametrize("name", ["local_steps", "round"])
def test_what_is_no_whole_number_withholds(name, wrong) -> None:
    model, batch = network(), images()
    guard = guard_of(model, Policy(max_revealed=0.95))
    update = gradient(model, batch, NOISE)
    decision = guard.review(batch, update, **{name: wrong})
    assert (decision.action, decision.update) == ("block", None)
    assert "expected" in decision.reasons[0]
    if name == "local_steps":
        assert guard_of(model, Policy(max_revealed=0.95), local_steps=wrong).review(batch, update).action == "block"
    assert guard.review(batch, update, **{name: 1}).action == "allow"


def test_a_gap_alone_limits_nothing_where_all_are_of_one_class() -> None:
    model, (inputs, targets) = network(), images()
    batch = (inputs, torch.zeros_like(targets))
    update = gradient(model, batch, NOISE)
    alone = guard_of(model, Policy(max_class_gap=0.9)).review(batch, update)
    assert alone.action == "block"
    assert "max_class_gap was not compared" in alone.reasons[0]
    beside = guard_of(model, Policy(max_class_gap=0.9, max_revealed=0.95)).review(batch, update)
    assert beside.action == "allow"
    assert "max_class_gap was not compared" in beside.reasons[1]


def test_without_noise_or_classes_no_gap_is_called_small() -> None:
    model, batch = network(), images(8)
    policy = Policy(max_class_gap=0.5)
    assert guard_of(model, policy, None).review(batch, gradient(model, batch)).action == "block"
    soft = (batch[0], nn.functional.one_hot(batch[1], 4).float())
    decision = guard_of(model, Policy(max_class_gap=1.0)).review(soft, gradient(model, soft, NOISE))
    assert ["8 of 8 samples" in reason for reason in decision.reasons] == [True]
