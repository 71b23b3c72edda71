"""An `InspectionResult` as a page. Never loads torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from riskaudit.document import tables
from riskaudit.document.blocks import (
    Block,
    Bullets,
    Callout,
    Cell,
    DefinitionList,
    Document,
    Paragraph,
    Section,
    Snippet,
    Table,
    Tone,
)
from riskaudit.document.cells import number_cell
from riskaudit.formatting import count, given, number, sentence, short
from riskaudit.results.inspection import NO_PROOF, InspectionResult, SignInfo, SignRow

_UNREAD = "not available: not read from one file"


def build_inspection(result: InspectionResult, spelling: Callable[[str], str] = str) -> Document:
    """Lay out the page; pure."""
    from riskaudit.report.build import printable_result

    result = printable_result(result, spelling)
    return Document(
        title=f"Inspection of {short(result.checkpoint.name, 60)}",
        subtitle=f"{count(result.settings.num_samples, 'sample')} of {short(result.data.name, 60)}, "
        f"{short(result.checkpoint.architecture, 60)}",
        created_at=result.created_at,
        tool=f"{result.tool.name} {result.tool.version}",
        sections=(_verdict(result), _signs(result), _comparison(result), _meaning(result), _provenance(result)),
        noun="Inspection",
        source="inspection.json",
    )


def _verdict(result: InspectionResult) -> Section:
    steps: tuple[str, ...] = ()
    if result.flagged:
        title, tone = "Signs of a changed model", "high"
        steps = (
            "Don't train on this model: what it is sent back may hold your samples as they are.",
            "Ask who runs the server how the layers below came about, and compare the file's SHA-256 with theirs.",
            "If there is an honest reason, scan an upload of this model before anything leaves.",
        )
    elif result.failures or not result.judged:
        title, tone = "Not inspected", "unknown"
    else:
        # What wasn't judged is never safe.
        whole = result.compared_with.previous is not None and not result.unjudged
        title, tone = "No sign flagged", "low" if whole else "medium"
    facts = (
        ("Flagged", f"{count(len(result.flags), 'sign')} at {count(_layers(result.flags), 'layer')}"),
        ("Signs judged", f"{len(result.judged)} of {len(result.judged) + len(result.unjudged)}"),
        ("Previous round", "compared with" if result.compared_with.previous is not None else "not given"),
    )
    blocks: list[Block] = [Callout(title, (sentence(result.verdict), NO_PROOF), _tone(tone), facts, steps)]
    if result.flags:
        reasons = tuple(f"{row.id} at {short(row.layer or 'no layer', 50)}: {row.reason}." for row in result.flags)
        blocks.append(Bullets(reasons, lead="Flagged, farthest from honest models first."))
    if result.compared_with.not_judged:
        items = tuple(sentence(words) for words in result.compared_with.not_judged)
        blocks.append(Bullets(items, lead="Not judged."))
    if result.warnings:
        blocks.append(Bullets(tuple(sentence(words) for words in result.warnings), lead="Warnings."))
    return Section("verdict", "Verdict", tuple(blocks))


def _tone(name: str) -> Tone:
    tones: dict[str, Tone] = {"high": "high", "medium": "medium", "low": "low"}
    return tones.get(name, "unknown")


def _layers(rows: Iterable[SignRow]) -> int:
    return len({row.layer for row in rows})


def _signs(result: InspectionResult) -> Section:
    farthest: dict[str, SignRow] = {}
    for row in result.signs:
        if row.id not in farthest or abs(row.z or 0.0) > abs(farthest[row.id].z or 0.0):
            farthest[row.id] = row
    every = _table("every", "Every sign at every layer, with reasons", result, result.signs, whole=True)
    return Section(
        "signs",
        "Signs and where each is strongest",
        (
            Paragraph(
                "z is the distance to the usual number in spreads of the models compared with. Flagged is what is six "
                "spreads away or more and beyond the threshold that trained honest models keep."
            ),
            _table("strongest", "Each sign at the layer where it is farthest", result, farthest.values()),
            every,
        ),
    )


def _table(
    table_id: str, caption: str, result: InspectionResult, rows: Iterable[SignRow], whole: bool = False
) -> Table:
    infos = {info.id: info for info in result.sign_infos}
    with_previous = result.compared_with.previous is not None
    return tables.table(
        table_id,
        caption,
        rows,
        [
            tables.column("Sign", lambda row: Cell(_title(row, infos), detail=row.id), numeric=False),
            tables.text("Layer", lambda row: short(row.layer or "none", 50)),
            tables.column("Flagged", _flag_cell, numeric=False),
            tables.column("Value", lambda row: number_cell(row.value, missing=row.status.replace("_", " "))),
            tables.number("Usual", lambda row: row.reference, missing="none"),
            tables.number("z", lambda row: row.z, missing="none"),
            tables.number("A round ago", lambda row: row.previous, missing="none", shown=with_previous),
            tables.text("Reason", lambda row: sentence(row.reason), shown=whole),
        ],
        layout="dense",
        sortable=True,
        folded=whole,
    )


def _title(row: SignRow, infos: Mapping[str, SignInfo]) -> str:
    return infos[row.id].title if row.id in infos else row.id


def _flag_cell(row: SignRow) -> Cell:
    if row.flagged:
        return Cell("▲ flagged", 1.0, tone="high")
    return Cell("no", 0.0) if row.status == "judged" else Cell("○ not judged", None, tone="unknown")


def _comparison(result: InspectionResult) -> Section:
    compared = result.compared_with
    previous = "not given" if compared.previous is None else short(compared.previous.name, 80)
    rows = [
        ("Freshly initialised", f"{compared.num_models} models, as {', '.join(compared.schemes)}"),
        ("Previous round", previous),
        ("Samples used", f"{result.settings.num_samples:,} of {result.data.num_samples:,}"),
        ("Batch size", f"{result.settings.batch_size:,}"),
    ]
    return Section(
        "comparison",
        "What it was compared with",
        (tables.pairs("comparison", "Models and samples", ("Item", "Value"), rows, layout="dense"),),
    )


def _meaning(result: InspectionResult) -> Section:
    items = tuple(
        (
            f"{info.title} ({info.id})",
            f"{sentence(info.summary)} Number: {info.units}; flagged from {given(info.threshold)} on. Innocent cause: "
            f"{sentence(info.innocent)} Source: {info.source}.",
        )
        for info in result.sign_infos
    )
    return Section("meaning", "What the signs mean", (DefinitionList(items),))


def _provenance(result: InspectionResult) -> Section:
    checkpoint, data = result.checkpoint, result.data
    previous = result.compared_with.previous
    rows = [
        ("Received", short(checkpoint.name, 80)),
        ("Received SHA-256", checkpoint.sha256 or _UNREAD),
        ("Architecture", f"{short(checkpoint.architecture, 80)}, {checkpoint.num_parameters:,} parameters"),
        *([] if previous is None else [("Previous SHA-256", previous.sha256 or _UNREAD)]),
        ("Data", f"{short(data.name, 80)}, {data.num_samples:,} samples"),
        ("Data SHA-256", data.sha256 or _UNREAD),
        ("Seed", str(result.settings.seed)),
        ("Time", f"{number(result.seconds)} s"),
        ("Versions", ", ".join(f"{short(name)} {short(version)}" for name, version in sorted(result.versions.items()))),
    ]
    blocks: list[Block] = [tables.pairs("provenance", "Where this comes from", ("Item", "Value"), rows, layout="dense")]
    if result.command:
        blocks.append(Snippet("The command that reproduces this inspection", result.command))
    return Section("provenance", "Provenance", tuple(blocks))
