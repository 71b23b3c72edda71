"""Trials in processes of this machine, with the results of the serial engine to the last bit.

Workers compute with as many threads as this process, since sums depend on how they are split; with many workers
``OMP_NUM_THREADS=1`` for the whole run is fastest. Where a client works on CUDA without naming a device and there are
several, workers are spread over them.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import BaseContext
from typing import Any, final

import torch
from typing_extensions import override

from riskaudit.engine.base import ClientT, Describable, Description, Engine, Trial
from riskaudit.engine.worker import Answer, ClientMessage, Environment, work
from riskaudit.errors import EngineError, SettingsError
from riskaudit.inputs.text import clean
from riskaudit.inputs.user_code import user_files

# Imported once for all workers where the system can fork a server's copy.
_PRELOADED = ["riskaudit.audit.audit", "riskaudit.studies.verify.run"]


@dataclass(eq=False)
class _Worker:
    """A process, the channel to it, and the description of the client that it has."""

    process: Any
    channel: connection.Connection
    description: Description[Any] | None = None

    def end(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.join()


@dataclass
class _Schedule:
    """Trials by position: those to do, those being done, and those whose process ended once."""

    waiting: deque[int]
    running: dict[_Worker, int] = field(default_factory=dict)
    retried: set[int] = field(default_factory=set)
    # Of the earliest trial that failed; later ones aren't begun.
    failed: tuple[int, BaseException] | None = None

    def fail(self, position: int, error: BaseException) -> None:
        if self.failed is None or position < self.failed[0]:
            self.failed = position, error
        self.waiting = deque(other for other in self.waiting if other < self.failed[0])


@final
class ProcessEngine(Engine):
    """Runs trials in several processes, which live until the engine is closed.

    Args:
        workers: how many, at most.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: list[_Worker] = []
        self._message: tuple[Description[Any], ClientMessage] | None = None

    @override
    def _run(
        self, trials: Sequence[Trial[ClientT]], client: Describable[ClientT]
    ) -> Generator[tuple[Trial[ClientT], Any], None, None]:
        description = client.description
        payloads = [_pickled(trial, "what is to be done") for trial in trials]
        schedule = _Schedule(deque(range(len(trials))))
        try:
            while schedule.waiting or schedule.running:
                self._hand_out(schedule, payloads, description)
                for worker in self._answered(schedule):
                    position = schedule.running.pop(worker)
                    answer = self._answer(worker)
                    if answer is None:
                        self._retry(schedule, position, trials[position].key, worker)
                    elif answer.kind == "result":
                        yield trials[position], answer.content
                    elif answer.kind == "error":
                        schedule.fail(position, answer.content)
                    else:
                        schedule.fail(position, _unsendable("the model, its loss or the data", answer.content))
        finally:
            for worker in schedule.running:
                self._discard(worker)
        if schedule.failed is not None:
            raise schedule.failed[1]

    def _hand_out(self, schedule: _Schedule, payloads: Sequence[bytes], description: Description[Any]) -> None:
        """Give trials to workers that have none."""
        while schedule.waiting and len(schedule.running) < self.workers:
            worker = next((worker for worker in self._pool if worker not in schedule.running), None)
            worker = worker or self._start(description)
            message = None if worker.description is description else self._client_message(description)
            position = schedule.waiting.popleft()
            # A process that has ended while it had nothing to do counts as ended at this trial.
            with suppress(OSError):
                worker.channel.send_bytes(pickle.dumps((message, payloads[position])))
            worker.description = description
            schedule.running[worker] = position

    def _answered(self, schedule: _Schedule) -> list[_Worker]:
        """Workers that have answered, or whose process ended."""
        channels = {worker.channel: worker for worker in schedule.running}
        return [channels[channel] for channel in connection.wait(list(channels)) if channel in channels]

    def _answer(self, worker: _Worker) -> Answer | None:
        """A worker's answer; None where its process ended before."""
        try:
            answer: Answer = pickle.loads(worker.channel.recv_bytes())
        except (EOFError, OSError):
            return None
        return answer

    def _retry(self, schedule: _Schedule, position: int, key: str, worker: _Worker) -> None:
        worker.process.join()
        code = worker.process.exitcode
        self._discard(worker)
        if position not in schedule.retried:
            schedule.retried.add(position)
            schedule.waiting.appendleft(position)
            return
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        schedule.fail(
            position,
            EngineError(
                f"the process of trial {clean(key)} {how} twice, for lack of memory perhaps; use fewer `workers` or "
                "a smaller `batch_size` (a script that uses workers needs `if __name__ == '__main__':`)"
            ),
        )

    def _start(self, description: Description[Any]) -> _Worker:
        context = _context()
        devices = description.devices()
        device = devices[len(self._pool) % len(devices)] if devices else None
        environment = Environment(torch.get_num_threads(), torch.get_default_dtype(), device)
        here, there = context.Pipe()
        process = context.Process(target=work, args=(there, environment), daemon=True)  # type: ignore[attr-defined]
        process.start()
        there.close()
        worker = _Worker(process, here)
        self._pool.append(worker)
        return worker

    def _client_message(self, description: Description[Any]) -> ClientMessage:
        if self._message is None or self._message[0] is not description:
            content = _pickled(description, "the model, its loss or the data")
            self._message = description, ClientMessage(user_files(), content)
        return self._message[1]

    def _discard(self, worker: _Worker) -> None:
        self._pool.remove(worker)
        worker.end()

    @override
    def close(self) -> None:
        for worker in list(self._pool):
            self._discard(worker)


def _context() -> BaseContext:
    """Processes that begin without this one's threads and locks, which torch can't be forked with."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _pickled(value: object, what: str) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:  # third-party classes may raise anything
        raise _unsendable(what, f"{type(error).__name__}: {error}") from error


def _unsendable(what: str, reason: str) -> SettingsError:
    return SettingsError(
        f"{what} can't be sent to other processes ({clean(reason, 300)}); use `workers=1`, or define classes "
        "and functions at the top of a module"
    )
