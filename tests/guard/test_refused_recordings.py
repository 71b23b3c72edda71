"""What is in the way of a round's review is said before the first step, and a described training is held to."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from guard_cases import CLASSES, images
from round_cases import COUNT, EPOCHS, SIZE, guard_of, mini_batches, network, sgd, train
from torch import Tensor, nn

from riskaudit.errors import GuardError, RiskauditError, SettingsError
from riskaudit.guard import AuditLog, Policy
from riskaudit.guard.keys import TamperingError

TOLD = f"local:epochs={EPOCHS}:batch={SIZE}:lr=0.1:momentum=0.9:weight_decay=0.001"


class Shift(nn.Module):
    """A layer with parameters that the structured Jacobian doesn't know."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.sinh(self.shift)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda model: sgd(model, nesterov=True), "nesterov"),
        (lambda model: sgd(model, dampening=0.1), "dampening"),
        (lambda model: torch.optim.Adam(model.parameters(), betas=(0.8, 0.999)), "betas"),
        (lambda model: torch.optim.AdamW(model.parameters()), "AdamW"),
        (lambda model: torch.optim.RMSprop(model.parameters()), "RMSprop"),
        (
            lambda model: torch.optim.SGD(
                [{"params": model[0].parameters()}, {"params": [*model[1:].parameters()], "lr": 0.2}], lr=0.1
            ),
            "groups that differ",
        ),
    ],
)
def test_settings_that_nobody_repeats_are_refused_by_name(make, words) -> None:
    model = network()
    with pytest.raises(GuardError, match=words):
        guard_of(model.train()).record(make(model))


def test_an_optimizer_that_remembers_or_holds_something_else_is_refused() -> None:
    model = network().train()
    guard, optimizer = guard_of(model), sgd(model)
    for batch in mini_batches():
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    with pytest.raises(SettingsError, match="new one for every round"):
        guard.record(optimizer)
    with pytest.raises(SettingsError, match="exactly the guarded model's"):
        guard.record(sgd(model[0]))


@pytest.mark.parametrize("release", ["share:0.*", "dropout:0.5", "soteria:50", "mean:4", "mean:4,secagg:2"])
def test_a_release_that_cannot_follow_a_round_is_refused_when_recording_begins(release) -> None:
    model = network().train()
    with pytest.raises(RiskauditError, match=release.split(":")[0]):
        guard_of(model, release=release).record(sgd(model))


def test_weights_that_are_not_numbers_are_refused_when_recording_begins() -> None:
    model = network().train()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(GuardError, match=r"0\.weight holds something that isn't a finite number"):
        guard_of(model).record(sgd(model))


def test_dropout_is_refused_at_the_first_loss_if_it_is_in_train_mode_there() -> None:
    model = network(dropout=0.5).train()
    guard, optimizer = guard_of(model), sgd(model)
    recording = guard.record(optimizer)
    with pytest.raises(GuardError, match="Dropout"):
        train(recording, optimizer)
    assert recording.review().update is None
    optimizer = sgd(model)
    recording = guard.record(optimizer)
    model[5].eval()
    train(recording, optimizer)
    assert recording.review().update is not None


@pytest.mark.parametrize("layers", ["block", "differentiate"])
def test_an_unknown_layer_is_refused_at_the_first_loss_unless_the_policy_lets_it(layers) -> None:
    model = nn.Sequential(*network(batch_norm=False), Shift()).train()
    optimizer = sgd(model)
    guard = guard_of(model, Policy(max_revealed=1.0, unknown_layers=layers), release="gaussian:0.5")
    recording = guard.record(optimizer)
    if layers == "block":
        with pytest.raises(GuardError, match=r'Shift.*set unknown_layers = "differentiate" in the policy'):
            train(recording, optimizer)
    else:
        train(recording, optimizer)
        recording.add_noise()
    assert (recording.review().update is None) == (layers == "block")


def test_a_log_that_cannot_be_written_or_was_changed_is_refused_when_recording_begins(tmp_path) -> None:
    model = network().train()
    options = {"keys": tmp_path / "keys"}
    with pytest.raises(GuardError, match=r"log\.jsonl can't be written \(No such file or directory\)"):
        guard_of(model, log=tmp_path / "nowhere" / "log.jsonl", **options).record(sgd(model))
    log = tmp_path / "log.jsonl"
    guard = guard_of(model, log=log, **options)
    guard.record(sgd(model))
    guard.withhold("a first line")
    guard.withhold("a second line")
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(TamperingError, match="isn't as the guard left it"):
        guard.record(sgd(model))


def test_a_ledger_that_was_changed_is_refused_when_recording_begins_and_logged(tmp_path) -> None:
    model = network().train()
    ledger, options = tmp_path / "ledger.db", {"keys": tmp_path / "keys", "log": tmp_path / "log.jsonl"}
    ledger.write_text("no ledger")
    for lenience in ({}, {"on_failure": "warn"}):
        guard = guard_of(model, Policy(max_revealed=1.0, **lenience), ledger=ledger, **options)
        with pytest.raises(TamperingError, match=r"ledger\.db can't be used"):
            guard.record(sgd(model))
    lines = list(AuditLog(options["log"], keys=options["keys"]).entries())
    assert [line["decision"] for line in lines] == ["block", "block"]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (TOLD.replace("lr=0.1", "lr=0.3"), r"expected lr = 0\.3, .* found 0\.1 "),
        (TOLD.replace("=0.9", "=0.5"), r"expected momentum = 0\.5, .* found 0\.9 "),
        (TOLD.replace("0.001", "0.01"), r"expected weight_decay = 0\.01, .* found 0\.001 "),
        ("local:epochs=2:batch=4:lr=0.1:optimizer=adam", r"expected optimizer = adam, .* found sgd "),
    ],
)
def test_a_training_with_other_settings_than_the_release_says_is_refused_when_recording_begins(told, words) -> None:
    model = network().train()
    with pytest.raises(GuardError, match=words):
        guard_of(model, release=f"{told},gaussian:100").record(sgd(model))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (TOLD.replace("epochs=2", "epochs=5"), "expected epochs = 5, .* found each sample 2 times "),
        (TOLD.replace("epochs=2", "epochs=1"), "expected epochs = 1, .* found each sample 2 times "),
        (TOLD.replace("batch=4", "batch=6"), "expected batch = 6, 4 steps on 8 samples per epoch, .* on 4 samples "),
        (TOLD.replace("batch=4", "batch=all"), "expected batch = all, 2 steps on 8 samples .*found 4 steps"),
    ],
)
def test_a_training_of_other_passes_or_mini_batches_than_the_release_says_is_withheld(told, words) -> None:
    """Noise would hide it."""
    model = network().train()
    optimizer = sgd(model)
    recording = guard_of(model, release=f"{told},gaussian:100").record(optimizer)
    train(recording, optimizer)
    recording.add_noise()
    decision = recording.review()
    assert decision.update is None
    assert re.search(words, decision.reasons[0]), decision.reasons


def test_a_mini_batch_larger_than_the_release_says_is_refused_before_the_first_step() -> None:
    model = network().train()
    optimizer = sgd(model)
    recording = guard_of(model, release=TOLD.replace("batch=4", "batch=3")).record(optimizer)
    with pytest.raises(GuardError, match=r"expected batch = 3, .* found a mini-batch of 4 samples "):
        train(recording, optimizer)


@pytest.mark.parametrize("told", [f"{TOLD}:shuffle=3", TOLD.replace("batch=4", "batch=400")])
def test_a_training_as_the_release_says_leaves(told) -> None:
    model = network().train()
    optimizer = sgd(model)
    recording = guard_of(model, release=f"{told},gaussian:100").record(optimizer)
    for batch in [images(COUNT)] * EPOCHS if "400" in told else mini_batches():
        optimizer.zero_grad()
        recording.loss(*batch).backward()
        optimizer.step()
    recording.add_noise()
    decision = recording.review()
    assert decision.update is not None, decision.reasons
