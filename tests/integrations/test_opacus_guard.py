"""The guard around Opacus's optimizer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from integration_cases import PRIOR_STD, backward, gradient, small_batch, small_model, weights

from riskaudit.errors import SettingsError
from riskaudit.guard import AuditLog, Policy

opacus = pytest.importorskip("opacus", reason="opacus is not installed: pip install 'riskaudit[opacus]'")
from opacus.optimizers import DPOptimizer  # noqa: E402

from riskaudit.integrations.opacus import OpacusGuard  # noqa: E402

# Opacus on a first layer whose inputs need no gradient, and on its plain generator.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning"),
]

CLIP, MULTIPLIER, EXPECTED, RATE = 0.5, 0.5, 8, 0.1
LENIENT, STRICT = Policy(max_revealed=1.0), Policy(max_revealed=1e-6)
# The first half of `uneven` keeps it (at most 0.01 in a review), the other doesn't (at least 0.1).
DROP = Policy(max_revealed=0.05, on_violation="sanitise", sanitiser="drop")


def uneven() -> tuple[torch.Tensor, torch.Tensor]:
    """Of which the first half is hidden by clipping: large inputs have large gradients."""
    inputs, targets = small_batch()
    inputs[:3] *= 100
    return inputs, targets


class Training:
    """A model under Opacus, with or without a guard; see `follow` for the same noise in both."""

    def __init__(self, policy: Policy | None = LENIENT, *, multiplier: float = MULTIPLIER, reduction="mean", **options):
        self.model = opacus.GradSampleModule(small_model(), loss_reduction=reduction)
        self.original = torch.optim.SGD(self.model.parameters(), lr=RATE, momentum=0.9)
        self.optimizer = DPOptimizer(
            self.original, noise_multiplier=multiplier, max_grad_norm=CLIP, expected_batch_size=EXPECTED,
            loss_reduction=reduction, generator=torch.Generator().manual_seed(5),
        )  # fmt: skip
        self.sums: list[torch.Tensor] = []
        self.noisy: list[torch.Tensor] = []
        self.reduction, self.steps = reduction, 0
        self.optimizer.attach_step_hook(self.count)
        if policy is not None:
            self.guard = OpacusGuard(
                self.model, self.optimizer, "cross-entropy", policy, prior_std=PRIOR_STD, **options
            )
        self.add, self.optimizer.add_noise = self.optimizer.add_noise, self.add_noise

    def add_noise(self) -> None:
        """Remember what Opacus's noise was added to, and what came of it."""
        self.add()
        self.sums = [parameter.summed_grad.clone() for parameter in self.optimizer.params]
        self.noisy = [parameter.grad.clone() for parameter in self.optimizer.params]

    def follow(self, other: Training, tolerance: float = 0.0) -> None:
        """Take the other's noise, on a sum that must be the same."""

        def add_noise() -> None:
            for parameter, clipped, noisy in zip(self.optimizer.params, other.sums, other.noisy, strict=True):
                torch.testing.assert_close(parameter.summed_grad, clipped, rtol=0, atol=tolerance)
                parameter.grad = noisy.clone()

        self.optimizer.add_noise = add_noise

    def count(self, _: DPOptimizer) -> None:
        """As an accountant does."""
        self.steps += 1

    def backward(self, batch) -> None:
        outputs = self.model(batch[0])
        torch.nn.functional.cross_entropy(outputs, batch[1], reduction=self.reduction).backward()

    def step(self, batch):
        self.backward(batch)
        return self.guard.step(batch)

    def clean(self) -> bool:
        """Whether nothing of any batch is held anywhere."""
        return all(
            parameter.grad is None and parameter.grad_sample is None and parameter.summed_grad is None
            for parameter in self.model.parameters()
        ) and not any(getattr(module, "activations", None) for module in self.model.modules())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_step_within_the_policy_is_opacus_own(reduction) -> None:
    guarded, plain = Training(reduction=reduction), Training(None, reduction=reduction)
    plain.follow(guarded)
    for seed in (1, 2):
        batch = small_batch(seed=seed)
        decision = guarded.step(batch)
        assert decision.action == "allow", decision.reasons
        plain.backward(batch)
        plain.optimizer.step()
        plain.optimizer.zero_grad()
        assert torch.equal(weights(guarded.model), weights(plain.model))
        assert guarded.clean()
    assert guarded.steps == 2


def test_a_withheld_batch_leaves_nothing_behind(tmp_path) -> None:
    guarded, plain = Training(STRICT, log=tmp_path / "log"), Training(None)
    plain.follow(guarded)
    before = weights(guarded.model)
    decision = guarded.step(small_batch())
    assert decision.action == "block"
    assert guarded.guard.decision is decision
    assert torch.equal(weights(guarded.model), before)
    assert not guarded.original.state
    assert guarded.clean()
    assert guarded.steps == 0
    # The next step is that of a training that never saw the batch.
    guarded.guard._policy = guarded.guard._guard.policy = LENIENT
    batch = small_batch(seed=2)
    assert guarded.step(batch).action == "allow"
    plain.backward(batch)
    plain.optimizer.step()
    assert torch.equal(weights(guarded.model), weights(plain.model))
    assert [entry["decision"] for entry in AuditLog(tmp_path / "log").entries()] == ["block", "allow"]


def test_dropped_samples_are_not_in_the_step(tmp_path) -> None:
    guarded, plain = Training(DROP, log=tmp_path / "log"), Training(None)
    plain.follow(guarded, 1e-6)
    inputs, targets = uneven()
    decision = guarded.step((inputs, targets))
    assert decision.action == "sanitise", decision.reasons
    assert decision.dropped == 3
    assert len(decision.exposures) == 3
    plain.backward((inputs[:3], targets[:3]))
    plain.optimizer.step()
    torch.testing.assert_close(weights(guarded.model), weights(plain.model), rtol=0, atol=1e-6)
    assert guarded.clean()
    (entry,) = AuditLog(tmp_path / "log").entries()
    assert (entry["decision"], entry["dropped"], entry["release"]) == ("sanitise", 3, "clip:0.5,gaussian:0.25")


def test_a_step_past_the_guard_is_withheld() -> None:
    guarded = Training()
    before = weights(guarded.model)
    guarded.backward(small_batch())
    guarded.optimizer.step()
    assert guarded.guard.decision.action == "block"
    assert torch.equal(weights(guarded.model), before)
    guarded.optimizer.zero_grad()
    assert guarded.step(small_batch()).action == "allow"


def test_the_noise_is_that_of_the_system_whatever_generator_opacus_was_given() -> None:
    noises = []
    for _ in range(2):
        guarded = Training()
        torch.manual_seed(0)
        assert guarded.step(small_batch()).action == "allow"
        noises.append([noisy - clipped for noisy, clipped in zip(guarded.noisy, guarded.sums, strict=True)])
    assert all((first != second).all() for first, second in zip(*noises, strict=True))
    entries = torch.cat([part.reshape(-1) for noise in noises for part in noise])
    assert 0.7 < float(entries.std()) / (MULTIPLIER * CLIP) < 1.3
    # All lie on one grid: multiples of a power of two far below the noise.
    assert all(torch.equal(part, torch.round(part * 2.0**14) / 2.0**14) for part in guarded.noisy)


def more_noise(training) -> None:
    add = training.optimizer.add_noise

    def twice() -> None:
        add()
        for parameter in training.model.parameters():
            parameter.grad = 2 * parameter.grad

    training.optimizer.add_noise = twice


def foreign_gradient(training) -> None:
    for parameter in training.model.parameters():
        parameter.grad_sample = torch.zeros_like(parameter.grad_sample)


def not_a_number(training) -> None:
    for parameter in training.model.parameters():
        parameter.grad_sample[0] = torch.nan


def no_gradient(training) -> None:
    training.optimizer.zero_grad()


def other_length(training) -> None:
    for parameter in training.model.parameters():
        parameter.grad_sample = parameter.grad_sample[:-1]


def accumulated(training) -> None:
    training.backward(small_batch(seed=3))


def skipped(training) -> None:
    training.optimizer.signal_skip_step(True)


def failing_accountant(training) -> None:
    def fail(_: DPOptimizer) -> None:
        raise ValueError("a private row")

    training.optimizer.attach_step_hook(fail)


SPOILERS = [more_noise, foreign_gradient, not_a_number, no_gradient, other_length, accumulated, skipped]


@pytest.mark.parametrize("spoil", [*SPOILERS, failing_accountant], ids=lambda spoil: spoil.__name__)
def test_whatever_goes_wrong_withholds(spoil) -> None:
    # Little noise, so that a foreign gradient shows.
    guarded = Training(multiplier=0.01)
    add_noise, hook, before = guarded.optimizer.add_noise, guarded.optimizer.step_hook, weights(guarded.model)
    guarded.backward(small_batch())
    spoil(guarded)
    decision = guarded.guard.step(small_batch())
    assert decision.action == "block"
    assert decision.reasons
    assert "private" not in decision.reasons[0]
    assert torch.equal(weights(guarded.model), before)
    assert guarded.clean()
    guarded.optimizer.add_noise, guarded.optimizer.step_hook = add_noise, hook
    assert guarded.step(small_batch()).action == "allow"


def test_without_noise_everything_is_revealed() -> None:
    decision = Training(Policy(max_revealed=0.9), multiplier=0.0).step(small_batch())
    assert decision.action == "block"
    assert "no noise" in decision.reasons[0]


def test_a_forward_pass_that_was_given_up_is_forgotten() -> None:
    guarded, plain = Training(), Training(None)
    plain.follow(guarded)
    guarded.model(small_batch(4)[0])
    guarded.guard.discard()
    assert guarded.clean()
    assert guarded.step(small_batch()).action == "allow"
    plain.backward(small_batch())
    plain.optimizer.step()
    assert torch.equal(weights(guarded.model), weights(plain.model))


def test_a_scheduler_of_noise_is_followed() -> None:
    guarded = Training()
    guarded.step(small_batch())
    guarded.optimizer.noise_multiplier = 2.0
    decision = guarded.step(small_batch())
    assert decision.action == "allow", decision.reasons
    assert guarded.guard._guard.release == "clip:0.5,gaussian:1.0"


def test_the_guard_sees_no_hook_of_opacus_and_leaves_them_in_place() -> None:
    guarded = Training()
    plain = guarded.guard._plain
    assert not any(module._forward_hooks or module._backward_hooks for module in plain.modules())
    assert all(a is b for a, b in zip(plain.parameters(), guarded.model.parameters(), strict=True))
    assert guarded.model.hooks_enabled
    backward(guarded.model, small_batch())
    assert all(len(parameter.grad_sample) == 6 for parameter in guarded.model.parameters())
    assert gradient(guarded.model) is not None


def test_a_ledger_counts_over_rounds(tmp_path) -> None:
    guarded = Training(replace(DROP, max_total_revealed=0.02), ledger=tmp_path / "ledger")
    actions, names = [], list("abcdef")
    for _ in range(8):
        batch = uneven()
        guarded.backward(batch)
        actions.append(guarded.guard.step(batch, ids=names).action)
    assert actions[0] == "sanitise"
    assert all(account.revealed <= 0.02 for _, account in guarded.guard._ledger.every_account())
    guarded.guard.close()


def test_what_the_guard_can_not_describe_is_refused() -> None:
    model = opacus.GradSampleModule(small_model())
    sgd = torch.optim.SGD(model.parameters(), lr=RATE)
    good = DPOptimizer(sgd, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=EXPECTED)
    per_layer = opacus.optimizers.DPPerLayerOptimizer(
        sgd, noise_multiplier=1.0, max_grad_norm=[1.0] * 4, expected_batch_size=EXPECTED
    )
    with pytest.raises(SettingsError, match="DPPerLayerOptimizer"):
        OpacusGuard(model, per_layer, "cross-entropy", LENIENT, prior_std=PRIOR_STD)
    with pytest.raises(SettingsError, match="found Sequential"):
        OpacusGuard(small_model(), good, "cross-entropy", LENIENT, prior_std=PRIOR_STD)
    noisy = Policy(max_revealed=0.1, on_violation="sanitise")
    with pytest.raises(SettingsError, match="sanitiser = 'drop'"):
        OpacusGuard(model, good, "cross-entropy", noisy, prior_std=PRIOR_STD)
    other = opacus.GradSampleModule(small_model())
    with pytest.raises(SettingsError, match="exactly"):
        OpacusGuard(other, good, "cross-entropy", LENIENT, prior_std=PRIOR_STD)


def test_with_the_privacy_engine_and_poisson_sampling() -> None:
    inputs, targets = small_batch(40)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=8)
    model = small_model()
    engine = opacus.PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model, optimizer=torch.optim.SGD(model.parameters(), lr=RATE), data_loader=loader,
        noise_multiplier=1.0, max_grad_norm=1.0,
    )  # fmt: skip
    guard = OpacusGuard(model, optimizer, "cross-entropy", LENIENT, prior_std=PRIOR_STD)
    actions = []
    for batch in loader:
        optimizer.zero_grad()
        backward(model, batch)
        actions.append((len(batch[0]), guard.step(batch).action))
    assert all(action == ("allow" if count else "block") for count, action in actions), actions
    assert sum(done for _, _, done in engine.accountant.history) == sum(count > 0 for count, _ in actions)
