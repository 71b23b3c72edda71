"""``head-features``: the features of a sample that is alone in its class.

In the last layer the gradient of the logit of class c is p_c - 1 for a sample of that class and p_c for all others:
with one such sample and outputs that are sure of the others, row c of dW over entry c of db is nearly that sample's
features, the better the surer they are; of a sample that leaves alone, exactly. What was recovered is compared with
the truth. Of a layer without bias, or whose bias stays, the row alone is left: the features up to a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from typing_extensions import override

from riskaudit.checks.base import Check, Finding, not_applicable, nothing_to_read, register
from riskaudit.checks.upload import FullyConnected, SentUpload
from riskaudit.results.checks import Recovery

# Relative error of features up to which they count as recovered.
NEAR = 0.1


@register
@final
class HeadFeatures(Check):
    """See the module."""

    id: ClassVar[str] = "head-features"
    title: ClassVar[str] = "Features of a sample alone in its class"
    summary: ClassVar[str] = "What the last layer sees of one sample can be divided out of its class's row."
    remedy: ClassVar[str] = "Send batches in which every class has several samples, or add noise to the last layer."
    source: ClassVar[str] = "Phong et al., 2018; Wen et al. (Fishing for user data), ICML 2022"
    recovers: ClassVar[Recovery] = "features"

    @override
    def run(self, upload: SentUpload) -> list[Finding]:
        targets = upload.batch.targets
        if targets.ndim != 1 or targets.is_floating_point():
            return not_applicable("targets aren't class numbers")
        layers = (layer for layer in reversed(upload.fully_connected) if torch.equal(layer.outputs, upload.outputs))
        head = next((layer for layer in layers if layer.weight is not None), None)
        if head is None:
            return nothing_to_read(upload, "the outputs don't come from a fully connected layer whose weight leaves")
        counts = torch.bincount(targets)
        alone = [position for position, target in enumerate(targets.tolist()) if counts[target] == 1]
        if not alone:
            return [Finding("clear", head.name, reason="every class in the upload has several samples")]
        errors, noise = _errors(upload, head, alone)
        limit = upload.tolerable_feature_rmse(head.inputs)
        near = [
            position
            for position, error in errors.items()
            if error <= NEAR and (upload.noise_std == 0 or upload.noise_std * noise[position] < limit)
        ]
        recovers: Recovery = "features" if head.bias is not None else "scaled_features"
        if not near:
            reason = "what other classes' samples or the noise add to the class's row hides the features"
            return [Finding("clear", head.name, exactness="predicted", reason=reason, recovers=recovers)]
        exact = upload.noise_std == 0 and all(errors[position] <= upload.agreement for position in near)
        return [
            Finding(
                "leak",
                head.name,
                near,
                "exact" if exact else "predicted",
                None if upload.noise_std == 0 else upload.noise_std * min(noise[position] for position in near),
                {"relative_error": {position: errors[position] for position in near}},
                recovers=recovers,
                clear_from_std=max(limit / noise[position] for position in near),
            )
        ]


def _errors(
    upload: SentUpload, head: FullyConnected, positions: Sequence[int]
) -> tuple[dict[int, float], dict[int, float]]:
    """Of samples alone in their class: relative error of what their row gives, and rmse that noise of std 1 leaves."""
    assert head.weight is not None
    errors: dict[int, float] = {}
    noise: dict[int, float] = {}
    for position in positions:
        target = upload.batch.targets[position]
        row, features = head.weight[target], head.inputs[position]
        size = features.abs().max()
        # Without a bias, by the factor that fits best.
        signal = row @ features / features.square().sum() if head.bias is None else head.bias[target]
        if not bool(size > 0) or not bool(signal.abs() > 0) or (head.bias is None and row.numel() < 2):
            continue
        errors[position] = float((row / signal - features).abs().max() / size)
        of_signal = 0.0 if head.bias is None else features.square()
        noise[position] = float((torch.ones_like(features) + of_signal).mean().sqrt() / signal.abs())
    return errors, noise
