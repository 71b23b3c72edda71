"""The fault table: in every row nothing leaves, the log says why, and the next round works."""

from __future__ import annotations

import errno
import math
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from datetime import datetime
from pathlib import Path

import guard_cases
import pytest
import torch
from guard_cases import NOISE, PRIOR_STD, gradient, guard_of, images, network, revealed, spectra
from torch import nn

import riskaudit.guard.guard
import riskaudit.guard.log
from riskaudit.guard import AuditLog, Guard, Policy

POLICY = Policy(max_revealed=0.9)


class Round:
    """One client with a log, its batch and an honest update."""

    def __init__(self, folder, policy: Policy = POLICY, **options) -> None:
        self.model, self.batch = network(), images()
        self.log = AuditLog(folder / "log.jsonl")
        self.guard = guard_of(self.model, policy, log=self.log, **options)
        self.update = gradient(self.model, self.batch, NOISE)

    def withheld(self, decision, words: str) -> None:
        assert (decision.action, decision.update, decision.update_digest) == ("block", None, "")
        assert words in " ".join(decision.reasons)
        last = list(self.log.entries())[-1]
        assert (last["decision"], last["reasons"]) == ("block", decision.reasons)

    def next_one_works(self) -> None:
        decision = self.guard.review(self.batch, gradient(self.model, self.batch, NOISE))
        assert decision.action == "allow", decision.reasons
        assert self.log.problems() == []


@pytest.fixture
def client(tmp_path) -> Round:
    return Round(tmp_path)


def test_nan_in_the_batch(client) -> None:
    bad = client.batch[0].clone()
    bad[2, 0, 3, 3] = math.nan
    client.withheld(client.guard.review((bad, client.batch[1]), client.update), "isn't a finite number")
    client.next_one_works()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_in_the_weights(client, value) -> None:
    weight = client.model[0].weight
    kept = float(weight.detach()[0, 0, 0, 0])
    with torch.no_grad():
        weight[0, 0, 0, 0] = value
    client.withheld(client.guard.review(client.batch, client.update), "0.weight holds something that isn't a finite")
    with torch.no_grad():
        weight[0, 0, 0, 0] = kept
    client.next_one_works()


def test_nan_in_the_update(client) -> None:
    client.update[1][0] = math.nan
    client.withheld(client.guard.review(client.batch, client.update), "update of 0.bias holds something")
    client.next_one_works()


def test_model_swapped_between_review_and_send(client) -> None:
    decision = client.guard.review(client.batch, client.update)
    assert client.guard.confirm(decision) is decision
    with torch.no_grad():
        client.model[0].bias.add_(1e-3)
    client.withheld(client.guard.confirm(decision), "the model isn't the one that was reviewed")
    client.next_one_works()


def test_another_update_at_sending(client) -> None:
    decision = client.guard.review(client.batch, client.update)
    other = [part + 1e-6 for part in decision.update]
    client.withheld(client.guard.confirm(decision, other), "the update isn't the one that was reviewed")
    assert client.guard.confirm(decision, [part.clone() for part in decision.update]) is decision
    client.next_one_works()


@pytest.mark.parametrize("what", ["other batch", "sum for mean", "without its noise", "momentum"])
def test_update_that_is_not_the_gradient_of_the_batch(client, what) -> None:
    clean = gradient(client.model, client.batch)
    wrong = {
        "other batch": gradient(client.model, images(6, seed=9), NOISE, seed=0),
        "sum for mean": [6 * part + noisy - part for part, noisy in zip(clean, client.update, strict=True)],
        "without its noise": clean,
        "momentum": [2 * part for part in client.update],
    }[what]
    client.withheld(client.guard.review(client.batch, wrong), "this batch's release")
    client.next_one_works()


def test_exact_gradients_of_other_batches_are_found_without_noise(tmp_path) -> None:
    client = Round(tmp_path, Policy(max_revealed=1.0), release="gradient")
    other = gradient(client.model, images(6, seed=9))
    client.withheld(client.guard.review(client.batch, other), "isn't the gradient of this batch")
    assert client.guard.review(client.batch, gradient(client.model, client.batch)).action == "allow"


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("tried to allocate"), RuntimeError("secret 42")]
)
def test_out_of_memory_and_anything_else_during_review(client, monkeypatch, error) -> None:
    def fail(*_args, **_kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("riskaudit.guard.estimation.few_products", fail)
        decision = client.guard.review(client.batch, client.update)
    client.withheld(decision, f"the review failed with {type(error).__name__}")
    assert "secret" not in client.log.path.read_text(), "the words of a foreign error may be private"
    client.next_one_works()


def test_losses_that_fail_withhold_too(tmp_path) -> None:
    model, batch = network(), images()

    def loss(outputs, targets):
        raise ValueError(f"sample 17 of patient {outputs}")

    guard = Guard(
        model, loss, POLICY, prior_std=PRIOR_STD, release=f"gaussian:{NOISE}", local_steps=1, log=tmp_path / "log.jsonl"
    )
    decision = guard.review(batch, gradient(model, batch, NOISE))
    assert decision.action == "block"
    assert "patient" not in (tmp_path / "log.jsonl").read_text()


def test_interrupts_go_through_and_nothing_leaves(client, monkeypatch) -> None:
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("riskaudit.guard.estimation.few_products", interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.guard.review(client.batch, client.update)
    client.next_one_works()


KILLED = """
import sys, torch
sys.path[:0] = sys.argv[2:]
from guard_cases import NOISE, gradient, guard_of, images, network
from riskaudit.guard import Policy
folder = sys.argv[1]
model, batch = network(), images()
guard = guard_of(model, Policy(max_revealed=0.9), log=f"{folder}/log.jsonl", ledger=f"{folder}/ledger.db")
print("ready", flush=True)
while True:
    guard.review(batch, gradient(model, batch, NOISE), ids=range(6))
    print("sent", flush=True)
"""


def test_sigkill_during_review(tmp_path) -> None:
    """Whatever was sent is in the ledger and in the log, and both are whole."""
    folder = str(Path(guard_cases.__file__).parent)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), folder, str(Path(folder).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "sent\n":
                break
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        sent = 1 + process.stdout.read().count("sent\n")
    client = Round(tmp_path, ledger=tmp_path / "ledger.db")
    assert client.guard.ledger.problems() == []
    assert client.guard.ledger.num_rounds >= sent
    assert len(list(client.log.entries())) >= sent
    assert client.log.problems() == []
    client.next_one_works()


FULL = """
import os, resource, signal, sys
sys.path[:0] = sys.argv[2:]
from guard_cases import NOISE, gradient, guard_of, images, network
from riskaudit.guard import Policy
model, batch = network(), images()
update = gradient(model, batch, NOISE)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for full in ("log", "ledger"):
    folder = sys.argv[1] + "/" + full
    os.mkdir(folder)
    options = {"ledger": f"{folder}/ledger.db"} if full == "ledger" else {}
    guard = guard_of(model, Policy(max_revealed=0.9), log=f"{folder}/log.jsonl", **options)
    assert guard.review(batch, update, ids=range(6)).action == "allow"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = guard.log.path.stat().st_size + 40 if full == "log" else 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    decision = guard.review(batch, update, ids=range(6))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    print(decision.action, decision.update, decision.reasons)
    print(guard.review(batch, update, ids=range(6)).action)
    print(guard.log.problems(), [] if guard.ledger is None else guard.ledger.problems())
"""


@pytest.mark.slow
def test_disk_full(tmp_path) -> None:
    """Files that may not grow, in a process of its own."""
    folder = str(Path(guard_cases.__file__).parent)
    command = [sys.executable, "-c", FULL, str(tmp_path), folder, str(Path(folder).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = done.stdout.splitlines()
    for full, (first, second, problems) in zip(("log", "ledger"), (lines[:3], lines[3:]), strict=True):
        assert first.startswith("block None")
        assert f"the {full}" in first
        assert (second, problems) == ("allow", "[] []")


def test_read_only_ledger(tmp_path) -> None:
    client = Round(tmp_path, ledger=tmp_path / "ledger.db")
    client.guard.ledger._database.execute("PRAGMA query_only = ON")
    client.withheld(
        client.guard.review(client.batch, client.update, ids=range(6)), "the ledger ledger.db can't be used"
    )
    client.guard.ledger._database.execute("PRAGMA query_only = OFF")
    client.next_one_works()


def test_ledger_held_by_somebody_else(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("riskaudit.guard.ledger.ledger.PATIENCE", 0.1)
    client = Round(tmp_path, ledger=tmp_path / "ledger.db")
    other = Round(tmp_path, ledger=tmp_path / "ledger.db").guard.ledger
    other._database.execute("BEGIN IMMEDIATE")
    client.withheld(client.guard.review(client.batch, client.update, ids=range(6)), "database is locked")
    other._database.execute("ROLLBACK")
    client.next_one_works()


def test_log_that_can_not_be_written(client, monkeypatch) -> None:
    def full(_descriptor) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(riskaudit.guard.log.os, "fsync", full)
        decision = client.guard.review(client.batch, client.update)
    assert (decision.action, decision.update) == ("block", None)
    assert "No space left on device" in decision.reasons[0]
    client.next_one_works()


def test_clock_moved_back(tmp_path, monkeypatch) -> None:
    client = Round(tmp_path, ledger=tmp_path / "ledger.db")
    assert client.guard.review(client.batch, client.update, ids=range(6)).action == "allow"

    class Earlier(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(1999, 1, 1, tzinfo=tz)

    for module in ("decision", "ledger.ledger"):
        monkeypatch.setattr(f"riskaudit.guard.{module}.datetime", Earlier)
    assert client.guard.review(client.batch, client.update, ids=range(6)).action == "allow"
    assert [row["round"] for row in client.guard.ledger.rounds()] == [1, 2]
    assert {account.rounds for _, account in client.guard.ledger.every_account()} == {2}
    assert client.guard.ledger.problems() == client.log.problems() == []


def test_budget_of_a_millisecond(tmp_path) -> None:
    client = Round(tmp_path, Policy(max_revealed=0.9, budget_seconds=1e-3))
    client.withheld(client.guard.review(client.batch, client.update), "was over before a bound existed")
    client.guard.policy = POLICY
    client.next_one_works()


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long)), "at least one sample"),
        ((torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.long)), "as many targets as inputs"),
        ((torch.zeros(2, 1, 8, 8),), "inputs and targets"),
        ((torch.zeros(2, 1, 8, 8, dtype=torch.long), torch.zeros(2, dtype=torch.long)), "floating point"),
    ],
    ids=["empty", "lengths", "no-targets", "integers"],
)
def test_batches_that_are_none(client, batch, words) -> None:
    client.withheld(client.guard.review(batch, client.update), words)
    client.next_one_works()


def test_batch_of_one(client) -> None:
    one = (client.batch[0][:1], client.batch[1][:1])
    decision = guard_of(client.model, POLICY, 6 * NOISE).review(one, gradient(client.model, one, 6 * NOISE))
    assert decision.action == "allow", decision.reasons
    assert len(decision.exposures) == 1


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ([], "expected 4 tensors"),
        ({"0.weight": torch.zeros(4, 1, 3, 3)}, "'0.bias' is missing"),
        ([torch.zeros(1)] * 4, "expected (4, 1, 3, 3) for 0.weight"),
        (None, "failed with TypeError"),
        (["a", "b", "c", "d"], "failed with TypeError"),
    ],
    ids=["empty", "missing", "shapes", "nothing", "words"],
)
def test_updates_that_are_none(client, update, words) -> None:
    client.withheld(client.guard.review(client.batch, update), words)
    client.next_one_works()


class Squared(nn.Module):
    """A trainable layer of the user's own, which no contraction is known of."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 0.5))

    def forward(self, inputs):
        return inputs * self.weight.square().cumsum(0)


def test_unknown_layer(tmp_path) -> None:
    """Withheld, and the log names it; the policy may say otherwise, and the numbers are exact all the same."""
    model, batch = nn.Sequential(*network(), Squared()), images()
    log = AuditLog(tmp_path / "log.jsonl")
    decision = guard_of(model, POLICY, log=log).review(batch, gradient(model, batch, NOISE))
    assert (decision.action, decision.update) == ("block", None)
    assert "Squared" in next(log.entries())["reasons"][0]
    policy = Policy(max_revealed=0.9, unknown_layers="differentiate")
    decision = guard_of(model, policy).review(batch, gradient(model, batch, NOISE))
    assert decision.action == "allow", decision.reasons
    for one, value in zip(decision.exposures, revealed(spectra(model, batch), NOISE).tolist(), strict=True):
        assert one.revealed.low <= value <= one.revealed.high


def test_layers_that_draw_in_train_mode(tmp_path) -> None:
    model, batch = nn.Sequential(*network(), nn.Dropout(0.5)).train(), images()
    log = AuditLog(tmp_path / "log.jsonl")
    guard = guard_of(model, POLICY, log=log)
    torch.manual_seed(0)
    decision = guard.review(batch, gradient(model, batch, NOISE))
    assert decision.action == "block"
    assert "train mode" in decision.reasons[0]
    model.eval()
    assert guard.review(batch, gradient(model, batch, NOISE)).action == "allow"


def test_on_failure_warn_lets_pass_what_was_not_reviewed(tmp_path) -> None:
    client = Round(tmp_path, Policy(max_revealed=0.9, on_failure="warn", budget_seconds=1e-3))
    decision = client.guard.review(client.batch, client.update)
    assert (decision.action, decision.allowed) == ("warn", True)
    assert decision.reasons[0].startswith("not reviewed: the budget")


def test_samples_that_time_does_not_allow_are_not_called_safe(tmp_path, monkeypatch) -> None:
    """A batch of which a part was drawn: the policy says how much may go without a number."""
    monkeypatch.setattr("riskaudit.guard.estimation.FIRST_SAMPLES", 4)
    monkeypatch.setattr("riskaudit.guard.estimation.TIME_SHARE", 0.0)
    policy = Policy(max_revealed=0.9, budget_seconds=60.0)
    client = Round(tmp_path, policy)
    client.withheld(client.guard.review(client.batch, client.update), "2 of 6 samples could not be assessed")
    relaxed = Round(tmp_path, Policy(max_revealed=0.9, budget_seconds=60.0, max_unassessed=0.5))
    decision = relaxed.guard.review(relaxed.batch, relaxed.update)
    assert decision.action == "allow"
    assert re.match("4 of 6 samples, drawn at random, .*of the others, at most", decision.reasons[0])
    unseen = [one for one in decision.exposures if one.revealed is None]
    assert len(unseen) == 2
    warned = Round(tmp_path, Policy(max_revealed=0.9, budget_seconds=60.0, on_violation="warn"))
    warned.withheld(warned.guard.review(warned.batch, warned.update), "could not be assessed")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("count", [20, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_reviews_without_growth(tmp_path, count) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    batch = (torch.rand(2, 4), torch.tensor([0, 1]))
    guard = guard_of(model, Policy(max_total_revealed=1.0), log=tmp_path / "log.jsonl", ledger=tmp_path / "ledger.db")
    update = gradient(model, batch, NOISE)
    for _ in range(20):
        guard.review(batch, update, ids=range(2))
    files, memory = open_files(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        assert guard.review(batch, update, ids=range(2)).action == "allow", number
    assert open_files() <= files
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < memory + 20 * 1024
    assert guard.ledger.num_rounds == count + 20


def test_a_mean_that_is_no_number_matches_nothing(tmp_path) -> None:
    client = Round(tmp_path)
    mean = torch.full((len(torch.cat([part.reshape(-1) for part in client.update])),), math.nan, dtype=torch.float64)
    assert "isn't finite" in client.guard.client.mismatch(torch.zeros_like(mean), mean)


def test_words_of_a_model_that_fails_on_other_batches_are_not_logged(tmp_path) -> None:
    """Such words may quote inputs."""

    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, inputs):
            if len(inputs) not in (1, 6):
                raise ValueError(f"first pixels {inputs.flatten()[:3].tolist()}")
            return self.inner(inputs)

    model, batch = Picky(), images()
    guard = guard_of(model, POLICY, log=tmp_path / "log.jsonl")
    assert guard.review(batch, gradient(model, batch, NOISE)).action == "block"
    assert "pixels" not in (tmp_path / "log.jsonl").read_text()


def test_failing_while_sanitising_never_lets_the_update_pass(tmp_path, monkeypatch) -> None:
    """A violation was established: on_failure is about what could not be reviewed."""
    policy = Policy(max_revealed=0.01, on_violation="sanitise", on_failure="warn")
    client = Round(tmp_path, policy)

    def fail(*_args, **_kwargs):
        raise RuntimeError("secret 42")

    monkeypatch.setattr("riskaudit.guard.review.least_noise", fail)
    decision = client.guard.review(client.batch, client.update)
    client.withheld(decision, "sanitising failed: RuntimeError")
    assert "secret" not in client.log.path.read_text()


def test_a_setting_that_is_no_tensor_changes_what_is_reviewed(tmp_path) -> None:
    model, batch = nn.Sequential(*network(), nn.LeakyReLU(0.01)), images()
    guard = guard_of(model, POLICY)
    assert guard.review(batch, gradient(model, batch, NOISE)).allowed
    model[-1].negative_slope = 3.0
    decision = guard.review(batch, gradient(model, batch, NOISE))
    exact = revealed(spectra(model, batch), NOISE).tolist()
    assert decision.exposures, decision.reasons
    for one, value in zip(decision.exposures, exact, strict=True):
        assert one.revealed.low <= value <= one.revealed.high


def test_buffers_that_a_state_dict_leaves_out_count_at_sending(client) -> None:
    client.model.register_buffer("scale", torch.ones(1), persistent=False)
    decision = client.guard.review(client.batch, client.update)
    assert decision.allowed, decision.reasons
    client.model.scale.mul_(2)
    client.withheld(client.guard.confirm(decision), "the model isn't the one that was reviewed")
