"""Trials one after the other, in this process, on the client as it is."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, final

from typing_extensions import override

from riskaudit.engine.base import ClientT, Describable, Engine, Trial


@final
class SerialEngine(Engine):
    """Runs every trial here, in order."""

    runs_here = True

    @override
    def _run(
        self, trials: Sequence[Trial[ClientT]], client: Describable[ClientT]
    ) -> Generator[tuple[Trial[ClientT], Any], None, None]:
        for trial in trials:
            # The client is what its own description makes.
            yield trial, trial.run(client)  # type: ignore[arg-type]
