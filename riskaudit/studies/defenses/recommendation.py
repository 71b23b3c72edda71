"""Which defence to switch on: the cheapest one whose protection is predicted and was attacked in vain.

A failed attack is no protection: the posterior error has to say likewise, of every audited sample at every audited
point of training. A defence without noise has no such number, since the reference noise is one that nobody adds.
"""

from __future__ import annotations

from collections.abc import Sequence

from riskaudit.formatting import number, percent
from riskaudit.studies.defenses.record import DefenseRow

UNDEFENDED = "gradient"


def recommend(rows: Sequence[DefenseRow], target: float, *, doubted: bool = False) -> tuple[str | None, str]:
    """A line for ``release``, or None, and a sentence that says why.

    Args:
        rows: of all defences, `UNDEFENDED` among them.
        target: error that every audited sample should be left with.
        doubted: whether the model or the data may be others than those that were audited.
    """
    if doubted:
        return None, "No recommendation: the model or the data are doubted, as the audit's warnings say"
    candidates = [row for row in rows if row.defense != UNDEFENDED]
    safe = [row for row in candidates if is_supported(row, target)]
    if not safe:
        return None, _none(candidates, target)
    best = min(safe, key=lambda row: (row.loss.mean if row.loss else 0.0, -(row.least_predicted or 0.0)))
    assert best.least_predicted is not None
    assert best.least_attack is not None
    text = (
        f"Recommended: --release {best.defense}, which leaves the most exposed of the audited samples a predicted "
        f"error of {number(best.least_predicted)} and an attack error of {number(best.least_attack)} (wanted: "
        f"{number(target)}){_cost(best, rows)}"
    )
    if best.num_seeds < 2:
        text += "; one seed: nothing says whether another training would come out alike"
    return best.defense, text


def is_supported(row: DefenseRow, target: float) -> bool:
    """Whether every sample's predicted error and least attack error reach the target, in every training."""
    return (
        row.noisy
        and row.num_finished == row.num_seeds
        and row.num_unpredicted == row.num_unattacked == 0
        and row.least_predicted is not None
        and row.least_attack is not None
        and min(row.least_predicted, row.least_attack) >= target
    )


def _cost(best: DefenseRow, rows: Sequence[DefenseRow]) -> str:
    plain = next((row for row in rows if row.defense == UNDEFENDED), None)
    if plain is None or plain.loss is None or best.loss is None:
        return ""
    text = f"; the final training loss is {number(best.loss.mean)} against {number(plain.loss.mean)} without a defence"
    if plain.accuracy is not None and best.accuracy is not None:
        text += f", the test accuracy {percent(best.accuracy.mean)} against {percent(plain.accuracy.mean)}"
    return text


def _none(candidates: Sequence[DefenseRow], target: float) -> str:
    text = (
        f"No recommendation: no defence leaves every audited sample a predicted error and an attack error of at least "
        f"{number(target)} at every point of training, in all trainings"
    )
    resisted = [row for row in candidates if row.least_attack is not None and row.least_attack >= target]
    bare = [row.defense for row in resisted if not row.noisy]
    if bare:
        text += (
            f"; the attacks failed on {', '.join(bare)}, without noise: what is predicted of it is at the reference "
            "noise, which nobody adds, and a failed attack is no protection"
        )
    foreseen = {row.defense: row.least_predicted for row in resisted if row.noisy}
    exposed = {name: error for name, error in foreseen.items() if error is not None and error < target}
    if exposed:
        named = ", ".join(f"{name} (predicted {number(error)})" for name, error in exposed.items())
        text += f"; the attacks failed on {named}, where more leaks than they found: a failed attack is no protection"
    unknown = [row.defense for row in candidates if row.num_unpredicted or row.num_finished < row.num_seeds]
    if unknown:
        text += f"; of {', '.join(unknown)} not every number is known"
    return text
