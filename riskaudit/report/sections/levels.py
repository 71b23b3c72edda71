"""Which samples are high, medium and low: how many of each, and by which rule."""

from __future__ import annotations

from riskaudit.document.blocks import Share, Shares
from riskaudit.document.cells import VERDICT_TONES, VERDICT_WORDS
from riskaudit.formatting import count, given
from riskaudit.results import Verdict
from riskaudit.results.facts import Facts
from riskaudit.results.verdicts import tokens_of


def level_words(facts: Facts) -> str:
    """All verdicts with their counts: "5 high, 2 medium, 1 low, 0 not assessed"."""
    return ", ".join(f"{amount:,} {verdict.replace('_', ' ')}" for verdict, amount in facts.verdicts.items())


def level_shares(facts: Facts) -> Shares:
    """The same with the limits between the levels."""
    levels = facts.result.settings.thresholds
    meanings: dict[Verdict, str] = {
        "high": f"above {given(levels.high)}" if facts.result.release.defended else "all, for want of a defence",
        "medium": f"{given(levels.medium)} to {given(levels.high)}",
        "low": f"below {given(levels.medium)}",
        "not_assessed": "never a sign of safety",
    }
    return Shares(
        f"{count(facts.num_samples, 'sample')} by {_measure(facts)}",
        tuple(
            Share(mark, amount, word, meanings[verdict], VERDICT_TONES[verdict])
            for verdict, amount in facts.verdicts.items()
            for mark, _, word in [VERDICT_WORDS[verdict].partition(" ")]
        ),
    )


def level_rule(facts: Facts) -> str:
    """By which number a sample has its level."""
    levels = facts.result.settings.thresholds
    rule = (
        f"High above {given(levels.high)}, medium from {given(levels.medium)} on, low below, by {_measure(facts)}. "
        "Of an interval, certified or calibrated, the upper end counts, and where a release reaches only some of the "
        "coordinates, the share of those."
    )
    undefended = "" if facts.result.release.defended else "Without noise of its own a release makes every sample high. "
    return undefended + rule


def _measure(facts: Facts) -> str:
    """What levels and limits go by, in words."""
    data = facts.result.data
    if data.encoding is not None:
        return "what is revealed of their most exposed column"
    if facts.num_known(tokens_of(facts.attacker)):
        return "revealed fraction or token recovery, whichever is more"
    return "revealed fraction"
