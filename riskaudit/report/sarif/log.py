"""A log in SARIF, the format in which a CI takes findings (OASIS, Static Analysis Results Interchange Format 2.1.0).

Rules have ids that stay; a finding has a fingerprint that is the same for the same inputs, whatever its numbers are.
Pages are named in the help of a rule, by their paths in the documentation: ``helpUri`` must be absolute (section
3.49.12), and a link by a relative path would lead astray wherever a log is shown. Locations are the names of files,
without folders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from riskaudit.formatting import printable
from riskaudit.results.subject import Tool

Level: TypeAlias = Literal["error", "warning", "note"]
VERSION = "2.1.0"
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
FINGERPRINT = "riskaudit/v1"
# The one that GitHub compares alerts by.
LINE_HASH = "primaryLocationLineHash"


@dataclass(frozen=True)
class Rule:
    """What findings are of.

    Attributes:
        id: stable, such as "check/span".
        title: for readers.
        text: what it means.
        advice: what to do.
        page: of the documentation, relative to the project's root.
        level: of its findings where they don't say another.
    """

    id: str
    title: str
    text: str
    advice: str
    page: str
    level: Level = "error"


@dataclass(frozen=True)
class Artifact:
    """A file that was looked at.

    Attributes:
        name: without its folder.
        sha256: None where it isn't known.
    """

    name: str
    sha256: str | None

    @property
    def uri(self) -> str:
        """A relative reference, whatever stands in the name."""
        # A first segment with a colon would read as a scheme; quote() writes it as %3A.
        return quote(PurePath(self.name.replace("\\", "/")).name or "unnamed", safe="")


@dataclass(frozen=True)
class Finding:
    """One result.

    Attributes:
        rule: id of its rule.
        message: a sentence.
        artifacts: files that it is in, the most telling first.
        identity: what makes it this one, besides rule and files: names and ids, no numbers that may change.
        level: None for the rule's.
        layer: or tensor of the model that it is at.
        samples: ids of the samples that it is of.
    """

    rule: str
    message: str
    artifacts: Sequence[Artifact]
    identity: Sequence[object] = ()
    level: Level | None = None
    layer: str | None = None
    samples: Sequence[str] = ()


def to_sarif(tool: Tool, rules: Iterable[Rule], findings: Iterable[Finding]) -> bytes:
    """A log of one run; the same findings give the same bytes."""
    listed = list({rule.id: rule for rule in rules}.values())
    positions = {rule.id: position for position, rule in enumerate(listed)}
    results = [_result(finding, listed[positions[finding.rule]], positions[finding.rule]) for finding in findings]
    driver = {"name": tool.name, "version": tool.version, "rules": [_rule(rule) for rule in listed]}
    # Characters of UTF-16, which is how a message's length is counted where that matters.
    run = {"tool": {"driver": driver}, "columnKind": "utf16CodeUnits", "results": results}
    document = {"$schema": SCHEMA, "version": VERSION, "runs": [run]}
    return (json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def _rule(rule: Rule) -> dict[str, Any]:
    text = f"{rule.text} {rule.advice}".strip()
    return {
        "id": rule.id,
        "name": "".join(word.capitalize() for word in rule.id.replace("/", "-").replace("_", "-").split("-")),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.text},
        "help": {"text": f"{text} See {rule.page}.", "markdown": f"{text} See `{rule.page}`."},
        "defaultConfiguration": {"level": rule.level},
        "properties": {"documentation": rule.page},
    }


def _result(finding: Finding, rule: Rule, position: int) -> dict[str, Any]:
    fingerprint = _fingerprint(finding)
    result: dict[str, Any] = {
        "ruleId": rule.id,
        "ruleIndex": position,
        "level": finding.level or rule.level,
        # Without the spaces that keep numbers and units on one line.
        "message": {"text": printable(finding.message).replace("\N{NO-BREAK SPACE}", " ")},
        "locations": [_location(artifact, finding.layer) for artifact in finding.artifacts],
        "partialFingerprints": {FINGERPRINT: fingerprint, LINE_HASH: f"{fingerprint[:16]}:1"},
    }
    if finding.samples:
        result["properties"] = {"samples": list(finding.samples)}
    return result


def _location(artifact: Artifact, layer: str | None) -> dict[str, Any]:
    # CIs show nothing without a line; files of tensors have none.
    physical = {"artifactLocation": {"uri": artifact.uri}, "region": {"startLine": 1}}
    if layer is None:
        return {"physicalLocation": physical}
    return {
        "physicalLocation": physical,
        "logicalLocations": [{"fullyQualifiedName": printable(layer), "kind": "module"}],
    }


def _fingerprint(finding: Finding) -> str:
    files = [[artifact.name, artifact.sha256] for artifact in finding.artifacts]
    parts = [finding.rule, files, finding.layer, [str(part) for part in finding.identity]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
