"""The guard's own record: one JSON object per line, each with the hash of the line before.

Changing, removing or inserting a line breaks the chain at that place. Cutting lines off the end does not: keep the
last hash somewhere else (`AuditLog.head`) and give it to `AuditLog.problems`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from riskaudit.errors import GuardError

# What the first line refers to.
GENESIS = "0" * 64
# A line is read back from this many bytes before the end, at first.
TAIL = 65536


class AuditLog:
    """An append-only file of chained lines; several processes on one machine may share it.

    Args:
        path: made at the first line, readable by its owner only.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, entry: dict[str, Any]) -> str:
        """Write one line and wait until the disk has it; returns its hash.

        A line that a kill tore is closed first, and the new one says so: ``torn`` is the hash of what is left of it.

        Raises:
            GuardError: the file can't be written.
        """
        try:
            with self._locked() as stream:
                whole, torn = _tail(stream)
                line = dict(entry)
                if torn and not (whole is not None and torn == _text(whole)):
                    line["torn"] = hashlib.sha256(torn).hexdigest()
                line["number"] = 1 if whole is None else int(whole["number"]) + 1
                line["previous"] = GENESIS if whole is None else whole["hash"]
                line["hash"] = _hash(line)
                stream.seek(0, os.SEEK_END)
                start = stream.tell()
                try:
                    stream.write((b"\n" if torn else b"") + _text(line) + b"\n")
                    stream.flush()
                    os.fsync(stream.fileno())
                except OSError:
                    # A full disk may have taken a part: leave what was there before.
                    stream.truncate(start)
                    raise
            return str(line["hash"])
        except (OSError, ValueError, KeyError) as error:
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise GuardError(
                f"the log {self.path.name} can't be written ({words}); repair it or choose another"
            ) from error

    def entries(self) -> Iterator[dict[str, Any]]:
        """All whole lines.

        Raises:
            GuardError: the file can't be read.
        """
        for _, found, _ in self._lines():
            if found is not None:
                yield found

    @property
    def head(self) -> str:
        """Hash of the last whole line."""
        last = GENESIS
        for entry in self.entries():
            last = str(entry.get("hash"))
        return last

    def problems(self, head: str | None = None) -> list[str]:
        """What shows that the file isn't as it was written, one sentence each; empty where the chain is whole.

        Args:
            head: the hash that the chain must contain, noted earlier; shows lines that were cut off the end.

        Raises:
            GuardError: the file can't be read.
        """
        found, previous, number, torn, heads = [], GENESIS, 0, None, {GENESIS}
        for place, (raw, entry, ended) in enumerate(self._lines(), start=1):
            if torn is not None and (entry is None or entry.get("torn") != torn[1]):
                found.append(f"line {torn[0]} isn't JSON, and the next line doesn't say that a kill tore it")
            torn = None
            if entry is None:
                torn = (place, hashlib.sha256(raw).hexdigest(), ended)
                continue
            number += 1
            if not _intact(raw, entry):
                found.append(f"line {place} was changed: its hash doesn't fit")
            if entry.get("previous") != previous:
                found.append(f"line {place} doesn't follow the line before: lines were removed, inserted or moved")
            if entry.get("number") != number:
                found.append(f"line {place} has number {entry.get('number')}, expected {number}")
                number = entry["number"] if isinstance(entry.get("number"), int) else number
            previous = str(entry.get("hash"))
            heads.add(previous)
        # A last line without its end is what a kill leaves; the next append closes it.
        if torn is not None and torn[2]:
            found.append(f"line {torn[0]} isn't JSON, though it was written to its end")
        if head is not None and head not in heads:
            found.append("the hash that was noted earlier isn't in the file: lines were cut off its end")
        return found

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any] | None, bool]]:
        """Every line without its end, what it holds, and whether it has an end."""
        try:
            with self.path.open("rb") as stream:
                for raw in stream:
                    yield raw.rstrip(b"\n"), _parsed(raw), raw.endswith(b"\n")
        except OSError as error:
            raise GuardError(f"can't read {self.path}: {error.strerror or error}") from error

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream


def _tail(stream: BinaryIO) -> tuple[dict[str, Any] | None, bytes]:
    """The last whole line, and the bytes after it that a kill left.

    Raises:
        ValueError: the file holds something else.
    """
    size, reach = stream.seek(0, os.SEEK_END), TAIL
    while True:
        stream.seek(max(0, size - reach))
        block = stream.read()
        *lines, torn = block.split(b"\n")
        whole = _parsed(torn) if torn else None
        if whole is not None and _intact(torn, whole):
            # Only the line's end was torn off.
            return whole, torn
        if reach < size:
            lines = lines[1:]
        for raw in reversed(lines):
            entry = _parsed(raw)
            if entry is not None:
                return entry, torn
        if reach >= size:
            if lines:
                raise ValueError("it isn't a log of riskaudit")
            return None, torn
        reach *= 4


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "hash" in found and "number" in found else None


def _intact(raw: bytes, entry: dict[str, Any]) -> bool:
    """Whether a line is as it was written, to the letter: JSON may say one thing twice."""
    try:
        return raw == _text(entry) and entry.get("hash") == _hash(entry)
    except ValueError:
        return False


def _hash(line: dict[str, Any]) -> str:
    return hashlib.sha256(_text({name: value for name, value in line.items() if name != "hash"})).hexdigest()


def _text(line: dict[str, Any]) -> bytes:
    return json.dumps(line, sort_keys=True, allow_nan=False, ensure_ascii=True).encode()
