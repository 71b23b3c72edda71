"""Part of section 5 where ``studies.directions`` compared noise of equal power in several shapes."""

from __future__ import annotations

import math

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Callout, Cell, Paragraph, Subheading, Table
from riskaudit.formatting import count, number, percent, sentence
from riskaudit.results.facts import Facts
from riskaudit.studies.directions.record import DirectionsStudy, ShapingSummary

_SCHEMES = {
    "isotropic": "Isotropic, as released",
    "in_range": "Isotropic within the range of J",
    "water_filled_in_range": "Water-filled, only the power isotropic noise has within the range",
    "water_filled": "Water-filled",
    "per_layer": "One standard deviation per layer",
}


def shaping_blocks(facts: Facts) -> list[Block]:
    """The part of section 5."""
    study = facts.result.studies.get(DirectionsStudy)
    if study is None or not (study.shaping_summary or study.shaping_reason):
        return []
    blocks: list[Block] = [Subheading("Noise in another shape")]
    if not study.shaping_summary:
        return [*blocks, Callout("Noise shapes: not assessed", (sentence(study.shaping_reason or ""),), "unknown")]
    noise = "the reference noise" if study.reference else "the release's noise"
    blocks.append(
        Paragraph(
            f"All shapes have the power (trace of the covariance) of {noise}: {number(study.noise_std)} squared on "
            f"{count(study.num_entries, 'released entry', 'released entries')}. Of isotropic noise only the share "
            f"within the range of the Jacobian J, {study.dimension:,} dimensions or fewer, counts to first order.",
            lead=_shaping_finding(study.shaping_summary),
        )
    )
    blocks.append(_shaping_table(study.shaping_summary))
    blocks.append(_shaping_warning(study.shaping_summary))
    return blocks


def _shaping_finding(rows: list[ShapingSummary]) -> str:
    """What holds against an attacker who knows the shape, or what was predicted where none was tried."""
    by_scheme: dict[str, ShapingSummary] = {row.scheme: row for row in rows}
    plain = by_scheme["isotropic"]
    attacked = [row for row in rows if row.scheme != "isotropic" and "knows" in row.attacked]
    if not attacked or "knows" not in plain.attacked:
        best = max(rows, key=lambda row: row.predicted)
        return f"To first order {_SCHEMES[best.scheme].lower()} noise forces {_times(best.predicted, plain.predicted)}."
    best = max(attacked, key=lambda row: row.attacked["knows"])
    error, base = best.attacked["knows"], plain.attacked["knows"]
    if error <= base:
        return "No shape helped against an attacker who knows it."
    return f"Against an attacker who knows the shape, {_SCHEMES[best.scheme].lower()} forces {_times(error, base)}."


def _times(error: float, base: float) -> str:
    return f"{number(error / base)} times the error of isotropic noise" if base > 0 else "more error"


def _shaping_table(rows: list[ShapingSummary]) -> Table:
    attacked = any(row.attacked for row in rows)

    def attack(title: str, attacker: str) -> tables.RowColumn[ShapingSummary]:
        return tables.number(
            title, lambda row: row.attacked.get(attacker), "mean RMSE", missing="not run", shown=attacked
        )

    columns: tables.Columns[ShapingSummary] = (
        tables.text("Shape", lambda row: _SCHEMES[row.scheme]),
        tables.number("Predicted posterior error", lambda row: row.predicted, "mean"),
        tables.column(
            "Samples with more than isotropic",
            lambda row: Cell("–" if row.share_better is None else percent(row.share_better), row.share_better),
        ),
        attack("Attack that ignores the shape", "ignores"),
        attack("Attack that knows it", "knows"),
    )
    note = "Attacks start at the truth (oracle start), with the prior's term." if attacked else ""
    return tables.table("shaping", "Noise of equal power in several shapes", rows, columns, note=note, layout="compact")


def _shaping_warning(rows: list[ShapingSummary]) -> Callout:
    body = [
        "Noise whose shape depends on the private input can itself leak it: its covariance is a function of the "
        "input. It gives no differential privacy. Standard deviations per layer that are chosen once, on other data, "
        "do not have this flaw."
    ]
    filled = next((row for row in rows if row.scheme == "water_filled"), None)
    if filled is not None and filled.attacked.get("knows", math.inf) < 0.5 * filled.predicted:
        body.append(
            f"Water-filled noise leaves most released entries without any: an attacker who knows the shape reached "
            f"{number(filled.attacked['knows'])} where first order predicts {number(filled.predicted)}. Do not use it "
            "where the shape may become known."
        )
    elif filled is not None and not filled.attacked:
        body.append(
            "Water-filled noise leaves most released entries without any; beyond first order these can give the input "
            "away. riskaudit study directions --attacks tries it."
        )
    return Callout("Shaped noise is not safe by itself", tuple(body), "medium")
