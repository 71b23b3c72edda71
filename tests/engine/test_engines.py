"""Every engine gives the trials' results in their order; what dies, fails or is interrupted is told as it is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_cases import Add, Unreadable, adder

from riskaudit.engine import Engine, Interrupted, Journal, ProcessEngine, SerialEngine, make_engine, tell_share
from riskaudit.errors import EngineError, SettingsError

NUMBERS = [3, 1, 2, 7, 5]


class Shown:
    """A progress that keeps all that it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int] | float] = []

    def __call__(self, done: int, total: int, /) -> None:
        self.told.append((done, total))

    def show_under_way(self, amount: float, /) -> None:
        self.told.append(amount)


@pytest.fixture(params=["serial", 1, 3], ids=["serial", "1 worker", "3 workers"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with SerialEngine() if request.param == "serial" else ProcessEngine(request.param) as made:
        yield made


@pytest.fixture
def processes() -> Iterator[ProcessEngine]:
    with ProcessEngine(2) as made:
        yield made


@pytest.mark.sampled(1)
def test_results_are_in_the_order_of_the_trials(engine: Engine) -> None:
    assert engine.map([Add(number) for number in NUMBERS], adder()) == [103, 101, 102, 107, 105]
    assert engine.map([Add(number) for number in NUMBERS], adder(0)) == NUMBERS
    assert engine.map([], adder()) == []


@pytest.mark.sampled(1)
def test_progress_counts_sizes(engine: Engine) -> None:
    told: list[tuple[int, int]] = []
    trials = [Add(1, samples=0), Add(2, samples=2), Add(3, samples=3)]
    engine.map(trials, adder(), progress=lambda *counts: told.append(counts))
    assert len(told) == 3
    assert told[0] == (0, 5)
    assert told[1][0] in (2, 3)
    assert told[-1] == (5, 5)


def test_what_is_under_way_is_told_where_trials_run_here() -> None:
    shown = Shown()
    trials = [Add(2, "tell", samples=2), Add(3, "tell", samples=4)]
    SerialEngine().map(trials, adder(), progress=shown)
    assert shown.told == [(0, 6), 1.0, (2, 6), 2.0, (6, 6)]
    # Neither after them nor to those who show only what is done.
    tell_share(0.5)
    SerialEngine().map(trials, adder(), progress=lambda *counts: shown.told.append(counts))
    assert shown.told[5:] == [(0, 6), (2, 6), (6, 6)]


def test_the_first_error_is_raised_and_what_is_finished_is_kept(engine: Engine) -> None:
    journal = Journal(None, "one")
    trials = [Add(1), Add(2, "fail"), Add(3, "fail"), Add(4)]
    with pytest.raises(SettingsError, match="else than 2"):
        engine.map(trials, adder(), journal)
    assert "add 1" in journal
    assert "add 2" not in journal
    assert engine.map([Add(5)], adder()) == [105]


def test_an_interrupt_keeps_what_is_finished(engine: Engine, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    log = tmp_path / "trials.jsonl"
    trials = [Add(number) for number in NUMBERS]
    with pytest.raises(Interrupted) as caught:
        engine.map(trials, adder(), Journal(log, "one"), interrupt)
    assert len(caught.value.finished) == 2
    journal = Journal(log, "one", resume=True)
    assert {key: journal[key] for key in caught.value.finished} == caught.value.finished
    told: list[tuple[int, int]] = []
    assert engine.map(trials, adder(), journal, lambda *counts: told.append(counts)) == [103, 101, 102, 107, 105]
    assert told == [(2, 5), (3, 5), (4, 5), (5, 5)]
    # The offset shows that nothing is run again.
    assert engine.map(trials, adder(0), Journal(log, "one", resume=True)) == [103, 101, 102, 107, 105]


def test_a_journal_of_another_identity_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    SerialEngine().map([Add(1)], adder(), Journal(log, "one"))
    with pytest.raises(SettingsError, match="another study"):
        Journal(log, "two", resume=True)


def test_the_trial_of_a_killed_process_is_run_again(processes: ProcessEngine, tmp_path: Path) -> None:
    trials = [Add(1), Add(2, "die once", tmp_path / "marker"), Add(3)]
    assert processes.map(trials, adder()) == [101, 102, 103]


def test_a_trial_whose_process_ends_twice_is_an_error(processes: ProcessEngine) -> None:
    journal = Journal(None, "one")
    with pytest.raises(EngineError, match=r"trial add 2 was killed by signal 9 twice"):
        processes.map([Add(1), Add(2, "die"), Add(3)], adder(), journal)
    assert "add 1" in journal
    assert processes.map([Add(4)], adder()) == [104]


def test_what_cannot_be_sent_is_told(processes: ProcessEngine) -> None:
    with pytest.raises(SettingsError, match=r"the model, its loss or the data can't be sent .*use `workers=1`"):
        processes.map([Add(1)], adder(more=lambda: None))
    with pytest.raises(SettingsError, match="no such class here"):
        processes.map([Add(1)], adder(more=Unreadable()))
    with pytest.raises(SettingsError, match="what is to be done can't be sent"):
        processes.map([Add(1, fate=lambda: None)], adder())  # type: ignore[arg-type]
    assert processes.map([Add(1)], adder()) == [101]


def test_workers_have_the_threads_of_this_process(processes: ProcessEngine) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert processes.map([Add(1, "threads")], adder()) == [before + 1]
    finally:
        torch.set_num_threads(before)


def test_number_of_workers() -> None:
    assert isinstance(make_engine(1), SerialEngine)
    with make_engine(3) as engine:
        assert engine.workers == 3
    with pytest.raises(SettingsError, match="`workers` of at least 1, found 0"):
        make_engine(0)


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from engine_cases import Add, adder
from riskaudit.engine import ProcessEngine
if __name__ == "__main__":
    engine = ProcessEngine(2)
    engine.map([Add(1), Add(2)], adder())
    print(*(worker.process.pid for worker in engine._pool), flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.kill()
    deadline = time.monotonic() + 30
    while any(_is_running(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # One that ended stays as a zombie until its parent looks.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
