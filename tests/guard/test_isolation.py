"""Reviews in several threads, inside one another, and after one that failed."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from guard_cases import NOISE, gradient, guard_of, images, network
from torch import nn

from riskaudit.guard import Policy
from riskaudit.guard.isolation import isolated

LENIENT = Policy(max_revealed=0.999)
SANITISE = Policy(max_revealed=0.2, on_violation="sanitise")
THREADS = 4


@pytest.mark.sampled(1)
@pytest.mark.parametrize("shared", [True, False], ids=["one guard", "a guard each"])
@pytest.mark.parametrize("noise", [None, NOISE], ids=["sanitised", "noisy"])
def test_reviews_in_threads_wait_for_one_another(shared, noise) -> None:
    batch, policy = images(2), LENIENT if noise else SANITISE
    models = [network()] * THREADS if shared else [network(seed) for seed in range(THREADS)]
    guards = [guard_of(model, policy, noise) for model in models]
    guards = guards[:1] * THREADS if shared else guards
    updates = [gradient(model, batch, noise or 0.0) for model in models]

    def work(place: int) -> list[str]:
        actions = []
        for _ in range(2):
            assessed = guards[place].assess(batch)
            decision = guards[place].confirm(guards[place].review(batch, updates[place]))
            actions += [assessed.action, decision.action, *(["nothing left"] if decision.update is None else [])]
        return actions

    with ThreadPoolExecutor(THREADS) as pool:
        outcomes = list(pool.map(work, range(THREADS)))
    expected = ["allow", "allow"] if noise else ["block", "sanitise"]
    assert outcomes == [expected * 2] * THREADS
    assert all(isinstance(value, nn.Parameter) for model in models for value in model.parameters())


def test_what_a_failed_review_leaves_behind_is_not_used_again(monkeypatch) -> None:
    model, batch = network(), images()
    guard, updates = guard_of(model, LENIENT), [gradient(model, batch, NOISE) for _ in range(3)]
    assert guard.review(batch, updates[0]).action == "allow"
    with monkeypatch.context() as patched:
        refresh = guard.client.refresh

        def broken():
            refresh()
            copied = guard.client._copy[0]
            weight = copied._parameters.pop("weight")
            copied.weight = weight.detach().clone()
            raise RuntimeError("out of something")

        patched.setattr(guard.client, "refresh", broken)
        assert guard.review(batch, updates[1]).update is None
        assert guard.assess(batch).action == "block"
    assert guard.assess(batch).action == "allow"
    assert guard.review(batch, updates[2]).action == "allow"


def test_a_review_inside_a_review_goes_on() -> None:
    batch, inner_model = images(), network(1)
    inner, actions = guard_of(inner_model, LENIENT), []

    def loss(outputs, targets):
        if not actions:
            actions.append("begun")
            actions.append(inner.review(batch, gradient(inner_model, batch, NOISE)).action)
        return nn.functional.cross_entropy(outputs, targets)

    model = network()
    guard = guard_of(model, LENIENT)
    mean = guard.client.mean

    def nested(of):
        loss(model(batch[0]), batch[1])
        return mean(of)

    guard.client.mean = nested
    done = []
    thread = threading.Thread(
        target=lambda: done.append(guard.review(batch, gradient(model, batch, NOISE)).action), daemon=True
    )
    thread.start()
    thread.join(60)
    assert (done, actions) == (["allow"], ["begun", "allow"])


def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    entered, leave = threading.Event(), threading.Event()

    @isolated
    def hold() -> None:
        entered.set()
        leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(60)
    child = os.fork()
    if not child:
        signal.alarm(30)
        isolated(lambda: os._exit(7))()
    _, status = os.waitpid(child, 0)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 7
