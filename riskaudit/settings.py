"""Models of settings: a field is defined once, and its check, option, TOML key and help come from that.

    @dataclass(frozen=True, config=CHECKED)
    class AuditSettings(Settings):
        seed: Seed = option(0, "Seed of every random draw.", SOLVERS)

A model is a frozen dataclass that is checked whenever it is made (pydantic). Errors name the parameter in backticks,
`` `seed` `` or `` `solver=dense` ``, as a caller in Python writes it; the command line puts its option in that place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, Unpack, get_args, get_origin

from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from riskaudit.errors import SettingsError

if TYPE_CHECKING:
    from typing import Self

    from pydantic_core import ErrorDetails

# Strict: only a number is a number. Checks are built when a model is first made, which takes longer than ``--help``.
CHECKED = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid", defer_build=True)

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

# Headings of the command line's help, in their order.
PANELS = INPUTS, RELEASE, PRIOR, SOLVERS, ATTACKS, POLICY, OUTPUT = (
    "Inputs", "Release", "Prior and verdicts", "Solvers", "Attacks", "Policy", "Output",
)  # fmt: skip


class Given(TypedDict, total=False):
    """How the command line takes a field, where that doesn't follow from its name and type.

    Attributes:
        panel: heading of the help.
        aliases: other names that errors have for the parameter.
        flags: names of the option, by default the field's own; one with a slash between both names of a switch.
        argument: the field is given by position, under this name in the help.
        commas: several values are one text with commas; by default the option is repeated.
        choices: words for the values.
        file: may be a path, of which a report shows the name alone.
        recorded: part of the command that reproduces a result; by default it is.
        written: a place where the run writes, so none of its inputs.
        record: key in ``settings`` of audit.json; by default none.
        envvar: environment variable for the default.
        callback: called with the value as soon as it is read, before other options are.
        check: called with each value before torch is loaded; refuses a path where nothing is.
    """

    panel: str | None
    aliases: tuple[str, ...]
    flags: tuple[str, ...]
    argument: str
    commas: bool
    choices: Mapping[str, Any]
    file: bool
    recorded: bool
    written: bool
    record: str
    envvar: str
    callback: Callable[..., Any]
    check: Callable[[str], object]


def option(default: Any, description: str, heading: str | None = None, **given: Unpack[Given]) -> Any:
    """A field that the command line takes too.

    Args:
        default: its value, or an ellipsis where one must be given.
        description: for people.
        heading: the panel of the help.
        given: how the command line takes it.
    """
    given["panel"] = heading
    return Field(default, description=description, json_schema_extra={"given": given})  # type: ignore[dict-item]


@dataclass(frozen=True, config=CHECKED)
class Settings:
    """Base of the models."""

    @classmethod
    def given(cls) -> dict[str, Given]:
        """How the command line takes each field that it takes."""
        extras = {name: field.json_schema_extra for name, field in fields_of(cls).items()}
        return {name: extra["given"] for name, extra in extras.items() if isinstance(extra, dict)}

    def check_sources(self, unchecked: Collection[str] = ()) -> None:
        """Refuse paths where nothing is, but of those fields.

        Raises:
            RiskauditError: the first one.
        """
        # What is given by position is named first.
        for name, how in sorted(self.given().items(), key=lambda each: "argument" not in each[1]):
            value = getattr(self, name)
            if "check" in how and name not in unchecked and value is not None:
                for each in value if isinstance(value, tuple) else (value,):
                    how["check"](each)

    def record(self) -> dict[str, Any]:
        """What ``settings`` of audit.json says of these, by its keys."""
        return {how["record"]: getattr(self, name) for name, how in self.given().items() if "record" in how}

    @classmethod
    def spelt(cls, name: str) -> str:
        """A parameter's name in a sentence."""
        return f"`{name}`"

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """A list as a tuple, a number of another library as Python's; what only can be made a number is none."""
        if isinstance(value, list | tuple):
            return tuple(map(cls._plain, value))
        if isinstance(value, bool | int | float):
            return value
        if isinstance(value, Real):
            return int(value) if isinstance(value, Integral) else float(value)
        if hasattr(value, "__float__"):
            raise ValueError
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _in_a_sentence(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise SettingsError(_sentence(cls, error.errors(include_url=False)[0])) from None


def fields_of(model: type[Settings]) -> Mapping[str, Any]:
    """The fields of a model as pydantic describes them."""
    return model.__pydantic_fields__  # type: ignore[attr-defined, no-any-return]


def one_of(name: str, value: str, names: Iterable[str]) -> None:
    """Refuse a name that isn't registered.

    Raises:
        SettingsError: with the registered names.
    """
    registered = sorted(names)
    if value not in registered:
        raise SettingsError(f"expected `{name}` to be one of {', '.join(registered)}, found {value!r}")


def _sentence(model: type[Settings], error: ErrorDetails) -> str:
    """What was expected of a field and what was found."""
    name = str(error["loc"][0])
    if name not in fields_of(model):
        return f"expected options {', '.join(fields_of(model))}, found {name!r}"
    spelt, value, field, kind = model.spelt(name), error["input"], fields_of(model)[name], error["type"]
    if kind == "literal_error":
        choices = next(_literals(field.annotation))
        return f"expected {spelt} to be one of {', '.join(choices)}, found {value!r}"
    if kind == "too_short":
        return f"expected at least one of {spelt}, found none"
    if kind in ("tuple_type", "list_type"):
        return f"expected a list for {spelt}, found {value!r}; put it into brackets"
    kinds = {"string_type": "text", "int_type": "whole number", "bool_type": "truth value", "float_type": "number"}
    limits = {
        key: getattr(bound, key)
        for bound in _bounds(field.annotation, field.metadata)
        for key in ("gt", "ge", "lt", "le")
        if hasattr(bound, key)
    }
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return f"expected {spelt} {_range(limits)}, found {f'{value:g}' if isinstance(value, float) else value}"
    what = " ".join([kinds.get(kind, "finite number"), _range(limits)]).rstrip()
    return f"expected a {what} for {spelt}, found {value!r}"


def _literals(annotation: Any) -> Iterator[tuple[str, ...]]:
    if get_origin(annotation) is Literal:
        yield get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _literals(part)


def _bounds(annotation: Any, metadata: Iterable[Any] = ()) -> Iterator[Any]:
    """Bounds of a number, wherever they stand in its type."""
    for each in metadata:
        yield from each.metadata if isinstance(each, FieldInfo) else [each]
    for part in get_args(annotation):
        yield from _bounds(part, getattr(part, "__metadata__", ()))


def _range(limits: Mapping[str, float]) -> str:
    """Bounds in words."""
    if limits in ({"gt": 0, "lt": 1}, {"ge": 0, "le": 1}):
        return "between 0 and 1"
    words = {"gt": "above {:g}", "ge": "of at least {:g}", "lt": "below {:g}", "le": "at most {:g}"}
    return " and ".join(text.format(limits[key]) for key, text in words.items() if key in limits)
