"""Commands from models of settings: every field of a model that a command takes is one of its options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from riskaudit.errors import RiskauditError, SettingsError
from riskaudit.formatting import is_plainly_written
from riskaudit.settings import OUTPUT, PANELS, Given, Settings, fields_of

# Where a context keeps how its command's options are given, by parameter.
GIVEN = "riskaudit.given"
# The options of all commands by the names of the library's parameters.
EVERY_FLAG: dict[str, str] = {}

CONTEXT = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Print tracebacks of errors.", rich_help_panel=OUTPUT)],
)


def command(
    function: Callable[..., int], /, omit: Collection[str] = (), unchecked: Collection[str] = ()
) -> Callable[..., int]:
    """A command that takes the fields of a function's models as options, besides the function's own options.

    Every command takes ``--debug`` too, which `riskaudit.cli.app.run` looks for. Fields to ``omit`` keep defaults.
    Files that are to be read are looked for before the function is called, but those of ``unchecked`` fields.
    """
    declared = inspect.signature(function, eval_str=True).parameters
    models = {name: parameter.annotation for name, parameter in declared.items() if _is_model(parameter)}
    given = {name: how for model in models.values() for name, how in model.given().items() if name not in omit}
    flags = _flags(given, declared.values())
    EVERY_FLAG.update({**flags, **EVERY_FLAG})

    def run(ctx: typer.Context, **values: Any) -> int:
        ctx.meta[GIVEN] = given
        try:
            arguments: dict[str, Any] = {name: _filled(model, values, omit) for name, model in models.items()}
            for settings in arguments.values():
                settings.check_sources(unchecked)
            arguments |= {name: value for name, value in {**values, "ctx": ctx}.items() if name in declared}
            return function(**arguments)
        except RiskauditError as error:
            error.args = (in_options(str(error), {**EVERY_FLAG, **flags}),)
            raise

    others = [parameter for name, parameter in declared.items() if name not in (*models, "ctx")]
    fields = [_parameter(name, model) for model in models.values() for name in model.given() if name not in omit]
    ordered = sorted([*others, *fields], key=lambda parameter: _position(given.get(parameter.name, {})))
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (CONTEXT, *ordered, DEBUG)]
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def flag_of(name: str, given: Given) -> str:
    """The option of a field."""
    flags = given.get("flags", (f"--{name.replace('_', '-')}",))
    return next(flag.partition("/")[0] for flag in flags if flag.startswith("--"))


def in_options(sentence: str, flags: Mapping[str, str] = EVERY_FLAG) -> str:
    """A sentence that names parameters, `` `name` `` or `` `name=value` ``, with the options that stand for them."""

    def option(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in flags:
            return match[0]
        return flags[name] if value is None else f"{flags[name]} {value}"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", option, sentence)


def _flags(given: Mapping[str, Given], parameters: Iterable[inspect.Parameter]) -> dict[str, str]:
    """The options that stand for parameters of the library, by the parameters' names."""
    flags = {alias: flag_of(name, how) for name, how in given.items() for alias in (*how.get("aliases", ()), name)}
    for parameter in parameters:
        for declared in getattr(parameter.annotation, "__metadata__", ()):
            # In an annotation typer takes the first name for a default, until it declares the option.
            if isinstance(declared, typer.models.OptionInfo):
                flags[parameter.name] = str(declared.default).partition("/")[0]
    return flags


def _is_model(parameter: inspect.Parameter) -> bool:
    return isinstance(parameter.annotation, type) and issubclass(parameter.annotation, Settings)


def _position(given: Given) -> tuple[bool, int]:
    """Arguments come first, then options by their headings."""
    panel = given.get("panel")
    return "argument" not in given, -1 if panel is None else PANELS.index(panel)


@cache
def _parameter(name: str, model: type[Settings]) -> inspect.Parameter:
    field, given = fields_of(model)[name], model.given()[name]
    kind, repeated = _kind(field.annotation, given)
    optional = repeated or "commas" in given or NoneType in get_args(field.annotation)
    default = inspect.Parameter.empty if field.is_required() else None if optional else field.default
    if "choices" in given:
        names = Enum("Choice", {word: word for word in given["choices"]}, type=str)  # type: ignore[misc]
        kind = list.__class_getitem__(names) if repeated else names
        default = (
            default if optional else next(names(word) for word, value in given["choices"].items() if value == default)
        )
    shared = {"help": field.description, "rich_help_panel": given.get("panel"), "envvar": given.get("envvar")}
    if "argument" in given:
        declared = typer.Argument(metavar=given["argument"], **shared)
    else:
        callback = given.get("callback")
        flags = given.get("flags", (flag_of(name, given),))
        declared = typer.Option(*flags, callback=callback, is_eager=callback is not None, **shared)
    annotation: Any = Annotated.__class_getitem__((kind | None if optional else kind, declared))  # type: ignore[attr-defined]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _kind(annotation: Any, given: Given) -> tuple[Any, bool]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind(get_args(annotation)[0], given)
    if origin in (Union, UnionType):
        return _kind(next(part for part in get_args(annotation) if part is not NoneType), given)
    if origin is tuple:
        if given.get("commas"):
            return str, False
        return list.__class_getitem__(_kind(get_args(annotation)[0], given)[0]), True
    return (str if origin is Literal else annotation), False


def _filled(model: type[Settings], values: dict[str, Any], omit: Collection[str]) -> Settings:
    filled: dict[str, Any] = {}
    for name, given in model.given().items():
        value = None if name in omit else values.pop(name)
        if value is not None and value != []:
            filled[name] = _value(name, value, given, fields_of(model)[name].annotation)
    return model(**filled)


def _value(name: str, value: Any, given: Given, annotation: Any) -> Any:
    if isinstance(value, list):
        return [_value(name, each, given, annotation) for each in value]
    if "choices" in given:
        return given["choices"][value.value]
    if not given.get("commas"):
        return value
    leaves = list(_leaves(annotation))
    if str in leaves:
        return [part.strip() for part in value.split(",") if part.strip()]
    kind, noun = (float, "numbers") if float in leaves else (int, "whole numbers")
    try:
        if not is_plainly_written(value):
            raise ValueError
        return [kind(part) for part in value.split(",")]
    except ValueError:
        raise SettingsError(f"expected `{name}` as {noun} separated by commas, found {value!r}") from None


def _leaves(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _leaves(part)
