"""A recorded round: what happened is explained and reviewed, and whatever wasn't recorded as it happened withholds."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from guard_cases import CLASSES, PRIOR_STD, images
from round_cases import COUNT, EPOCHS, SIZE, guard_of, mini_batches, network, recorded, sgd, train
from torch import Tensor, nn

from riskaudit.errors import GuardError, SettingsError
from riskaudit.guard import Policy
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.release import Batch, make_release, with_batch_statistics
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.training import LocalTraining

LIMIT = 0.5


@pytest.mark.parametrize(
    "make",
    [
        sgd,
        lambda model: sgd(model, momentum=0.0, weight_decay=0.0),
        lambda model: torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01),
    ],
)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_an_honest_round_is_explained_whatever_its_order(make, batch_norm) -> None:
    model = network(batch_norm)
    before = copy.deepcopy(model.state_dict())
    guard, recording = recorded(model, make=make)
    decision = recording.review()
    assert decision.action == ("sanitise" if batch_norm else "allow"), decision.reasons
    assert recording.num_samples == COUNT
    assert list(decision.update) == list(before)
    for name, value in model.state_dict().items():
        is_trained = name in dict(model.named_parameters())
        assert torch.equal(decision.update[name], value if is_trained else before[name])
    assert guard.confirm(decision).update is not None


def exact_information(model: nn.Module, spec: ReleaseSpec | str) -> list[Tensor]:
    """J_j^T J_j [d, d] of every sample, in double precision."""
    double = with_batch_statistics(copy.deepcopy(model).double().eval())
    release = make_release(double, F.cross_entropy, spec)
    inputs, targets = images(COUNT)
    J = GenericJacobian(release, Batch(inputs.double(), targets, COUNT))
    identity = torch.eye(COUNT * 64, dtype=torch.float64)
    columns = J.matmat(identity[None])[0]
    return [block.mT @ block for block in columns.split(64, dim=1)]


def revealed(information: list[Tensor], noise_std: float) -> list[float]:
    """Of every sample, the others known, from the definition."""
    prior = torch.eye(64, dtype=torch.float64) / PRIOR_STD**2
    posteriors = [torch.linalg.inv(each / noise_std**2 + prior) for each in information]
    return [1 - float(posterior.trace()) / 64 / PRIOR_STD**2 for posterior in posteriors]


def test_sanitised_noise_keeps_the_limit_by_the_definition_and_isnt_far_more_than_needed() -> None:
    model = network()
    before = copy.deepcopy(model)
    policy = Policy(max_revealed=LIMIT, on_violation="sanitise")
    guard = guard_of(model.train(), policy)
    optimizer = sgd(model)
    recording = guard.record(optimizer)
    inputs, targets = images(COUNT)
    steps = ((0, 1, 2, 3), (4, 5, 6, 7), (6, 1, 4, 3), (0, 5, 2, 7))
    for positions in steps:
        optimizer.zero_grad()
        recording.loss(inputs[list(positions)], targets[list(positions)]).backward()
        optimizer.step()
    decision = recording.review()
    assert decision.action == "sanitise", decision.reasons
    training = LocalTraining(epochs=1, batch=None, recorded=steps, lr=0.1, momentum=0.9, weight_decay=1e-3)
    information = exact_information(before, ReleaseSpec(training=training))
    truth = revealed(information, decision.noise_std)
    for exposure, exact in zip(decision.exposures, truth, strict=True):
        assert exposure.revealed.low <= exact <= exposure.revealed.high
    assert max(truth) <= LIMIT
    assert max(revealed(information, decision.noise_std / 8)) > LIMIT
    # What leaves is what was trained, and that noise.
    trained = dict(model.named_parameters())
    noise = torch.cat([(decision.update[name] - trained[name]).reshape(-1) for name in trained]).detach()
    assert 0.8 * decision.noise_std < noise.std() < 1.2 * decision.noise_std
    # What isn't trained has no noise that anybody reviewed, and leaves as it was received.
    received = {name: value for name, value in before.state_dict().items() if name not in trained}
    assert received
    assert all(torch.equal(decision.update[name], value) for name, value in received.items())
    assert any("1.running_mean" in reason for reason in decision.reasons)


def test_a_mean_gradient_with_the_statistics_of_the_batch_is_sanitised_by_the_definition() -> None:
    model, batch = network().train(), images(COUNT)
    gradients = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))
    guard = guard_of(model, Policy(max_revealed=LIMIT, on_violation="sanitise"))
    decision = guard.review(batch, gradients)
    assert decision.action == "sanitise", decision.reasons
    information = exact_information(model, "mean:all")
    truth = revealed(information, decision.noise_std)
    for exposure, exact in zip(decision.exposures, truth, strict=True):
        assert exposure.revealed.low <= exact <= exposure.revealed.high
    assert max(truth) <= LIMIT < max(revealed(information, decision.noise_std / 8))


def test_a_round_without_noise_is_withheld_by_a_policy_with_a_limit() -> None:
    _, recording = recorded(network(), Policy(max_revealed=LIMIT, buffers="reset"))
    decision = recording.review()
    assert decision.action == "block"
    assert decision.update is None
    assert "carries no noise" in decision.reasons[0]


@pytest.mark.parametrize("lenience", [{}, {"on_violation": "warn", "on_failure": "warn"}])
def test_running_statistics_that_would_leave_are_withheld_or_left_as_received_and_named(lenience) -> None:
    model = network()
    start = copy.deepcopy(model.state_dict())
    _, recording = recorded(model, Policy(max_revealed=1.0, **lenience))
    decision = recording.review()
    assert decision.update is None
    assert "1.running_mean, 1.running_var" in decision.reasons[0]
    for name in start:
        model.state_dict()[name].copy_(start[name])
    _, recording = recorded(model, Policy(max_revealed=1.0, buffers="reset"))
    decision = recording.review()
    assert (decision.action, decision.noise_std, decision.dropped) == ("sanitise", 0.0, 0)
    assert decision.reset == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert decision.log_entry({})["reset"] == decision.reset
    assert decision.reasons[0] == (
        "1.running_mean, 1.running_var, 1.num_batches_tracked reset to what was received, since nobody reviews what "
        "isn't trained; the trained weights leave as they are"
    )
    assert torch.equal(decision.update["1.running_mean"], start["1.running_mean"])
    assert not torch.equal(model[1].running_mean, start["1.running_mean"])
    # Nothing is said of buffers that don't leave.
    for name in start:
        model.state_dict()[name].copy_(start[name])
    _, recording = recorded(model, Policy(max_revealed=1.0))
    decision = recording.review(dict(model.named_parameters()))
    assert (decision.action, decision.reset) == ("allow", []), decision.reasons
    assert list(decision.update) == list(dict(model.named_parameters()))


def clipped(model, optimizer, recording) -> None:
    for batch in mini_batches():
        optimizer.zero_grad()
        recording.loss(*batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def second_optimizer(model, optimizer, recording) -> None:
    other = torch.optim.SGD(model[0].parameters(), lr=0.05)
    for batch in mini_batches():
        optimizer.zero_grad()
        recording.loss(*batch).backward()
        optimizer.step()
        other.step()


def unrecorded_batch(model, optimizer, recording) -> None:
    for number, batch in enumerate(mini_batches()):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1]) if number == 1 else recording.loss(*batch)
        loss.backward()
        optimizer.step()


def other_batch(model, optimizer, recording) -> None:
    stranger = images(SIZE, seed=9)
    for number, batch in enumerate(mini_batches()):
        optimizer.zero_grad()
        told = recording.loss(*batch)
        (F.cross_entropy(model(stranger[0]), stranger[1]) if number == 1 else told).backward()
        optimizer.step()


def further_term(model, optimizer, recording) -> None:
    for batch in mini_batches():
        optimizer.zero_grad()
        (recording.loss(*batch) + 0.05 * model[0].weight.square().sum()).backward()
        optimizer.step()


def further_epoch(model, optimizer, recording) -> None:
    train(recording, optimizer)
    recording.close()
    for batch in mini_batches(1):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()


def written_by_hand(model, optimizer, recording) -> None:
    train(recording, optimizer)
    with torch.no_grad():
        model[0].weight.add_(0.01 * images(1)[0].mean())


def accumulated(model, optimizer, recording) -> None:
    for batch in mini_batches():
        recording.loss(*batch).backward()
        optimizer.step()


def step_twice(model, optimizer, recording) -> None:
    for batch in mini_batches():
        optimizer.zero_grad()
        recording.loss(*batch).backward()
        optimizer.step()
        optimizer.step()


def two_losses(model, optimizer, recording) -> None:
    for batch in mini_batches():
        optimizer.zero_grad()
        (recording.loss(*batch) + recording.loss(*batch)).backward()
        optimizer.step()


def momentum_changes(model, optimizer, recording) -> None:
    train(recording, optimizer)
    optimizer.param_groups[0]["momentum"] = 0.5
    train(recording, optimizer)


def evaluates_in_between(model, optimizer, recording) -> None:
    train(recording, optimizer)
    model.eval()
    train(recording, optimizer)


def learning_rate_lies(model, optimizer, recording) -> None:
    for batch in mini_batches():
        optimizer.zero_grad()
        recording.loss(*batch).backward()
        for parameter in model.parameters():
            parameter.grad.mul_(1.5)
        optimizer.step()


def changes_the_batch(model, optimizer, recording) -> None:
    for inputs, targets in mini_batches():
        optimizer.zero_grad()
        handle = model.register_forward_pre_hook(lambda _, given: (given[0] + 0.3,))
        recording.loss(inputs, targets).backward()
        handle.remove()
        optimizer.step()


def mixed_precision(model, optimizer, recording) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train(recording, optimizer)


def last_step_by_another(model, optimizer, recording) -> None:
    other = sgd(model, lr=1.0)
    train(recording, optimizer)
    other.zero_grad()
    recording.loss(*next(mini_batches())).backward()
    other.step()


TRICKS = [
    last_step_by_another,
    clipped, second_optimizer, unrecorded_batch, other_batch, further_term, further_epoch, written_by_hand,
    accumulated, step_twice, momentum_changes, evaluates_in_between, learning_rate_lies, changes_the_batch,
]  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_what_was_not_recorded_as_it_happened_is_withheld(trick) -> None:
    model = network().train()
    guard, optimizer = guard_of(model), sgd(model)
    recording = guard.record(optimizer)
    trick(model, optimizer, recording)
    decision = recording.review()
    assert decision.action == "block", decision.reasons
    assert decision.update is None


@pytest.mark.parametrize("trick", [two_losses, mixed_precision])
def test_what_shows_before_the_first_step_is_refused_before_it(trick) -> None:
    model = network().train()
    before = copy.deepcopy(dict(model.named_parameters()))
    guard, optimizer = guard_of(model), sgd(model)
    recording = guard.record(optimizer)
    with pytest.raises(GuardError, match=r"found 2|autocast"):
        trick(model, optimizer, recording)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    # Whoever goes on regardless has it withheld.
    train(recording, optimizer)
    assert recording.review().update is None


def test_what_is_visibly_no_training_and_then_noise_is_withheld_whatever_the_noise_hides() -> None:
    for trick in ("another optimizer", "a step after the noise"):
        model = network(batch_norm=False).train()
        optimizer = sgd(model)
        recording = guard_of(model, release="gaussian:100").record(optimizer)
        if trick == "another optimizer":
            last_step_by_another(model, optimizer, recording)
            recording.add_noise()
        else:
            train(recording, optimizer)
            recording.add_noise()
            train(recording, optimizer)
        decision = recording.review()
        assert decision.action == "block", trick
        assert "optimizer" in decision.reasons[0]


def test_an_honest_round_of_a_network_that_knows_its_samples_is_believed() -> None:
    """Other inputs have gradients many times as large there, which is growth and hides nothing."""
    model = network(batch_norm=False).train()
    inputs, targets = images(COUNT)
    fitting = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        fitting.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        fitting.step()
    for _ in range(6):
        live = copy.deepcopy(model)
        optimizer = sgd(live, lr=0.05, weight_decay=0.0)
        recording = guard_of(live, release="gaussian:0.2").record(optimizer)
        train(recording, optimizer)
        recording.add_noise()
        decision = recording.review()
        assert decision.action == "allow", decision.reasons


@pytest.mark.parametrize("release", [None, 5])
def test_a_release_that_is_no_text_is_refused(release) -> None:
    with pytest.raises(SettingsError, match=type(release).__name__):
        guard_of(network(), release=release)


@pytest.mark.parametrize("decision", [None, object()])
def test_what_is_no_decision_is_not_confirmed(decision) -> None:
    assert guard_of(network()).confirm(decision).action == "block"


def test_one_sample_that_is_left_over_goes_through_batch_norm_as_torch_trains_it() -> None:
    model = network().train()
    guard, optimizer = guard_of(model), sgd(model)
    recording = guard.record(optimizer)
    inputs, targets = images(5)
    for part in torch.arange(5).split(SIZE):
        optimizer.zero_grad()
        recording.loss(inputs[part], targets[part]).backward()
        optimizer.step()
    assert recording.review().update is not None


def test_batch_norm_with_running_statistics_is_its_eval_mode() -> None:
    model = network().train()
    model[1].eval()
    guard, optimizer = guard_of(model), sgd(model)
    recording = guard.record(optimizer)
    train(recording, optimizer)
    decision = recording.review()
    assert decision.action == "allow", decision.reasons


def test_a_schedule_of_learning_rates_is_recorded() -> None:
    model = network().train()
    guard, optimizer = guard_of(model), sgd(model)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    recording = guard.record(optimizer)
    for batch in mini_batches():
        optimizer.zero_grad()
        recording.loss(*batch).backward()
        optimizer.step()
        schedule.step()
    assert recording.review().update is not None


def test_a_recording_is_good_for_one_review() -> None:
    _, recording = recorded(network())
    assert recording.review().update is not None
    second = recording.review()
    assert second.update is None
    assert "record every round anew" in second.reasons[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda sent: sent.update({"0.weight": sent["0.weight"].half()}),
        lambda sent: sent.update({"0.weight": sent["0.weight"][:2]}),
        lambda sent: sent.update({"more": torch.zeros(3)}),
        lambda sent: sent.pop("0.weight"),
        lambda sent: sent["0.weight"].fill_(float("nan")),
        lambda sent: sent["0.weight"].add_(0.01),
    ],
)
def test_other_weights_than_the_training_made_are_withheld(change) -> None:
    model = network()
    _, recording = recorded(model)
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    change(sent)
    assert recording.review(sent).update is None


def test_a_model_that_goes_on_training_after_the_review_is_not_confirmed() -> None:
    model = network()
    guard, recording = recorded(model)
    decision = recording.review()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert guard.confirm(decision).update is None


def test_a_ledger_adds_up_rounds(tmp_path) -> None:
    model, totals = network(), []
    policy = Policy(max_revealed=0.6, on_violation="sanitise", max_total_revealed=1.0)
    for _ in range(3):
        guard = guard_of(model.train(), policy, ledger=tmp_path / "ledger.db", keys=tmp_path / "keys")
        optimizer = sgd(model)
        recording = guard.record(optimizer)
        train(recording, optimizer)
        decision = recording.review()
        assert decision.action == "sanitise", decision.reasons
        totals.append(max(exposure.total_revealed.high for exposure in decision.exposures))
        model.load_state_dict(decision.update)
        guard.close()
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]


@pytest.mark.parametrize("action", ["block", "sanitise", "changed"])
def test_no_round_begins_at_training_that_never_left(action: str) -> None:
    model = network(batch_norm=False)
    received = copy.deepcopy(model.state_dict())
    policy = Policy(max_revealed=0.3, on_violation="sanitise" if action == "sanitise" else "block")
    guard, recording = recorded(model, policy, release="gaussian:2.0" if action == "changed" else "gradient")
    if action == "changed":
        # Confirmed only once something else was done to the model.
        recording.add_noise()
        decision = recording.review()
        assert decision.update is not None, decision.reasons
        with torch.no_grad():
            model[0].weight.mul_(2.0)
        assert guard.confirm(decision).update is None
    else:
        assert recording.review().action == action
    # Another guard of the same model is no way around it, nor are some of the weights.
    optimizer = sgd(model)
    for weights in (None, {"0.weight": received["0.weight"]}):
        model.load_state_dict(weights or {}, strict=False)
        with pytest.raises(GuardError, match="load what the server sent"):
            guard_of(model, policy).record(optimizer)
    model.load_state_dict(received)
    train(guard.record(optimizer), optimizer)


def test_statistics_that_never_left_begin_no_round() -> None:
    model = network(batch_norm=True)
    received = copy.deepcopy(model.state_dict())
    _, recording = recorded(model)
    decision = recording.review()
    assert decision.reset
    # A protocol that sends what is trained alone, back into a model that kept its batches' means.
    model.load_state_dict(
        {name: value for name, value in decision.update.items() if "running" not in name}, strict=False
    )
    with pytest.raises(GuardError, match="running_mean still holds"):
        guard_of(model).record(sgd(model))
    model.load_state_dict(received)
    guard_of(model).record(sgd(model))


def test_a_round_withheld_at_the_last_moment_is_remembered_as_it_was_trained() -> None:
    model = network(batch_norm=False)
    guard, recording = recorded(model)
    decision = recording.review()
    trained = copy.deepcopy(model.state_dict())
    model.load_state_dict(dict(recording.start))
    assert guard.confirm(decision).update is None
    guard.record(sgd(model)).close()
    model.load_state_dict(trained)
    with pytest.raises(GuardError, match="load what the server sent"):
        guard.record(sgd(model))


@pytest.mark.parametrize("steps", ["clip:0.001", "mask:0.9"])
def test_noise_never_hides_that_a_step_of_the_release_was_left_out(steps: str) -> None:
    release = f"{steps},gaussian:0.3"
    # Only noise, added by the client's own code.
    model = network(batch_norm=False)
    _, recording = recorded(model, release=release)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.randn_like(value))
    decision = recording.review()
    assert decision.action == "block"
    assert f"noise hides whether '{steps}" in decision.reasons[0]
    # By the recording: proven, until somebody else's numbers are sent.
    for own, action in ((True, "allow"), (False, "block")):
        model = network(batch_norm=False)
        _, recording = recorded(model, release=release)
        recording.add_noise()
        sent = {name: value + 0.01 * torch.randn_like(value) for name, value in model.state_dict().items()}
        assert recording.review(None if own else sent).action == action


class Tied(nn.Module):
    """One matrix under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.last = nn.Linear(64, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(inputs.flatten(1))))))


@pytest.mark.parametrize("on_violation", ["block", "sanitise"])
def test_a_tied_parameter_leaves_under_both_names(on_violation: str) -> None:
    torch.manual_seed(0)
    model = Tied()
    limit = 1.0 if on_violation == "block" else 0.3
    guard, recording = recorded(model, Policy(max_revealed=limit, on_violation=on_violation))
    decision = guard.confirm(recording.review())
    assert decision.action == ("allow" if on_violation == "block" else "sanitise"), decision.reasons
    assert list(decision.update) == list(model.state_dict())
    assert torch.equal(decision.update["first.weight"], decision.update["second.weight"])
    assert not torch.equal(decision.update["first.weight"], recording.start["first.weight"])


def test_a_tied_parameter_never_leaves_as_two() -> None:
    torch.manual_seed(0)
    model = Tied()
    _, recording = recorded(model)
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    sent["second.weight"] += 1e-3
    decision = recording.review(sent)
    assert decision.action == "block"
    assert "one parameter" in decision.reasons[0]


def test_layers_that_stay_behind_are_refused_in_words() -> None:
    model = network(batch_norm=False)
    inputs, targets = images(COUNT)
    gradients = torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(model.parameters()))
    guard = guard_of(model, release="share:6.*,gaussian:0.01", local_steps=1)
    decision = guard.review((inputs, targets), gradients)
    assert decision.action == "block"
    assert "share:6.*" in decision.reasons[0]
    assert "freeze what isn't sent" in decision.reasons[0]


def test_the_next_round_may_begin_at_what_left() -> None:
    model = network(batch_norm=False)
    for difference in (False, True, False):
        guard, recording = recorded(model, release="gaussian:0.5")
        recording.add_noise()
        sent = {name: value - recording.start[name] for name, value in model.state_dict().items()}
        decision = recording.review(sent, difference=True) if difference else recording.review()
        assert guard.confirm(decision).update is not None, decision.reasons


def test_a_sample_in_several_rounds_of_steps_and_of_trainings_has_one_account(tmp_path) -> None:
    model = network(batch_norm=False)
    options = {"ledger": tmp_path / "ledger.db", "keys": tmp_path / "keys", "release": "gaussian:1.0"}
    guard = guard_of(model, Policy(max_revealed=0.99), local_steps=1, **options)
    inputs, targets = images(COUNT)
    gradients = torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(model.parameters()))
    step = [gradient + torch.randn_like(gradient) for gradient in gradients]
    assert guard.review((inputs, targets), step).update is not None
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = sgd(model)
    recording = guard.record(optimizer)
    train(recording, optimizer)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(before[name] - (before[name] - value + torch.randn_like(value)))
    decision = recording.review()
    assert decision.update is not None, decision.reasons
    assert decision.exposures[0].total_revealed.high > decision.exposures[0].revealed.high


def test_described_training_and_batch_norm_in_a_mean_gradient_are_reviewed_as_well() -> None:
    model = network().train()
    inputs, targets = images(COUNT)
    before = copy.deepcopy(model)
    optimizer = sgd(model)
    for _ in range(EPOCHS):
        for part in torch.arange(COUNT).split(SIZE):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[part]), targets[part]).backward()
            optimizer.step()
    difference = [old.detach() - new.detach() for old, new in zip(before.parameters(), model.parameters(), strict=True)]
    before[1].running_mean.zero_(), before[1].running_var.fill_(1.0)
    release = f"local:epochs={EPOCHS}:batch={SIZE}:lr=0.1:momentum=0.9:weight_decay=0.001"
    assert guard_of(before, release=release).review((inputs, targets), difference).action == "allow"
    for lie in (release.replace("epochs=2", "epochs=3"), release.replace("0.9", "0.8"), release + ":shuffle=1"):
        decision = guard_of(before, release=lie).review((inputs, targets), difference)
        assert decision.update is None
        assert "isn't what this training makes" in decision.reasons[0]
    gradients = torch.autograd.grad(F.cross_entropy(before(inputs), targets), list(before.parameters()))
    assert guard_of(before).review((inputs, targets), gradients).action == "allow"
    decision = guard_of(before).review((inputs, targets), [1.01 * gradient for gradient in gradients])
    assert decision.update is None


def test_a_described_training_whose_mini_batches_the_samples_do_not_fill_says_what_was_reviewed() -> None:
    model, batch = network(batch_norm=False), images(COUNT)
    gradients = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))
    guard = guard_of(model, release="local:epochs=1:batch=400:lr=0.1")
    decision = guard.review(batch, [0.1 * gradient for gradient in gradients])
    assert decision.action == "allow", decision.reasons
    assert any("each mini-batch is all that it has" in text for text in decision.warnings)


def test_copies_in_one_mini_batch_are_one_sample() -> None:
    model = network(batch_norm=False).train()
    guard, optimizer = guard_of(model), sgd(model)
    recording = guard.record(optimizer)
    inputs, targets = images(4)
    twice = torch.cat([inputs, inputs[:1]]), torch.cat([targets, targets[:1]])
    recording.loss(*twice).backward()
    optimizer.step()
    decision = recording.review()
    assert decision.update is not None, decision.reasons
    assert recording.num_samples == 4


def test_a_failure_of_the_review_withholds_and_the_next_round_works(monkeypatch) -> None:
    model = network()
    _, recording = recorded(model)
    with monkeypatch.context() as patched:
        patched.setattr("riskaudit.guard.joint_client.JointClient.mean", lambda *_: 1 / 0)
        decision = recording.review()
    assert decision.update is None
    assert "ZeroDivisionError" in decision.reasons[0]
    model.load_state_dict(dict(recording.start))
    _, recording = recorded(model)
    assert recording.review().update is not None


class Hiding(nn.Module):
    """Shows its input to the gradient and hides it from the derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs.flatten(1).detach())


def test_code_that_hides_the_input_from_the_derivative_is_withheld() -> None:
    _, recording = recorded(Hiding(), Policy(max_revealed=0.9), release="gaussian:0.01")
    recording.add_noise()
    decision = recording.review()
    assert decision.update is None
    assert "its derivative says that it doesn't" in decision.reasons[0]


def test_who_lets_failures_pass_is_told_that_nothing_was_reviewed_and_buffers_stay() -> None:
    model = network().train()
    start = copy.deepcopy(model.state_dict())
    guard, optimizer = guard_of(model, Policy(max_revealed=0.5, on_failure="warn", buffers="reset")), sgd(model)
    recording = guard.record(optimizer)
    clipped(model, optimizer, recording)
    decision = recording.review()
    assert decision.action == "warn"
    assert decision.reasons[0].startswith("not reviewed: the update isn't what this training makes")
    assert torch.equal(decision.update["1.running_mean"], start["1.running_mean"])


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_training_that_diverges_is_withheld_in_words_that_name_the_learning_rate(is_recorded) -> None:
    model = network(batch_norm=False).train()
    if is_recorded:
        optimizer = sgd(model, lr=1e30)
        recording = guard_of(model).record(optimizer)
        train(recording, optimizer)
        decision = recording.review()
    else:
        guard = guard_of(model, release="local:epochs=3:batch=4:lr=1e38:weight_decay=1")
        decision = guard.review(images(COUNT), [torch.zeros_like(value) for value in model.parameters()])
    assert decision.update is None
    assert "diverges at a learning rate of 1e+3" in decision.reasons[0]
    assert "lower the learning rate" in decision.reasons[0]
