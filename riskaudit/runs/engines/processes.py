"""Workers as processes of this machine, which are started again when a sample brings them down."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, final

from riskaudit.errors import EngineError, RunError
from riskaudit.inputs.text import clean
from riskaudit.runs.engines.progress import Shown
from riskaudit.runs.folder import RunFolder
from riskaudit.runs.worker import EXIT_REFUSED, PATIENCE

if TYPE_CHECKING:
    from riskaudit.engine import Progress

# Seconds between looks at the workers.
PAUSE = 0.2
# Where libraries look for the number of their threads; numpy's and torch's look in their own place first.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Workers that may end one after the other before they take a shard.
MOST_FALSE_STARTS = 3


@dataclass(eq=False)
class _Child:
    """A worker and what it said on its standard error."""

    process: subprocess.Popen[bytes]
    said: IO[bytes]

    def close(self) -> str:
        """Its last words."""
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        self.said.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        return clean(lines[-1], 1000) if lines else ""


@final
class WorkerProcesses:
    """Workers of one run on this machine.

    Args:
        folder: of the run.
        workers: how many.
        only: the number of the one shard to work on; None for all.
    """

    def __init__(self, folder: RunFolder, workers: int, only: int | None = None) -> None:
        self._folder, self._workers, self._only = folder, workers, only
        self._children: list[_Child] = []
        self._started, self._false_starts = 0, 0

    def work(self, progress: Progress | None = None) -> None:
        """Until all is done.

        Args:
            progress: called as ``progress(done, total)``, in samples.

        Raises:
            RunError: a worker can do nothing; the message is its own.
            EngineError: workers end before they take a shard.
        """
        shown = Shown(self._folder, self._only, progress)
        try:
            while shown.left or self._children:
                shown.update()
                while len(self._children) < min(self._workers, shown.left):
                    self._start()
                time.sleep(PAUSE)
                for child in [child for child in self._children if child.process.poll() is not None]:
                    self._children.remove(child)
                    self._account_for(child)
            shown.update()
        finally:
            self._end()

    def _start(self) -> None:
        threads = str(self._folder.manifest.threads)
        environment = {**os.environ, **dict.fromkeys(THREADS, threads), **self._device()}
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # Closed with the child.
        said = tempfile.TemporaryFile()  # noqa: SIM115
        # -P: what lies in the working folder is no module of ours.
        command = [sys.executable, "-P", "-m", "riskaudit.runs.worker", str(self._folder.path)]
        self._children.append(
            _Child(
                subprocess.Popen(
                    [*command, *([] if self._only is None else [str(self._only)])],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    env=environment,
                ),
                said,
            )
        )
        self._started += 1

    def _device(self) -> dict[str, str]:
        """Workers are spread over CUDA devices, where the run names none."""
        if self._folder.manifest.settings["device"] != "cuda":
            return {}
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
        return {"CUDA_VISIBLE_DEVICES": names[self._started % len(names)]} if names else {}

    def _account_for(self, child: _Child) -> None:
        code, last_words = child.process.returncode, child.close()
        if code == 0:
            self._false_starts = 0
            return
        if code == EXIT_REFUSED:
            raise RunError(last_words or "a worker refused to work; try `workers=1`")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if self._folder.leases.end_of(child.process.pid, f"its process {how}"):
            self._false_starts = 0
            return
        self._false_starts += 1
        if self._false_starts >= MOST_FALSE_STARTS:
            words = f" ({last_words})" if last_words else ""
            raise EngineError(
                f"the process of a worker {how}{words} before it took a shard, {self._false_starts} times, for lack of "
                "memory perhaps; use fewer `workers`"
            )

    def _end(self) -> None:
        for child in self._children:
            child.process.terminate()
        end = time.monotonic() + PATIENCE
        for child in self._children:
            try:
                child.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            child.close()
        self._children.clear()
