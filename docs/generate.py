"""What the reference says, made of the code when the site is built.

A page has a line ``<!-- generated: NAME -->``, and the function of `GENERATED` under this name gives the Markdown that
takes its place.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import cleandoc
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

MARK = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown, of cells that may hold any text; columns that no row has anything in are left out."""
    rows = [list(row) for row in rows]
    columns = [number for number in range(len(rows[0])) if any(row[number] for row in rows)]
    headings, rows = [list(headings)[each] for each in columns], [[row[each] for each in columns] for row in rows]
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def plain(text: str) -> str:
    """Words that stand in a page as they are: no mark-up, no tags."""
    return re.sub(r"([\\*_<>\[\]$])", r"\\\1", text.replace("\\[", "["))


def docstring(thing: object) -> str:
    """A docstring in Markdown, up to what is said of attributes and errors."""
    return markdown(re.split(r"\n(?:Attributes|Raises):\n", cleandoc(thing.__doc__ or ""))[0])


def attributes(thing: type) -> dict[str, str]:
    """What the docstrings of a class and of its bases say of each attribute, in Markdown."""
    return {name: words for base in reversed(thing.__mro__) for name, words in own_attributes(base).items()}


def own_attributes(thing: type) -> dict[str, str]:
    """The same without its bases."""
    text = cleandoc(vars(thing).get("__doc__") or "").partition("\nAttributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", text, re.MULTILINE)
    return {name: markdown(words) for name, words in found}


def markdown(text: str) -> str:
    """A docstring's text in Markdown: what stands in backticks is code in either."""
    parts = re.split(r"(``.*?``|`.*?`)", text, flags=re.DOTALL)
    return "".join(f"`{part.strip('`')}`" if part.startswith("`") else plain(part) for part in parts)


# Commands, as their own help has them.


def commands() -> str:
    """Every command with its arguments and options."""
    from riskaudit.cli.app import app

    root = typer.main.get_command(app)
    return "\n\n".join(_command(root.get_command(None, name), f"riskaudit {name}", 2) for name in root.commands)


def _command(command: Any, path: str, level: int) -> str:
    context = command.make_context(path, [], resilient_parsing=True)
    parts = [f"{'#' * level} {path}", plain(cleandoc(command.help or ""))]
    if hasattr(command, "commands"):
        parts += [
            _command(command.get_command(context, name), f"{path} {name}", level + 1) for name in command.commands
        ]
        return "\n\n".join(parts)
    pieces = " ".join(command.collect_usage_pieces(context))
    parts.append(f"```sh\n{path} {pieces}\n```")
    panels: dict[str, list[list[str]]] = {}
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        panel = getattr(parameter, "rich_help_panel", None)
        panels.setdefault(panel or ("Options" if _is_option(parameter) else "Arguments"), []).append(
            [f"`{_names(parameter, context)}`", plain(parameter.help or ""), _default(parameter, context)]
        )
    for panel, rows in panels.items():
        parts += [f"**{panel}**", table(["name", "what it does", "default"], rows)]
    return "\n\n".join(parts)


def _is_option(parameter: Any) -> bool:
    return parameter.param_type_name == "option"


def _names(parameter: Any, context: Any) -> str:
    if not _is_option(parameter):
        return str(parameter.make_metavar(context))
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {parameter.make_metavar(context)}"


def _default(parameter: Any, context: Any) -> str:
    value = parameter.get_default(context, call=False)
    if value is None or value in ((), [], "") or callable(value) or parameter.required:
        return "required" if parameter.required else ""
    if isinstance(value, bool):
        return "on" if value else ""
    words = value if isinstance(value, list | tuple) else [value]
    return f"`{' '.join(str(getattr(word, 'value', word)) for word in words)}`"


# Settings: what options, TOML keys and parameters in Python have in common.


def settings() -> str:
    """A table for each model of settings."""
    from riskaudit.audit.settings import AuditSettings
    from riskaudit.cli import models
    from riskaudit.policy import Policy
    from riskaudit.settings import Settings
    from riskaudit.studies.settings import AttackSettings

    public = [AuditSettings, AttackSettings, Policy]
    others = [
        each
        for each in vars(models).values()
        if isinstance(each, type) and issubclass(each, Settings) and each.__module__ == models.__name__
    ]
    return "\n\n".join(_settings(model) for model in [*public, *others])


def _settings(model: Any) -> str:
    from riskaudit.cli.options import flag_of
    from riskaudit.settings import fields_of

    given, described = model.given(), attributes(model)
    rows = []
    for name, field in fields_of(model).items():
        flag = f"`{flag_of(name, given[name])}`" if name in given and "argument" not in given[name] else ""
        default = field.default
        if default in (None, PydanticUndefined, Ellipsis, ()):
            default = "" if default in (None, ()) else "required"
        else:
            default = f"`{getattr(default, 'value', default)}`"
        words = _described(field, described.get(name))
        rows.append([f"`{name}` {flag}", f"`{_type(field.annotation)}`", default, words])
    rows_table = table(["key, option", "type", "default", "what it does"], rows)
    return f"## {model.__name__}\n\n{docstring(model)}\n\n{rows_table}" if rows else ""


# audit.json: a table for each record, from the file down.


def schema() -> str:
    """Every record of an audit.json, the file's own first."""
    return "\n\n".join(_record(model) for model in records())


def records() -> Iterator[type[BaseModel]]:
    """Models of all records that an audit.json may hold, each once, the file's own first."""
    from riskaudit.results import AuditResult

    waiting, seen = [AuditResult], set()
    while waiting:
        model = waiting.pop(0)
        if model not in seen:
            seen.add(model)
            yield model
            waiting += [each for field in fields(model) for each in _records_in(field.annotation)]


class Key(typing.NamedTuple):
    """A key of a record: its name, its type, whether it may be missing, and what it is, in Markdown."""

    name: str
    annotation: Any
    optional: bool
    words: str


def fields(model: type[BaseModel]) -> list[Key]:
    """The keys of a record as the file has them: a study stands under its name."""
    from riskaudit.results.studies import STUDIES, Studies, record_type

    if model is Studies:
        kinds = {name: record_type(name) for name in STUDIES}
        return [Key(name, kind, True, docstring(kind).partition("\n")[0]) for name, kind in kinds.items()]
    described = attributes(model)
    return [
        Key(name, field.annotation, not field.is_required(), _described(field, described.get(name)))
        for name, field in model.model_fields.items()
    ]


def _records_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _records_in(part)]


def _record(model: type[BaseModel]) -> str:
    rows = [
        [f"`{key.name}`", _linked(key.annotation), "may be missing" if key.optional else "", key.words]
        for key in fields(model)
    ]
    anchor = f"({_anchor(model)})="
    return f"{anchor}\n## {model.__name__}\n\n{docstring(model)}\n\n{table(['key', 'type', '', 'what it is'], rows)}"


def _described(field: Any, words: str | None) -> str:
    return plain(field.description) if field.description else words or ""


def _anchor(model: type[BaseModel]) -> str:
    return f"record-{model.__name__.lower()}"


def _linked(annotation: Any) -> str:
    links = {model.__name__: f"[{model.__name__}](#{_anchor(model)})" for model in _records_in(annotation)}
    words = _type(annotation)
    if not links:
        return f"`{words}`"
    return "".join(links.get(part, plain(part)) for part in re.split(r"(\w+)", words))


def _type(annotation: Any) -> str:
    """A type in few words."""
    if annotation is None or annotation is types.NoneType:
        return "null"
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin is typing.Literal:
        return " or ".join(repr(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in parts))
    if parts:
        return f"{_type(origin)}[{', '.join('...' if part is ... else _type(part) for part in parts)}]"
    return "list" if annotation is Sequence else str(getattr(annotation, "__name__", annotation))


# Every name that an option takes, as `riskaudit list` prints them.


def names() -> str:
    """Every heading of `riskaudit list` as a table."""
    from riskaudit.cli.listing import topics
    from riskaudit.cli.options import in_options

    parts = []
    for heading, described in topics().items():
        rows = [[f"`{name}`", plain(in_options(description))] for name, description in described.items()]
        parts.append(f"## {heading}\n\n{table(['name', ''], rows)}")
    return "\n\n".join(parts)


GENERATED: dict[str, Callable[[], str]] = {
    "commands": commands,
    "settings": settings,
    "schema": schema,
    "names": names,
}


def fill(app: Any, page: str, source: list[str]) -> None:
    """Put what is generated in its place when a page is read."""
    source[0] = MARK.sub(lambda match: GENERATED[match[1]](), source[0])


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
