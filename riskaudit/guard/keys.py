"""A key and counters that are kept away from the ledger and the log, so that who can write those can't forge them.

The folder is RISKAUDIT_STATE, else XDG_STATE_HOME/riskaudit, else ~/.local/state/riskaudit, for its owner only. It
holds

- ``key``: 32 random bytes, from which the MAC key of every file is derived,
- per file a counter: how many rounds (lines) it had last, and the MAC (hash) of the last one. A file that is behind
  its counter was put back to an earlier state,
- per path the identity of the file that belongs there: one that is missing or another one was deleted or replaced.

A write announces the next state in the counter, writes the file, and then moves the counter. A kill in between leaves
a counter that admits both states. Nothing was handed out in that round, so that neither hides an upload.

Who restores this folder together with ledger and log isn't noticed: that takes a third place.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from riskaudit.errors import GuardError, OutputError
from riskaudit.files import write_file

VARIABLE = "RISKAUDIT_STATE"
# Seconds that one process waits for another one.
PATIENCE = 10.0
# The head of a file without rounds or lines.
GENESIS = "0" * 64
# Where a file stands: number of its last round or line, and that one's MAC or hash.
State: TypeAlias = tuple[int, str]


class TamperingError(GuardError):
    """A ledger or a log isn't as the guard left it: withheld whatever the policy says about failures."""

    @classmethod
    def changed(cls, kind: str, name: str, what: str) -> TamperingError:
        """Of a file of this kind ("ledger" or "log"): what of it has changed, and what to do."""
        return cls(
            f"the {kind} {name} isn't as the guard left it: {what}; put the newest copy back, or start over on purpose "
            f"with riskaudit {kind} reset"
        )

    @classmethod
    def keyless(cls, kind: str, name: str, folder: Path) -> TamperingError:
        """Of a file of this kind whose key or counter isn't in its folder."""
        return cls(
            f"the key and the counter of the {kind} {name} aren't in {folder}; restore that folder, or start over on "
            f"purpose with riskaudit {kind} reset"
        )


class KeyFolder:
    """The folder; nothing is made before something is written.

    Args:
        folder: its place; None for the default.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.path = Path(folder) if folder is not None else _default_folder()

    def derived(self, *parts: bytes, create: bool) -> bytes | None:
        """The MAC key of one file, 32 bytes.

        Args:
            parts: what the file is.
            create: make a new key where there is none, rather than return None.

        Raises:
            GuardError: the key can't be read or made.
        """
        with self._usable():
            master = self._key()
            if master is None and create:
                self._make_key()
                master = self._key()
        return None if master is None else mac_of(master, *parts)

    def states(self, identity: str) -> list[State] | None:
        """States that a file's counter admits: the last certain one, and one whose write was begun; None without.

        Raises:
            GuardError: the counter can't be read.
        """
        stored = self._read(f"{identity}.json")
        if stored is None:
            return None
        try:
            certain, announced = (stored["number"], stored["head"]), stored["announced"]
            return [(int(state[0]), str(state[1])) for state in (certain, announced) if state is not None]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise GuardError(f"the counter {identity} in {self.path} can't be read; restore it") from error

    def number(self, identity: str | None) -> int:
        """The last round or line that is certain of a file; 0 of none."""
        states = None if identity is None else self.states(identity)
        return states[0][0] if states else 0

    def set_counter(self, identity: str, certain: State = (0, GENESIS), announced: State | None = None) -> None:
        """Write the states that a file may be in, and wait until the disk has them."""
        self._write(f"{identity}.json", {"number": certain[0], "head": certain[1], "announced": announced})

    def identity_at(self, path: Path) -> str | None:
        """Identity of the file that belongs at a path; None where none was ever seen there."""
        stored = self._read(f"{_file_name(path)}.json")
        return None if stored is None else str(stored.get("identity"))

    def set_identity(self, path: Path, identity: str) -> None:
        """Remember which file belongs at a path."""
        self._write(f"{_file_name(path)}.json", {"identity": identity, "path": str(Path(path).absolute())})

    def put_aside(self, path: Path, endings: Sequence[str] = ("",)) -> Path | None:
        """Let another file take the place of one, on purpose; returns where that lies now, None without one.

        Args:
            path: of the file.
            endings: of its name and of the names of files that belong to it.

        Raises:
            GuardError: it can't be moved.
        """
        stamp, aside = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f"), None
        with self.locked(path):
            try:
                for ending in endings:
                    source = path.with_name(path.name + ending)
                    if source.exists():
                        moved = source.rename(path.with_name(f"{path.name}.before-{stamp}{ending}"))
                        aside = aside if ending else moved
            except OSError as error:
                raise GuardError(f"can't move {path} aside: {error.strerror or error}") from error
            with self._usable():
                (self.path / f"{_file_name(path)}.json").unlink(missing_ok=True)
        return aside

    def refuse_neighbour(self, path: Path) -> None:
        """Refuse to keep the key in the folder that it protects.

        Raises:
            GuardError: see above.
        """
        if self.path.resolve() == Path(path).absolute().parent.resolve():
            raise GuardError(
                f"expected the key outside the folder of {Path(path).name}, found both in one; choose another "
                f"{VARIABLE}"
            )

    @contextmanager
    def locked(self, path: Path, *, create: bool = True) -> Iterator[None]:
        """Alone with the file at a path, its counter included.

        Raises:
            GuardError: another process holds it for too long, or the folder can't be written.
        """
        descriptor = None
        with self._usable():
            if create or self.path.is_dir():
                self._make_folder()
                name = self.path / f"{_file_name(path)}.lock"
                descriptor = os.open(name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            if descriptor is not None:
                _wait_for(descriptor, Path(path).name)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _key(self) -> bytes | None:
        path = self.path / "key"
        try:
            if path.stat().st_mode & 0o077:
                raise GuardError(f"expected {path} to be readable by its owner only; run chmod 600 on it")
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if len(content) != 32:
            raise GuardError(f"expected a key of 32 bytes in {path}, found {len(content)}; restore it")
        return content

    def _make_key(self) -> None:
        """Whoever comes first; the others take theirs."""
        self._make_folder()
        temporary = self.path / f".key.{secrets.token_hex(6)}"
        write_file(temporary, secrets.token_bytes(32), private=True)
        try:
            with suppress(FileExistsError):
                os.link(temporary, self.path / "key")
        finally:
            temporary.unlink()

    def _make_folder(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            stored = json.loads((self.path / name).read_bytes())
            if not isinstance(stored, dict):
                raise ValueError("expected an object")
            return stored
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise GuardError(f"{name} in {self.path} can't be read; restore it") from error

    def _write(self, name: str, content: dict[str, Any]) -> None:
        with self._usable():
            self._make_folder()
            write_file(self.path / name, json.dumps(content).encode(), private=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Errors of the file system, as those of this folder."""
        try:
            yield
        except (OSError, OutputError) as error:
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise GuardError(
                f"key and counters of the ledger and of the log can't be kept in {self.path} ({words}); set {VARIABLE}"
            ) from error


def mac_of(key: bytes, *parts: bytes) -> bytes:
    """HMAC-SHA-256 of parts with their lengths, so that no two lists of parts are the same bytes."""
    return hmac.digest(
        key, b"".join(piece for part in parts for piece in (len(part).to_bytes(8, "big"), part)), "sha256"
    )


def _default_folder() -> Path:
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(state) if state else Path.home() / ".local" / "state") / "riskaudit"
    except RuntimeError as error:
        raise GuardError(f"expected a home folder to keep the key of ledgers and logs in; set {VARIABLE}") from error


def _file_name(path: Path) -> str:
    """A path as the name of a file: links are not followed, for they may be changed."""
    return "at-" + hashlib.sha256(os.fsencode(os.path.normpath(Path(path).absolute()))).hexdigest()[:32]


def _wait_for(descriptor: int, name: str) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise GuardError(f"{name} is held by another process; try again") from None
            time.sleep(0.005)
