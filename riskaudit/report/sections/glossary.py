"""The report's last words: every proxy and term in plain language."""

from __future__ import annotations

from riskaudit.document.blocks import Block, DefinitionList, Subheading
from riskaudit.formatting import sentence
from riskaudit.results.facts import Facts

_TERMS = (
    ("Release", "What leaves the client: the gradient and everything done to it before upload."),
    ("Prior", "What the attacker is taken to know of an input before seeing the release."),
    ("Isotropic prior", "Every coordinate on its own, with one mean and one standard deviation for all."),
    ("Data prior", "A Gaussian with the mean and the correlations of a set of inputs (shrunk after Ledoit and Wolf)."),
    ("Class prior", "One such Gaussian per class, for an attacker who knows the label; rare classes share one."),
    (
        "Probability of success",
        "How probably the error of the best attacker with the prior lies within a tolerance, to first order.",
    ),
    ("Predictive interval", "Where the error of a single attack lies nine times out of ten; its mean is one number."),
    ("Reference noise", "Noise that only exists in the audit, to rank samples of a release that has none."),
    ("Effective dimension", "Revealed fraction times the number of input coordinates."),
    ("RMSE", "Root mean squared error per input coordinate, in data units."),
    ("Gini", "A measure of unevenness between 0 (all alike) and 1 (one carries all)."),
    ("Bracketed", "The true value lies in the interval that is shown."),
    ("Singular", "Some direction of the input is not in the release at all, so an error without a prior is infinite."),
    ("Not assessed", "No verdict could be reached. Never a sign of safety."),
)


def glossary_blocks(facts: Facts) -> list[Block]:
    """The proxies of this audit and the terms used."""
    proxies: list[tuple[str, str]] = []
    for proxy in facts.proxy_ids:
        info = facts.info(proxy)
        formula = f"Formula: {info.formula}." if info and info.formula else ""
        words = [] if info is None else [sentence(info.summary), formula, f"Source: {info.source}."]
        proxies.append((facts.title(proxy), " ".join(word for word in words if word) or "No description."))
    return [
        Subheading("Proxies in plain words"),
        DefinitionList(tuple(proxies), compact=True),
        Subheading("Terms"),
        DefinitionList(_TERMS, compact=True),
    ]
