"""The studies beside an audit: typed to those who read them, and what can't be read set apart in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import Any, TypeVar

from pydantic import (
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from riskaudit.results.base import Record, first_fault

# One line per study: its name in audit.json, which is that of its folder ``riskaudit/studies/NAME``, and the class in
# ``NAME/record.py`` that it records. Imported when a file has it, so that nothing here depends on studies.
STUDIES = {
    "verify": "VerifyStudy",
    "fairness": "FairnessStudy",
    "directions": "DirectionsStudy",
    "initialization": "InitializationStudy",
    "training": "TrainingStudy",
    "defenses": "DefensesStudy",
}
_NAMES = {record: name for name, record in STUDIES.items()}


class StudyRecord(Record):
    """What a study adds to an audit; the base of every study's record.

    Raises: TypeError: a subclass in ``riskaudit/studies/NAME/record.py`` that `STUDIES` doesn't have under NAME.

    Attributes:
        notes: what a reader must know of the study, one sentence each.
    """

    notes: list[str] = Field(default_factory=list)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        package, _, module = cls.__module__.rpartition(".")
        if package.startswith("riskaudit.studies.") and module == "record":
            _name_of(cls, package.removeprefix("riskaudit.studies."))


StudyT = TypeVar("StudyT", bound=StudyRecord)


class UnreadableStudy(Record):
    """What stands in a file under a study's name and isn't one; it is kept as it is.

    Attributes:
        content: the JSON that was found.
        reason: one sentence on why it can't be read.
    """

    content: Any
    reason: str


class Studies(Record):
    """``studies`` of audit.json: records by name, and apart from them what can't be read.

    A file holds both under their names.

    Attributes:
        records: of the studies that ran, by name.
        unreadable: what can't be read, by name.
    """

    records: dict[str, SerializeAsAny[StudyRecord]] = Field(default_factory=dict)
    unreadable: dict[str, UnreadableStudy] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _set_apart(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        records: dict[str, StudyRecord] = {}
        unreadable: dict[str, UnreadableStudy] = {}
        for name, study in content.items():
            if name not in STUDIES:
                unreadable[name] = UnreadableStudy(content=study, reason="not a study that this version knows")
            elif study is not None:
                try:
                    records[name] = record_type(name).model_validate(study)
                except ValidationError as error:
                    unreadable[name] = UnreadableStudy(content=study, reason=first_fault(error, f"studies.{name}"))
        return {"records": records, "unreadable": unreadable}

    @model_serializer(mode="wrap")
    def _by_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content = handler(self)
        records = {name: content["records"][name] for name in self}
        return records | {name: study["content"] for name, study in content["unreadable"].items()}

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        """Names of the studies that ran and can be read."""
        return (name for name in STUDIES if name in self.records)

    def get(self, kind: type[StudyT]) -> StudyT | None:
        """The record of a study; None where it didn't run or can't be read."""
        record = self.records.get(_name_of(kind))
        return record if isinstance(record, kind) else None

    def with_study(self, record: StudyRecord) -> Studies:
        """These with one more, in place of an earlier one of its kind."""
        name = _name_of(type(record))
        unreadable = {other: study for other, study in self.unreadable.items() if other != name}
        return self.model_copy(update={"records": {**self.records, name: record}, "unreadable": unreadable})

    def over(self, earlier: Studies) -> Studies:
        """These, and those of an earlier audit that aren't among them."""
        records = {**earlier.records, **self.records}
        unreadable = {name: study for name, study in earlier.unreadable.items() if name not in records}
        return self.model_copy(update={"records": records, "unreadable": {**unreadable, **self.unreadable}})


def _name_of(kind: type[StudyRecord], folder: str | None = None) -> str:
    """The name of a study in audit.json, given its record's class.

    Args:
        kind: the class.
        folder: that has to be of this name, where it is known.

    Raises:
        TypeError: it isn't registered, or not under the name of its folder.
    """
    name = _NAMES.get(kind.__name__)
    if name is None or folder not in (None, name):
        raise TypeError(
            f"the study record {kind.__name__} is not registered under the name of its folder; add a line "
            f'"{folder or "NAME"}": "{kind.__name__}" to STUDIES in riskaudit/results/studies.py'
        )
    return name


def record_type(name: str) -> type[StudyRecord]:
    """The record of a study in `STUDIES`."""
    record: type[StudyRecord] = resolve_name(f"riskaudit.studies.{name}.record:{STUDIES[name]}")
    return record
