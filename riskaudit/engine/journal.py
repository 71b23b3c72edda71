"""Finished trials of a study in a file, one line each, so that a killed study continues where it stopped.

A trial's result is plain JSON. The first line names the study's fingerprint (a hash of everything that decides its
results): a file of another study is refused. A line that a kill cut off counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from riskaudit.errors import OutputError, SettingsError
from riskaudit.files import write_file

# How the first line begins.
_START = b'{"study": '


def fingerprint(content: Mapping[str, Any]) -> str:
    """Hex SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@final
class Journal:
    """Results by key; kept in memory only where there is no path.

    Args:
        path: of the file; created where it doesn't exist.
        identity: fingerprint of the study.
        resume: take over the trials that are in the file; else the file is begun anew.

    Raises:
        SettingsError: the file belongs to another study.
        OutputError: it can't be written.
    """

    def __init__(self, path: Path | None, identity: str, resume: bool = False) -> None:
        self._path = path
        self._done: dict[str, Any] = {}
        if path is None:
            return
        try:
            if path.exists() and not _is_log(path):
                raise OutputError(f"{path} exists and is no file of trials; choose another `log`")
            if resume and path.exists():
                self._done = _read(path, identity)
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [{"study": identity}, *({"trial": key, "result": result} for key, result in self._done.items())]
            write_file(path, "".join(_line(line) for line in lines).encode(), private=True)
        except OSError as error:
            raise OutputError(f"can't write {path}: {error.strerror or error}; choose another `log`") from error

    def __contains__(self, key: str) -> bool:
        return key in self._done

    def __getitem__(self, key: str) -> Any:
        return self._done[key]

    def add(self, key: str, result: Any) -> None:
        """Record a finished trial; on disk before this returns."""
        self._done[key] = result
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(_line({"trial": key, "result": result}))
                stream.flush()
                os.fsync(stream.fileno())


def _is_log(path: Path) -> bool:
    """Whether a file is empty or begins like one of trials."""
    with path.open("rb") as stream:
        start = stream.read(len(_START))
    return not start or start == _START


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"


def _read(path: Path, identity: str) -> dict[str, Any]:
    done: dict[str, Any] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if number == 0:
            if not isinstance(entry, dict) or entry.get("study") != identity:
                raise SettingsError(
                    f"{path} holds trials of another study (other options, model, data or version); leave out "
                    "`resume` to begin anew, or choose another `log`"
                )
        elif isinstance(entry, dict) and isinstance(entry.get("trial"), str) and "result" in entry:
            done[entry["trial"]] = entry["result"]
    return done
