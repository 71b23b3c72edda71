"""Two audits side by side: who got worse, as far as intervals tell, and what was set up differently."""

from __future__ import annotations

import pytest

from riskaudit.report.sections.changes import Changes, change_words
from riskaudit.results import Estimate
from riskaudit.results.facts import Facts


def of(result, estimate, **fields):
    """The audit with one number for each of its samples."""
    rows = [
        row.model_copy(update={"proxies": row.proxies | {"revealed_fraction": estimate}} | fields)
        for row in result.samples
    ]
    return result.model_copy(update={"samples": rows})


def interval(low, high):
    middle = None if low is None else (low + high) / 2
    return Estimate(value=middle, low=low, high=high, status="bracketed" if low != high else "exact")


@pytest.mark.parametrize(
    ("before", "now", "kind"),
    [
        ((0.2, 0.3), (0.31, 0.4), "worse"),
        ((0.2, 0.3), (0.29, 0.4), "can't be told apart"),
        ((0.2, 0.3), (0.1, 0.19), "better"),
        ((0.2, 0.2), (0.2, 0.2), "same"),
        ((0.2, 0.3), (0.2, 0.3), "same"),
        ((0.2, 0.2), (0.25, 0.25), "worse"),
    ],
)
def test_a_change_is_one_where_intervals_lie_apart(audit, before, now, kind):
    base = audit("defended")
    changes = Changes(Facts(of(base, interval(*now))), Facts(of(base, interval(*before))))
    assert changes.counts[kind] == len(base.samples)


def test_overlapping_intervals_of_different_setups_are_not_the_same(audit):
    base = audit("defended")
    other = base.model_copy(update={"release": base.release.model_copy(update={"spec": "gradient,gaussian:0.02"})})
    changes = Changes(Facts(of(base, interval(0.2, 0.3))), Facts(of(other, interval(0.2, 0.3))))
    assert changes.differing == ("the release",)
    assert changes.counts["can't be told apart"] == len(base.samples)


def test_not_assessed_is_never_better(audit):
    base = audit("defended")
    lost = Estimate(value=None, status="not_converged")
    before = of(base, interval(0.9, 0.9))
    for now in (of(base, lost, verdict="not_assessed"), of(base, interval(0.1, 0.1), verdict="not_assessed")):
        assert Changes(Facts(now), Facts(before)).counts["no longer assessed"] == len(base.samples)
        assert Changes(Facts(before), Facts(now)).counts["not assessed"] == len(base.samples)


def test_undefended_counts_as_full_disclosure_beside_defended(audit):
    defended, undefended = audit("defended"), audit("undefended")
    worse = Changes(Facts(undefended), Facts(defended))
    assert worse.counts["worse"] == len(worse.samples) > 0
    assert "the release" in change_words(worse)
    assert not Changes(Facts(defended), Facts(undefended)).counts["worse"]


@pytest.mark.parametrize(
    ("ends", "kind"), [((0.1, 0.2), "better"), ((1.0, 1.0), "same"), ((0.9, 1.0), "can't be told apart")]
)
def test_noise_that_hides_nothing_makes_no_release_better(audit, ends, kind):
    defended, undefended = of(audit("defended"), interval(*ends)), of(audit("undefended"), interval(0.3, 0.3))
    changes = Changes(Facts(defended), Facts(undefended))
    assert changes.counts[kind] == len(changes.samples) > 0
