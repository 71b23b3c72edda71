"""Two processes on loopback, each with its own guard, average their gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

# Rounds in which rank 1 contributes nothing and rank 0 does.
LONE = ["one withheld", "fails before its forward pass", "fails after its backward pass", "not a number"]
NOBODY = ["too few", "none", "one fails, too few"]
BOTH = ["both", "sanitised", "both again"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ddp")
    environment = {
        **os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "ddp_worker.py"), str(rank), str(folder)], env=environment,
            stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_the_average_is_of_what_the_guards_let_pass(ranks, name) -> None:
    first, second = (rank[name] for rank in ranks)
    assert first["num_contributing"] == second["num_contributing"] == 2
    average = (first["update"] + second["update"]) / 2
    assert torch.equal(first["gradient"], average)
    assert torch.equal(second["gradient"], average)
    assert torch.equal(first["update"], first["own"])


@pytest.mark.parametrize("name", LONE)
def test_a_rank_without_a_decision_to_send_leaves_the_others_average_exactly(ranks, name) -> None:
    first, second = (rank[name] for rank in ranks)
    assert (first["action"], second["action"]) == ("allow", "block")
    assert first["num_contributing"] == second["num_contributing"] == 1
    assert torch.equal(first["gradient"], first["own"])
    assert torch.equal(second["gradient"], first["own"])


@pytest.mark.parametrize("name", NOBODY)
def test_with_too_few_ranks_nobody_steps_and_nothing_leaves(ranks, name) -> None:
    for found in (rank[name] for rank in ranks):
        assert not found["averaged"]
        assert found["gradient"] is None
        assert torch.equal(found["weights"], found["before"])


@pytest.mark.parametrize("name", [*BOTH, *LONE, *NOBODY])
def test_all_ranks_have_the_same_weights(ranks, name) -> None:
    first, second = (rank[name] for rank in ranks)
    assert first["averaged"] == second["averaged"] == (name not in NOBODY)
    assert torch.equal(first["weights"], second["weights"])
    assert torch.equal(first["weights"], first["before"]) == (name in NOBODY)


def test_a_sanitised_update_is_what_the_others_get(ranks) -> None:
    found = ranks[1]["sanitised"]
    assert found["action"] == "sanitise"
    assert not torch.equal(found["update"], found["own"])


def test_an_exception_is_told_without_its_words(ranks) -> None:
    (reason,) = ranks[1]["fails before its forward pass"]["reasons"]
    assert "ValueError" in reason
    assert "private" not in reason


def test_settings_that_can_not_work_are_refused_on_all_ranks(ranks) -> None:
    model, sizes, many, buffers = ([rank["refused"][place] for rank in ranks] for place in range(4))
    assert model == [
        "expected the guard's own model, or DistributedDataParallel around it",
        "another rank can't take part; its own error says why",
    ]
    assert sizes == 2 * ["expected the same model and min_ranks on all ranks, found different ones"]
    assert many == 2 * ["expected min_ranks between 1 and the 2 ranks, found 3"]
    assert all("broadcast_buffers=False" in text for text in buffers)
