"""``head-features``: the features of a sample that is alone in its class.

In the last layer the gradient of the logit of class c is p_c - 1 for a sample of that class and p_c for all others:
with one such sample and outputs that are sure of the others, row c of dW over entry c of db is nearly that sample's
features, the better the surer they are; of a sample that leaves alone, exactly. What was recovered is compared with
the truth.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from typing_extensions import override

from riskaudit.checks.base import Check, Finding, not_applicable, register
from riskaudit.checks.upload import SentUpload
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
        head = next((layer for layer in layers if layer.weight is not None and layer.bias is not None), None)
        if head is None:
            return not_applicable("the outputs don't come from a fully connected layer whose weight and bias leave")
        counts = torch.bincount(targets)
        alone = [position for position, target in enumerate(targets.tolist()) if counts[target] == 1]
        if not alone:
            return [Finding("clear", head.name, reason="every class in the upload has several samples")]
        assert head.weight is not None
        assert head.bias is not None
        errors: dict[int, float] = {}
        noise: dict[int, float] = {}
        for position in alone:
            row, entry = head.weight[targets[position]], head.bias[targets[position]]
            features = head.inputs[position]
            size = features.abs().max()
            if not bool(size > 0) or not bool(entry.abs() > 0):
                continue
            errors[position] = float((row / entry - features).abs().max() / size)
            noise[position] = float(upload.noise_std * (1 + features.square()).mean().sqrt() / entry.abs())
        limit = upload.tolerable_feature_rmse(head.inputs)
        near = [
            position
            for position, error in errors.items()
            if error <= NEAR and (upload.noise_std == 0 or noise[position] < limit)
        ]
        if not near:
            reason = "what other classes' samples or the noise add to the class's row hides the features"
            return [Finding("clear", head.name, exactness="predicted", reason=reason)]
        exact = upload.noise_std == 0 and all(errors[position] <= upload.agreement for position in near)
        return [
            Finding(
                "leak",
                head.name,
                near,
                "exact" if exact else "predicted",
                None if upload.noise_std == 0 else min(noise[position] for position in near),
                {"relative_error": {position: errors[position] for position in near}},
            )
        ]
