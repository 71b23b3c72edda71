"""The finished shards in a run's folder: a file each, written beside its place and renamed.

The first line says what follows and who made it, with the SHA-256 of the second, which holds the rows. The second line
is the same bytes whoever worked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from pydantic import ConfigDict, ValidationError

from riskaudit.errors import RunError
from riskaudit.files import write_file
from riskaudit.results.base import Record
from riskaudit.runs.manifest import RunManifest, Unit

SHARDS = "shards"


class ShardHeader(Record):
    """What a shard's file says of itself.

    ``run`` is the id of the run, ``failed`` the number of samples without numbers, ``seconds`` what the work took,
    ``batch`` the fewest uploads that were worked on at once.
    """

    model_config = ConfigDict(extra="forbid")

    run: str
    shard: int
    samples: int
    failed: int
    batch: int
    worker: str
    seconds: float
    sha256: str


@final
class ShardStore:
    """Finished shards by unit.

    Args:
        folder: of the run.
        manifest: the run's.
    """

    def __init__(self, folder: Path, manifest: RunManifest) -> None:
        self._folder, self._manifest = folder / SHARDS, manifest

    def path(self, unit: Unit) -> Path:
        """Of a shard's file."""
        return self._folder / f"{unit.name}.json"

    def has(self, unit: Unit) -> bool:
        """Whether a shard is finished."""
        return self.path(unit).is_file()

    def finished(self) -> set[int]:
        """Numbers of the finished shards, by their names alone.

        Raises:
            RunError: the folder can't be read.
        """
        try:
            names = [path.stem for path in self._folder.iterdir() if path.suffix == ".json"]
        except OSError as error:
            raise RunError(f"can't read {self._folder}: {error.strerror or error}") from error
        return {int(name) for name in names if name.isdecimal()}

    def write(self, unit: Unit, rows: Mapping[str, Any], *, batch: int, worker: str, seconds: float) -> None:
        """Keep a finished shard; one that is there already has the same rows and stays.

        Raises:
            OutputError: it can't be written.
        """
        if self.has(unit):
            return
        content = json.dumps(rows, allow_nan=False, separators=(",", ":")).encode()
        header = ShardHeader(
            run=self._manifest.id,
            shard=unit.number,
            samples=unit.size,
            failed=sum(row["status"] == "failed" for row in rows["rows"]),
            batch=batch,
            worker=worker,
            seconds=round(seconds, 3),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        lines = json.dumps(header.model_dump(mode="json")).encode() + b"\n" + content + b"\n"
        write_file(self.path(unit), lines, private=self._manifest.private)

    def header(self, unit: Unit) -> ShardHeader:
        """A finished shard's first line.

        Raises:
            RunError: the file can't be read, or isn't this run's.
        """
        try:
            with self.path(unit).open("rb") as stream:
                return self._header(unit, stream.readline())
        except OSError as error:
            raise self._broken(unit, error.strerror or str(error)) from error

    def read(self, unit: Unit) -> tuple[ShardHeader, dict[str, Any]]:
        """A finished shard.

        Raises:
            RunError: it can't be read, isn't whole, or belongs to another run.
        """
        header, content = self._content(unit)
        document = json.loads(content)
        if not isinstance(document, dict):
            raise self._broken(unit, "its second line is no object")
        return header, document

    def check(self, unit: Unit) -> None:
        """Refuse a finished shard that isn't whole.

        Raises:
            RunError: see `read`.
        """
        self._content(unit)

    def _content(self, unit: Unit) -> tuple[ShardHeader, bytes]:
        try:
            first, _, second = self.path(unit).read_bytes().partition(b"\n")
        except OSError as error:
            raise self._broken(unit, error.strerror or str(error)) from error
        header, content = self._header(unit, first), second.removesuffix(b"\n")
        if hashlib.sha256(content).hexdigest() != header.sha256:
            raise self._broken(unit, "it isn't what was written")
        return header, content

    def _header(self, unit: Unit, line: bytes) -> ShardHeader:
        try:
            header = ShardHeader.model_validate(json.loads(line))
        except (ValidationError, ValueError, RecursionError) as error:
            raise self._broken(unit, "its first line isn't a shard's") from error
        if (header.run, header.shard, header.samples) != (self._manifest.id, unit.number, unit.size):
            raise self._broken(unit, "it is of another run or another shard")
        return header

    def _broken(self, unit: Unit, reason: str) -> RunError:
        return RunError(
            f"can't use {self.path(unit)} ({reason}); remove the file, and riskaudit run work makes it anew"
        )
