"""The report's last words: every proxy and term in plain language."""

from __future__ import annotations

from riskaudit.report.document import Block, DefinitionList, Subheading
from riskaudit.report.facts import Facts

_FORMULAS = {
    "i2f": "Error that this draw of noise leaves after inverting the linearised release: ‖(JᵀJ + ε)⁻¹ Jᵀ noise‖ / √d.",
    "i2f_lower_bound": "‖Jᵀ noise‖ / (largest eigenvalue of JᵀJ · √d). Cheap, and often far below I2F.",
    "expected_rmse": "Error of an unbiased attacker without a prior, on average over the noise: "
    "σ √(mean of 1 / eigenvalue).",
    "posterior_rmse": "Error left on average to an attacker with the stated prior: √(mean of σ² / (eigenvalue + ε)) "
    "with ε = σ² / prior variance; with correlations C = L², √(trace of L (LJᵀJL / σ² + I)⁻¹ L / d).",
    "revealed_fraction": "Mean over directions of eigenvalue / (eigenvalue + ε), which is 1 − posterior variance / "
    "prior variance: 0 = nothing beyond the prior, 1 = all.",
    "lavp_l2_max": "2 × largest eigenvalue of JᵀJ.",
    "lavp_l2_min": "2 × smallest eigenvalue of JᵀJ.",
}
# Said where the audit itself doesn't say what a proxy is.
_SUMMARIES = {
    "gradient_norm": "Length of the released gradient",
    "map_rmse": "Error of the most probable reconstruction of this very sample, on average over the noise",
    "map_i2f": "Error of the most probable reconstruction of this very sample, for the one draw of noise that was made",
    "lavp_l2_max": "Largest curvature of the attacker's squared-distance loss",
    "lavp_l2_min": "Smallest curvature of the attacker's squared-distance loss",
    "lavp_cosine_max": "Largest curvature of the attacker's cosine loss",
    "lavp_cosine_min": "Smallest curvature of the attacker's cosine loss",
}
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
        words = (info.summary if info else "") or _SUMMARIES.get(proxy, "")
        summary = f"{words.rstrip('.')}. " if words else ""
        formula = _FORMULAS.get(proxy, "")
        source = f" Source: {info.source}." if info else ""
        proxies.append((facts.title(proxy), f"{summary}{formula}{source}".strip() or "No description."))
    return [
        Subheading("Proxies in plain words"),
        DefinitionList(tuple(proxies), compact=True),
        Subheading("Terms"),
        DefinitionList(_TERMS, compact=True),
    ]
