"""The guard's own record: one JSON object per line, each with the hash of the line before and a keyed MAC.

Changing, removing or inserting a line breaks the chain at that place. A chain that was made anew lacks the key, and
one that was cut off at its end is behind its counter; key and counter lie elsewhere (`riskaudit.guard.keys`). Without
them the chain alone can be checked, against a hash that was noted earlier (`AuditLog.head`).
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from riskaudit.errors import GuardError
from riskaudit.guard.keys import GENESIS, KeyFolder, State, TamperingError, mac_of

# A line is read back from this many bytes before the end, at first.
TAIL = 65536


# A line that was read; those that a log consists of have number, hash, and the log's random name.
Line: TypeAlias = Mapping[str, Any]
# What the first line follows.
START: Line = {"log": "", "number": 0, "hash": GENESIS}


class AuditLog:
    """An append-only file of chained lines; several processes on one machine may share it.

    Args:
        path: made at the first line, readable by its owner only.
        keys: folder of the key and the counters; see `riskaudit.guard.keys` for the default.
    """

    def __init__(self, path: str | Path, *, keys: KeyFolder | str | Path | None = None) -> None:
        self.path = Path(path)
        self.keys = keys if isinstance(keys, KeyFolder) else KeyFolder(keys)

    def append(self, entry: dict[str, Any]) -> str:
        """Write one line and wait until the disk has it; returns its hash.

        A line that a kill tore is closed first, and the new one says so: ``torn`` is the hash of what is left of it.

        Raises:
            GuardError: the file can't be written.
            TamperingError: it isn't as it was left.
        """
        with self._opened() as stream:
            whole, torn = _tail(stream)
            last = self._checked(whole)
            line = dict(entry)
            if torn and not (whole is not None and torn == _text(whole)):
                line["torn"] = hashlib.sha256(torn).hexdigest()
            line["number"] = last["number"] + 1
            line["previous"] = str(last["hash"])
            line["log"] = last["log"] or secrets.token_hex(8)
            line["mac"] = self._mac(line, create=True)
            line["hash"] = _hash(line)
            content = (b"\n" if torn else b"") + _text(line) + b"\n"
            self._write(stream, content, (last["number"], line["previous"]), line)
        return str(line["hash"])

    def require(self) -> None:
        """Raise what `append` would, as far as that shows beforehand.

        Raises:
            GuardError: the file can't be written.
            TamperingError: it isn't as it was left.
        """
        with self._opened() as stream:
            self._checked(_tail(stream)[0])

    def last(self) -> Line:
        """The last line, once it is seen to be as it was left; `START` where there is none.

        Raises:
            GuardError: the file can't be read.
            TamperingError: it isn't as it was left.
        """
        try:
            with self.keys.locked(self.path):
                if not self.path.exists():
                    return self._checked(None)
                with self.path.open("rb") as stream:
                    return self._checked(_tail(stream)[0])
        except (OSError, ValueError) as error:
            raise GuardError(f"the log {self.path.name} can't be read ({error}); choose another") from error

    def reset(self, reason: str) -> Path | None:
        """Start anew with a line that says so; returns where the file that was there lies now.

        Args:
            reason: a sentence.
        """
        aside = self.keys.put_aside(self.path)
        self.append({"decision": "reset", "reasons": [reason]})
        return aside

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file for one writer alone, made where there is none."""
        try:
            self.keys.refuse_neighbour(self.path)
            flags = os.O_CREAT | os.O_RDWR | os.O_APPEND
            with self.keys.locked(self.path), os.fdopen(os.open(self.path, flags, 0o600), "r+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                yield stream
        except (OSError, ValueError, KeyError) as error:
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise GuardError(
                f"the log {self.path.name} can't be written ({words}); repair it or choose another"
            ) from error

    def _write(self, stream: BinaryIO, content: bytes, before: State, line: dict[str, Any]) -> None:
        """One line, announced in the counter before and counted after."""
        state, identity = (line["number"], line["hash"]), line["log"]
        self.keys.set_counter(identity, before, announced=state)
        if self.keys.identity_at(self.path) != identity:
            self.keys.set_identity(self.path, identity)
        stream.seek(0, os.SEEK_END)
        start = stream.tell()
        try:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        except OSError:
            # A full disk may have taken a part: leave what was there before.
            stream.truncate(start)
            raise
        self.keys.set_counter(identity, state)

    def _checked(self, last: Line | None) -> Line:
        """A last line, held against MAC and counter."""
        belongs = self.keys.identity_at(self.path)
        if last is None:
            if counted := self.keys.number(belongs):
                raise self._broken(f"it is empty or gone, and the counter at {counted}")
            return START
        if "mac" not in last or "log" not in last:
            raise self._broken("its last line has no MAC, as lines of earlier versions have none")
        identity = str(last["log"])
        states = self.keys.states(identity)
        if states is None or self.keys.derived(b"", create=False) is None:
            raise TamperingError.keyless("log", self.path.name, self.keys.path)
        # A counter at zero is of a first line that was announced and never written.
        if belongs not in (None, identity) and self.keys.number(belongs):
            raise self._broken("it is another log than the one that belongs here")
        number, head = last["number"], str(last["hash"])
        if last["mac"] != self._mac(last, create=False) or head != _hash(last):
            raise self._broken("its last line isn't as it was written")
        if (number, head) not in states:
            raise self._broken(f"it ends at line {number}, and the counter is at {states[0][0]}")
        return last

    def _broken(self, what: str) -> TamperingError:
        return TamperingError.changed("log", self.path.name, what)

    def _mac(self, line: Line, *, create: bool) -> str:
        """MAC of a line, over all of it but MAC and hash."""
        key = self.keys.derived(b"log", str(line.get("log")).encode(), create=create)
        text = _text({name: value for name, value in line.items() if name not in ("mac", "hash")})
        return "" if key is None else mac_of(key, text).hex()

    def entries(self) -> Iterator[dict[str, Any]]:
        """All whole lines.

        Raises:
            GuardError: the file can't be read.
        """
        yield from (entry for _, entry, _ in self._lines() if entry is not None)

    @property
    def head(self) -> str:
        """Hash of the last whole line."""
        return next((str(entry.get("hash")) for entry in deque(self.entries(), maxlen=1)), GENESIS)

    def problems(self, head: str | None = None) -> list[str]:
        """What shows that the file isn't as it was written, one sentence each; empty where the chain is whole.

        Args:
            head: the hash that the chain must contain, noted earlier; shows lines that were cut off the end.

        Raises:
            GuardError: the file can't be read.
        """
        problems, unsealed, previous, number, torn = [], list[str](), GENESIS, 0, None
        heads, identities, last = {GENESIS}, set[object](), None
        for line, (raw, entry, ended) in enumerate(self._lines(), start=1):
            if torn is not None and (entry is None or entry.get("torn") != torn[1]):
                problems.append(f"line {torn[0]} isn't JSON, and the next line doesn't say that a kill tore it")
            torn = None
            if entry is None:
                torn = (line, hashlib.sha256(raw).hexdigest(), ended)
                continue
            number += 1
            if not _intact(raw, entry):
                problems.append(f"line {line} was changed: its hash doesn't fit")
            if entry.get("previous") != previous:
                problems.append(f"line {line} doesn't follow the line before: lines were removed, inserted or moved")
            if entry.get("number") != number:
                problems.append(f"line {line} has number {entry.get('number')}, expected {number}")
                number = entry["number"] if isinstance(entry.get("number"), int) else number
            previous, last = str(entry.get("hash")), entry
            heads.add(previous)
            identities.add(entry.get("log"))
            if not self._is_sealed(entry):
                unsealed.append(f"line {entry.get('number')} wasn't written with the key: its MAC doesn't fit")
        # A last line without its end is what a kill leaves; the next append closes it.
        if torn is not None and torn[2]:
            problems.append(f"line {torn[0]} isn't JSON, though it was written to its end")
        if head is not None and head not in heads:
            problems.append("the hash that was noted earlier isn't in the file: lines were cut off its end")
        problems += unsealed
        if len(identities) > 1:
            problems.append("its lines are of several logs")
        try:
            with self.keys.locked(self.path, create=False):
                self._checked(last)
        except (GuardError, ValueError, TypeError, KeyError) as error:
            problems.append(str(error))
        return problems

    def _is_sealed(self, line: Line) -> bool:
        """Whether a line has its MAC, where there is a key to tell."""
        try:
            expected = self._mac(line, create=False)
        except ValueError:
            return False
        mac = line.get("mac")
        return not expected or (isinstance(mac, str) and hmac.compare_digest(mac.encode(), expected.encode()))

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any] | None, bool]]:
        """Every line without its end, what it holds, and whether it has an end."""
        try:
            with self.path.open("rb") as stream:
                for raw in stream:
                    yield raw.rstrip(b"\n"), _parsed(raw), raw.endswith(b"\n")
        except OSError as error:
            raise GuardError(f"can't read {self.path}: {error.strerror or error}") from error


def _tail(stream: BinaryIO) -> tuple[dict[str, Any] | None, bytes]:
    """The last whole line, and the bytes after it that a kill left."""
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
        entry = json.loads(raw)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "hash" in entry and "number" in entry else None


def _intact(raw: bytes, entry: dict[str, Any]) -> bool:
    """Whether a line is as it was written, to the letter: JSON may say one thing twice."""
    try:
        return raw == _text(entry) and entry.get("hash") == _hash(entry)
    except ValueError:
        return False


def _hash(line: Line) -> str:
    return hashlib.sha256(_text({name: value for name, value in line.items() if name != "hash"})).hexdigest()


def _text(line: Line) -> bytes:
    return json.dumps(dict(line), sort_keys=True, allow_nan=False, ensure_ascii=True).encode()
