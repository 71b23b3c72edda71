"""The studies beside an audit: each has a place of its own, and what can't be read is set apart in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from riskaudit.results.base import Record
from riskaudit.results.directions import DirectionsStudy
from riskaudit.results.fairness import FairnessStudy
from riskaudit.results.initialization import InitializationStudy
from riskaudit.results.training import TrainingStudy
from riskaudit.results.verify import VerifyStudy

Study = VerifyStudy | FairnessStudy | DirectionsStudy | InitializationStudy | TrainingStudy
KINDS: dict[str, type[Study]] = {
    "verify": VerifyStudy,
    "fairness": FairnessStudy,
    "directions": DirectionsStudy,
    "initialization": InitializationStudy,
    "training": TrainingStudy,
}


class UnreadableStudy(Record):
    """What stands in a file under a study's name and isn't one, and why not; kept as it is."""

    content: Any
    reason: str


class Studies(Record):
    """``studies`` of audit.json: those that ran, each under its own name.

    ``unreadable`` has what can't be read, by name; a file holds it under that name too.
    """

    verify: VerifyStudy | None = None
    fairness: FairnessStudy | None = None
    directions: DirectionsStudy | None = None
    initialization: InitializationStudy | None = None
    training: TrainingStudy | None = None
    unreadable: dict[str, UnreadableStudy] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _set_apart(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        studies: dict[str, Any] = {}
        unreadable: dict[str, UnreadableStudy] = {}
        for name, record in content.items():
            try:
                studies[name] = None if record is None else KINDS[name].model_validate(record)
            except KeyError:
                unreadable[name] = UnreadableStudy(content=record, reason="not a study that this version knows")
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"]) or f"studies.{name}"
                unreadable[name] = UnreadableStudy(content=record, reason=f"{place}: {first['msg']}")
        return {**studies, "unreadable": unreadable}

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written = handler(self)
        apart = {name: study["content"] for name, study in written.pop("unreadable").items()}
        return {name: study for name, study in written.items() if study is not None} | apart

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        """Names of the studies that ran and can be read."""
        return (name for name in KINDS if getattr(self, name) is not None)

    def with_study(self, record: Study) -> Studies:
        """These with one more, in place of an earlier one of its kind."""
        name = next(name for name, kind in KINDS.items() if isinstance(record, kind))
        others = {other: study for other, study in self.unreadable.items() if other != name}
        return self.model_copy(update={name: record, "unreadable": others})

    def over(self, earlier: Studies) -> Studies:
        """These, and those of an earlier audit that aren't among them."""
        kept = {name: getattr(earlier, name) for name in earlier if getattr(self, name) is None}
        apart = {name: study for name, study in earlier.unreadable.items() if name not in {*self, *kept}}
        return self.model_copy(update={**kept, "unreadable": {**apart, **self.unreadable}})
