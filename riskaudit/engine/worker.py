"""A worker process: gets a client's description once, then trials, and answers each with its result."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, Literal

import torch

from riskaudit.inputs.user_code import load_user_file
from riskaudit.memory import keep_freed_memory


@dataclass(frozen=True)
class Environment:
    """What of a process decides its numbers besides the client.

    Attributes:
        threads: of torch; sums are split among them.
        dtype: torch's default.
        device: the CUDA device where none is named; None to leave it.
    """

    threads: int
    dtype: torch.dtype
    device: int | None

    def apply(self) -> None:
        """Make this process like that."""
        keep_freed_memory()
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        if self.device is not None:
            torch.cuda.set_device(self.device)


@dataclass(frozen=True)
class ClientMessage:
    """A client's pickled description, and files of the user's code that its classes come from."""

    user_files: tuple[Path, ...]
    description: bytes


@dataclass(frozen=True)
class Answer:
    """What became of a trial: its result, an error that it raised, or a message that couldn't be read."""

    kind: Literal["result", "error", "unreadable"]
    content: Any


def work(channel: connection.Connection, environment: Environment) -> None:
    """Answer trials until the other end is closed."""
    # An interrupt is the parent's business, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    environment.apply()
    client: Any = None
    while True:
        try:
            message, trial = pickle.loads(channel.recv_bytes())
        except EOFError:
            return
        if message is not None:
            try:
                client = _client(message)
            except Exception as error:
                channel.send_bytes(_pickled(Answer("unreadable", f"{type(error).__name__}: {error}")))
                continue
        channel.send_bytes(_answer(trial, client))


def _client(message: ClientMessage) -> Any:
    for path in message.user_files:
        load_user_file(path)
    return pickle.loads(message.description).build()


def _answer(pickled_trial: bytes, client: Any) -> bytes:
    try:
        trial = pickle.loads(pickled_trial)
    except Exception as error:
        return _pickled(Answer("unreadable", f"{type(error).__name__}: {error}"))
    try:
        return _pickled(Answer("result", trial.run(client)))
    except Exception as error:
        error.add_note(traceback.format_exc())
        try:
            answer = _pickled(Answer("error", error))
            pickle.loads(answer)
        except Exception:  # an error of third-party code need not survive pickling
            return _pickled(Answer("error", RuntimeError(traceback.format_exc())))
        return answer


def _pickled(answer: Answer) -> bytes:
    # Not the connection's own pickler: torch makes that one share memory, which ends with this process.
    return pickle.dumps(answer)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
