"""Many audits as one folder of static pages: an index that sorts them by verdict, and each one's report.

    DIR/a/audit.json, DIR/b/c/audit.json -> index.html, a.html, a.pdf, a.json, b-c.html, ...

All files lie side by side, so that the folder is written in one step, and the index needs no network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import quote

from riskaudit.document import tables
from riskaudit.document.blocks import Callout, Cell, Document, Paragraph, Section, Tone
from riskaudit.document.html import to_html
from riskaudit.errors import ResultError
from riskaudit.formatting import count, number, printable, short
from riskaudit.report import render_marked
from riskaudit.report.build import printable_result
from riskaudit.report.recomputation import recompute
from riskaudit.results import AuditResult, Verdict
from riskaudit.results.checks import ids_in_the_clear
from riskaudit.results.facts import Facts
from riskaudit.version import __version__

NAME, INDEX = "audit.json", "index"
# Formats that a bundle may hold, and the ends of their names there.
BUNDLED = {"html": ".html", "pdf": ".pdf", "json": ".json", "md": ".md", "csv": ".csv", "sarif": ".sarif"}


@dataclass(frozen=True)
class Entry:
    """One audit of a bundle."""

    name: str
    facts: Facts
    contradictions: tuple[str, ...]

    @property
    def verdict(self) -> tuple[int, Tone, str]:
        """How bad it is (more is worse), its tone, and the words. What wasn't assessed is never good."""
        result, verdicts = self.facts.result, self.facts.verdicts
        if result.policy is not None and result.policy.decision == "block":
            return 6, "high", "▲ policy exceeded"
        if not result.release.defended:
            return 5, "high", "▲ undefended"
        return self._defended(verdicts)

    def _defended(self, verdicts: Mapping[Verdict, int]) -> tuple[int, Tone, str]:
        result = self.facts.result
        if self.facts.num_assessed == 0:
            return 4, "unknown", "○ not assessed"
        if verdicts["not_assessed"] or (result.policy is not None and result.policy.decision == "warn"):
            return 3, "unknown", "○ not confirmed"
        if result.policy is not None:
            clear = bool(ids_in_the_clear(result.checks))
            return (1, "medium", "◆ within policy, inputs in the clear") if clear else (0, "low", "● within policy")
        high, medium = verdicts["high"], verdicts["medium"]
        if high:
            return 2, "high", f"▲ no policy, {high:,} high"
        return (1, "medium", f"◆ no policy, {medium:,} medium") if medium else (1, "plain", "no policy")


def audits_under(folder: Path) -> dict[str, Path]:
    """Every audit.json below a folder, by a name for its files that is made of the folders on the way.

    Raises:
        ResultError: there is none, or two would have one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob(NAME)):
        if not path.is_file():
            continue
        name = "-".join(path.parent.relative_to(folder).parts) or "audit"
        name = f"{name}-audit" if name == INDEX else name
        if name in found:
            raise ResultError(
                f"expected folders whose names differ, but the files of {printable(str(found[name]))} and "
                f"{printable(str(path))} would both be called {printable(name)}; rename one of their folders"
            )
        found[name] = path
    if not found:
        raise ResultError(f"expected {NAME} in folders below {printable(str(folder))}, found none")
    return found


def render_bundle(
    audits: Mapping[str, Callable[[], AuditResult]],
    formats: Sequence[str],
    spelling: Callable[[str], str] = str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, bytes], list[str]]:
    """The files of a bundle by name, and where audits disagreed with their own numbers.

    Args:
        audits: loads each one, by its name.
        formats: of each report, HTML among them or not: the index links what there is.
        spelling: see `riskaudit.report.render`.
        progress: called as ``progress(done, total)`` after every audit.

    Raises:
        ResultError: an audit can't be read.
    """
    files: dict[str, bytes] = {}
    entries: list[Entry] = []
    for done, (name, load) in enumerate(audits.items(), 1):
        result = load()
        rendered, contradictions = render_marked(result, formats, None, spelling)
        files |= {f"{name}{BUNDLED[each]}": content for each, content in zip(formats, rendered.values(), strict=True)}
        # The index is of the numbers too, and needs no samples once they are counted.
        facts = Facts(printable_result(recompute(result)[0], spelling))
        entries.append(Entry(name, facts, tuple(f"{name}: {text}" for text in contradictions)))
        if progress is not None:
            progress(done, len(audits))
    first = next((BUNDLED[each] for each in formats if each in ("html", "pdf")), BUNDLED[formats[0]])
    return {f"{INDEX}.html": to_html(_index(entries, first)), **files}, [
        text for entry in entries for text in entry.contradictions
    ]


def _index(entries: Sequence[Entry], linked: str) -> Document:
    ordered = sorted(entries, key=lambda entry: (-entry.verdict[0], -_worst(entry)))
    exceeded = sum(entry.verdict[0] == 6 for entry in entries)
    open_ones = sum(entry.verdict[0] in (3, 4) for entry in entries)
    bare = sum(entry.verdict[0] == 5 for entry in entries)
    kept = sum(entry.facts.result.policy is not None and entry.verdict[0] < 3 for entry in entries)
    text = (
        f"{exceeded:,} exceeded their policy, {bare:,} are undefended, {open_ones:,} could not be confirmed or "
        f"assessed, {kept:,} kept their policy, {len(entries) - exceeded - bare - open_ones - kept:,} had none."
    )
    tone: Tone = "high" if exceeded or bare else "unknown" if open_ones else "plain"
    columns: tables.Columns[Entry] = (
        tables.column(
            "Audit", lambda entry: Cell(short(entry.name, 60), link=quote(f"{entry.name}{linked}")), numeric=False
        ),
        tables.column("Verdict", _verdict_cell, numeric=False, ranked=True, filtered=True),
        tables.column("Most revealed", lambda entry: _revealed_cell(entry, max)),
        tables.column("Median revealed", lambda entry: _revealed_cell(entry, median)),
        tables.count("Samples", lambda entry: entry.facts.num_samples),
        *(_level(level) for level in ("high", "medium", "low", "not_assessed")),
        tables.column("In the clear", _clear_cell),
        tables.text("Model", lambda entry: short(entry.facts.result.checkpoint.name, 40)),
        tables.text("Release", lambda entry: short(entry.facts.result.release.spec, 60)),
        tables.text("Made", lambda entry: entry.facts.result.created_at),
    )
    table = tables.table("audits", "All audits, worst first; a click on a title sorts", ordered, columns, sortable=True)
    note = (
        "Most and median revealed are the revealed fractions of an audit's samples (0 nothing, 1 all). Audits of other "
        "models, data, priors or attackers aren't on one scale: compare two with riskaudit report NEW --baseline OLD."
    )
    return Document(
        title="Gradient audits",
        subtitle=count(len(entries), "audit"),
        created_at=max(entry.facts.result.created_at for entry in entries),
        tool=f"riskaudit {__version__}",
        sections=(Section("audits", "Audits", (Callout(text, tone=tone), table, Paragraph(note))),),
        noun="Latest audit",
        source=f"the files {NAME}",
    )


def _worst(entry: Entry) -> float:
    return max(entry.facts.cautious(entry.facts.headline), default=0.0)


def _verdict_cell(entry: Entry) -> Cell:
    rank, tone, words = entry.verdict
    doubt = "the file disagrees with its own numbers" if entry.contradictions else ""
    return Cell(words, rank, tone=tone, detail=doubt)


def _revealed_cell(entry: Entry, statistic: Callable[[list[float]], float]) -> Cell:
    facts = entry.facts
    if not facts.num_known(facts.headline):
        return Cell("no value", tone="unknown")
    return Cell(facts.words(facts.headline, statistic, number), statistic(facts.cautious(facts.headline)))


def _level(level: str) -> tables.RowColumn[Entry]:
    return tables.count(
        level.replace("_", " ").capitalize(),
        lambda entry: sum(row.verdict == level for row in entry.facts.result.samples),
    )


def _clear_cell(entry: Entry) -> Cell:
    checks = entry.facts.result.checks
    if not checks:
        return Cell("not checked", tone="unknown")
    amount = len(ids_in_the_clear(checks))
    return Cell(f"{amount:,}", amount, tone="high" if amount else "plain")
