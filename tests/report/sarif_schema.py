"""A validator of the few words of JSON Schema that tests/data/sarif-2.1.0-part.json uses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SCHEMA = json.loads((Path(__file__).parents[1] / "data" / "sarif-2.1.0-part.json").read_text(encoding="utf-8"))
TYPES = {"object": dict, "array": list, "string": str, "integer": int}


def faults(value: Any, schema: Any = SCHEMA, path: str = "$") -> Iterator[str]:
    """Everything in a document that isn't as the schema has it."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    if "type" in schema and not isinstance(value, TYPES[schema["type"]]):
        yield f"{path}: expected {schema['type']}, found {type(value).__name__}"
        return
    if "minimum" in schema and value < schema["minimum"]:
        yield f"{path}: {value} is below {schema['minimum']}"
    if isinstance(value, str):
        yield from _faults_of_uri(value, schema.get("format"), path)
    if isinstance(value, list):
        if schema.get("uniqueItems") and len({json.dumps(each, sort_keys=True) for each in value}) < len(value):
            yield f"{path}: items come again"
        for position, each in enumerate(value):
            yield from faults(each, schema["items"], f"{path}[{position}]")
    if isinstance(value, dict):
        yield from (f"{path}: {name} is missing" for name in schema.get("required", ()) if name not in value)
        for name, inner in value.items():
            rule = schema.get("properties", {}).get(name, schema.get("additionalProperties", True))
            if rule is False:
                yield f"{path}: {name} is unknown"
            elif rule is not True:
                yield from faults(inner, rule, f"{path}.{name}")


def _faults_of_uri(text: str, kind: str | None, path: str) -> Iterator[str]:
    if kind is None:
        return
    if any(not 33 <= ord(character) < 127 for character in text):
        yield f"{path}: {text!r} is no URI"
    if kind == "uri" and not urlsplit(text).scheme:
        yield f"{path}: {text!r} is relative"
