"""Trials and the engines that run them: what is finished is kept, and results don't depend on where trials ran.

A trial is described by data alone, so that another process can run it, and draws its random numbers from seeds of its
own, so that trials may run in any order. What depends on the number of workers, such as which trial runs where, may
not reach a result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, final, runtime_checkable

from riskaudit.engine.journal import Journal

Progress = Callable[[int, int], None]
ClientT = TypeVar("ClientT")
ClientT_contra = TypeVar("ClientT_contra", contravariant=True)
ClientT_co = TypeVar("ClientT_co", covariant=True)


@runtime_checkable
class FineProgress(Protocol):
    """A progress that shows, besides what is done, how much of the rest is under way."""

    def __call__(self, done: int, total: int, /) -> None:
        """What is done of the total."""

    def show_under_way(self, amount: float, /) -> None:
        """What trials that aren't finished have done, in the same units."""


class Description(Protocol[ClientT_co]):
    """What a client can be made from in another process; it can be pickled."""

    def build(self) -> ClientT_co:
        """The client."""

    def devices(self) -> Sequence[int]:
        """CUDA devices that workers are spread over; none where all of them use what the client names."""


class Describable(Protocol[ClientT_co]):
    """A client that says what it can be made from."""

    @property
    def description(self) -> Description[ClientT_co]:
        """What it was made from."""


class Trial(ABC, Generic[ClientT_contra]):
    """A piece of work on a client; implementations are frozen dataclasses that can be pickled.

    Attributes:
        key: names the trial among those of its study, in the journal.
        size: what it adds to the count of progress.
    """

    key: str
    size: int = 1

    @abstractmethod
    def run(self, client: ClientT_contra) -> Any:
        """The result: plain JSON where a journal keeps it, else anything that can be pickled."""


_tell: ContextVar[Callable[[float], None] | None] = ContextVar("tell", default=None)


def tell_share(share: float) -> None:
    """Tell the engine that runs the present trial which share of it is done, from 0 to 1."""
    tell = _tell.get()
    if tell is not None:
        tell(share)


@contextmanager
def _hearing(tell: Callable[[float], None]) -> Iterator[None]:
    """Within it shares of trials are told to this; those of trials within trials to nobody but their own engine."""
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)


class Interrupted(KeyboardInterrupt):
    """An interrupt while trials ran.

    Attributes:
        finished: results by key; what a journal was given is in its file too.
    """

    def __init__(self, finished: dict[str, Any]) -> None:
        super().__init__()
        self.finished = finished


class Engine(ABC):
    """Where trials run. A context manager: leaving it ends the engine's processes.

    Attributes:
        workers: trials that run at once.
        runs_here: whether trials run in this process in their order, so that they can say how far they are.
    """

    workers: int = 1
    runs_here: ClassVar[bool] = False

    @final
    def map(
        self,
        trials: Sequence[Trial[ClientT]],
        client: Describable[ClientT],
        journal: Journal | None = None,
        progress: Progress | None = None,
    ) -> list[Any]:
        """The trials' results, in the trials' order.

        Args:
            trials: with keys that differ.
            client: what they work on.
            journal: trials that it holds aren't run again; those that finish are added.
            progress: called as ``progress(done, total)``, in the trials' sizes, before the first and after each; one
                that shows what is under way is told of that too.

        Raises:
            Interrupted: on KeyboardInterrupt, with what is finished.
            EngineError: a trial's process ended twice.
            SettingsError: the client or a trial can't be sent to other processes.
        """
        finished = {trial.key: journal[trial.key] for trial in trials if journal is not None and trial.key in journal}
        done, total = sum(trial.size for trial in trials if trial.key in finished), sum(trial.size for trial in trials)
        pending = [trial for trial in trials if trial.key not in finished]
        before = len(finished)
        try:
            if progress is not None:
                progress(done, total)

            def tell(share: float) -> None:
                if self.runs_here and isinstance(progress, FineProgress):
                    progress.show_under_way(share * pending[len(finished) - before].size)

            with closing(self._run(pending, client)) as results, _hearing(tell):
                for trial, result in results:
                    # First, since an interrupt may come at any moment, and what is in the file is finished.
                    finished[trial.key] = result
                    if journal is not None:
                        journal.add(trial.key, result)
                    done += trial.size
                    if progress is not None and trial.size:
                        progress(done, total)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(finished) from interrupt
        return [finished[trial.key] for trial in trials]

    @abstractmethod
    def _run(
        self, trials: Sequence[Trial[ClientT]], client: Describable[ClientT]
    ) -> Generator[tuple[Trial[ClientT], Any], None, None]:
        """Trials with their results, as they finish."""

    def close(self) -> None:  # noqa: B027, an engine may have nothing to end
        """End what the engine started."""

    @final
    def __enter__(self) -> Self:
        return self

    @final
    def __exit__(self, *_: object) -> None:
        self.close()


def progress_after(progress: Progress | None, before: int, total: int) -> Progress | None:
    """The progress of a part of the work that follows ``before`` of ``total``; the part's own total doesn't matter."""
    return None if progress is None else lambda done, _: progress(before + done, total)
