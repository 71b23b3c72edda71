"""What a run audits and how: decided when it is created, checked by everyone who works on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from riskaudit.audit.settings import PRIOR_NAMES, AuditSettings
from riskaudit.audit.subject import SourceOptions
from riskaudit.errors import RunError
from riskaudit.files import names_code, sha256_of_file
from riskaudit.results.base import FileRecord, Record, first_fault
from riskaudit.settings import Settings

MANIFEST = "run.json"
# Options that may name a function of a file, and those that may name a file or folder.
_CODE, _PATHS = ("arch", "data", "loss"), ("base", "calibration", "classes", "data", "prior")


@dataclass(frozen=True)
class Unit:
    """Some samples of one checkpoint that follow each other.

    Attributes:
        number: among all of the run.
        checkpoint: number of the checkpoint.
        first: position of the first sample in the data.
        size: number of samples.
    """

    number: int
    checkpoint: int
    first: int
    size: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.number:06d}"


class RunCheckpoint(Record):
    """One of the models, and how it is audited.

    ``plan`` holds the solvers and their limits; ``shard`` is the number of samples of a shard, whole batches;
    ``data_sha256`` is of the samples as they are read for this model.
    """

    model_config = ConfigDict(extra="forbid")

    path: str
    sha256: str
    data_sha256: str
    num_samples: int = Field(ge=1)
    shard: int = Field(ge=1)
    plan: dict[str, Any]
    command: str | None = None

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.path).stem


class RunManifest(FileRecord):
    """All that decides a run's results, and where its inputs lie.

    ``files`` are hashes of the other files that it reads: code, priors, calibrations. ``heartbeat`` is the number of
    seconds between a worker's signs of life.
    """

    model_config = ConfigDict(extra="forbid")

    written_by: Literal["riskaudit run"] = "riskaudit run"
    format: Literal[1] = 1
    id: str = ""
    created_at: str
    versions: dict[str, str]
    source: dict[str, Any]
    settings: dict[str, Any]
    checkpoints: list[RunCheckpoint] = Field(min_length=1)
    files: dict[str, str]
    threads: int = Field(ge=1)
    show_samples: bool = False
    heartbeat: float = Field(default=5.0, gt=0)

    def identity(self) -> str:
        """Hex SHA-256 of what decides results: neither places nor times."""
        content = self.model_dump(mode="json", exclude={"id", "created_at", "files", "heartbeat"})
        content["files"] = sorted(self.files.values())
        content["source"] = _without_places(content["source"])
        content["settings"] = _without_places(content["settings"])
        for checkpoint in content["checkpoints"]:
            del checkpoint["path"], checkpoint["command"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def units(self) -> list[Unit]:
        """All shards, checkpoint by checkpoint in the order of the data."""
        places = [
            (number, first, min(each.shard, each.num_samples - first))
            for number, each in enumerate(self.checkpoints)
            for first in range(0, each.num_samples, each.shard)
        ]
        return [Unit(number, *place) for number, place in enumerate(places)]

    @property
    def private(self) -> bool:
        """Whether files hold images, or names that may be people's."""
        classes = self.source.get("classes")
        return bool(self.show_samples or self.source.get("plain_ids") or (classes and classes not in self.files))

    def source_options(self) -> SourceOptions:
        """Where samples come from."""
        return SourceOptions(**self.source)

    def audit_settings(self) -> AuditSettings:
        """How they are audited."""
        return AuditSettings(**self.settings)

    def check_versions(self, present: Mapping[str, str]) -> None:
        """Refuse other versions than the run was created with.

        Raises:
            RunError: the first that differs.
        """
        for name, version in self.versions.items():
            if present.get(name) != version:
                raise RunError(
                    f"expected {name} {version}, with which this run was created, found {present.get(name)}; use that "
                    "version, or create the run anew"
                )

    def check_files(self, number: int) -> None:
        """Refuse other files than the run was created with, the data left out; of checkpoints only one is looked at.

        Raises:
            RunError: the first that is missing or differs.
        """
        checkpoint = self.checkpoints[number]
        for path, sha256 in {checkpoint.path: checkpoint.sha256, **self.files}.items():
            if hash_of(Path(path)) != sha256:
                raise RunError(
                    f"{path} isn't the file that this run was created with; put it back, or create the run anew"
                )

    @classmethod
    def read(cls, path: Path) -> RunManifest:
        """What `save` wrote.

        Raises:
            RunError: it is missing, something else, or was changed.
        """
        try:
            manifest = cls.model_validate(json.loads(path.read_bytes()))
        except OSError as error:
            raise RunError(
                f"expected a folder that riskaudit run create made, found {path.parent} without a {MANIFEST} that can "
                f"be read ({error.strerror or error})"
            ) from error
        except ValidationError as error:
            raise RunError(f"{path} is no run's that this version knows: {first_fault(error)}") from error
        except (ValueError, RecursionError) as error:
            raise RunError(f"expected a run as JSON in {path}, found something else ({error})") from error
        if manifest.id != manifest.identity():
            raise RunError(f"{path} was changed since the run was created; put it back, or create the run anew")
        return manifest


def hash_of(path: Path) -> str:
    """Hex SHA-256 of a file, or of what decides the model of a folder.

    Raises:
        RunError: it can't be read.
    """
    from riskaudit.inputs.huggingface.adapters import adapter_sha256, is_adapter
    from riskaudit.inputs.huggingface.folder import is_model_folder, open_folder

    if is_model_folder(path):
        return adapter_sha256(path) if is_adapter(path) else open_folder(path).sha256()
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise RunError(f"can't read {path}, which this run needs: {error.strerror or error}") from error


def placed(options: Settings) -> dict[str, Any]:
    """Options as plain JSON, paths in them without regard to the working folder."""
    values: dict[str, Any] = {}
    for name, value in asdict(options).items():
        values[name] = _absolute(name, value) if isinstance(value, str) else value
    return json.loads(json.dumps(values))  # type: ignore[no-any-return]


def _absolute(name: str, value: str) -> str:
    file, _, function = value.rpartition(":")
    if name in _CODE and names_code(value):
        return f"{Path(file).absolute()}:{function}"
    # A name of a prior is one, whatever lies in the working folder.
    if name not in _PATHS or value in PRIOR_NAMES:
        return value
    try:
        return str(Path(value).absolute()) if Path(value).exists() else value
    except (OSError, ValueError):
        # Too long for a name, as many classes are, or a zero byte: no file.
        return value


def named_files(options: Iterable[Mapping[str, Any]]) -> list[str]:
    """Files that options name besides the data: code, priors, calibrations and lists of classes."""
    files = []
    for values in options:
        for name, value in values.items():
            if name in _CODE and isinstance(value, str) and names_code(value):
                files.append(value.rpartition(":")[0])
            elif name in _PATHS and name != "data" and isinstance(value, str) and Path(value).is_absolute():
                files.append(value)
    return sorted(set(files))


def _without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options that name files by the files' names alone; their hashes are there besides."""
    return {
        name: Path(value).name if isinstance(value, str) and name in (*_CODE, *_PATHS) else value
        for name, value in values.items()
    }
