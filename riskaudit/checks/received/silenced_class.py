"""``silenced-class``: labels whose samples leave no gradient below the last layer.

The cross-entropy's gradient at the features f of a sample with label c is W^T (p - e_c), with p the softmax of
W f + b. A server that wants the samples of one class alone empties the other rows of W and lifts their biases (Wen et
al., "Fishing for User Data in Large-Batch Federated Learning", ICML 2022): samples of all other classes then have
gradient 0, and the mean over a batch is that of one sample.

Judged are labels that samples don't have: |W^T (p - e_c)| for every sample and every class c but the one predicted.
A network that predicts another class than c is wrong about c, so that in an honest network this is never small, however
well it is trained. The number is the largest share of samples for which some label is silent, below 1e-4 of the largest
gradient of any label. Labels of samples aren't looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.checks.received.base import Measurement, Sign, SignNotApplicable, register
from riskaudit.checks.received.observation import Head, ObservedModel

# Of the largest gradient of any label.
SILENT = 1e-4
# A bias this far above all that features do decides alone, exp(-15) of the probability is left for other classes.
DECIDING = 15.0
# Classes that are looked at of a head with more: those with the least and the greatest biases, and others between.
_MAX_CLASSES = 1024


@register
class SilencedClass(Sign):
    """Labels whose samples leave no gradient below the last layer."""

    id: ClassVar[str] = "silenced-class"
    title: ClassVar[str] = "Silenced classes"
    summary: ClassVar[str] = (
        "Samples of some classes leave no gradient below the last layer, so that a batch's gradient is that of the few "
        "samples of the others."
    )
    innocent: ClassVar[str] = "A last layer of which rows were cut off on purpose, as some ways of unlearning do."
    source: ClassVar[str] = 'Wen et al., "Fishing for User Data in Large-Batch Federated Learning", ICML 2022'
    units: ClassVar[str] = "share of the samples"
    threshold: ClassVar[float] = 0.5
    spread: ClassVar[float] = 0.03

    @override
    def measure(self, observed: ObservedModel) -> Mapping[str, Measurement]:
        if not observed.classifies:
            raise SignNotApplicable("the loss isn't the cross-entropy of the model's outputs")
        head = observed.head
        if head is None:
            raise SignNotApplicable("the outputs aren't those of a fully connected layer, one per class")
        if len(head.weight) < 2:
            raise SignNotApplicable("the model has one output, not one per class")
        if float(head.weight.abs().amax()) == 0:
            raise SignNotApplicable("all weights of the last layer are 0, so that no label has a gradient")
        return {head.layer: _measured(head)}


def _measured(head: Head) -> Measurement:
    weight, logits = head.weight.double(), head.logits.double()
    classes = _looked_at(head.bias)
    probabilities = logits.softmax(1)
    means = probabilities @ weight
    norms = torch.cdist(means, weight[classes])
    predicted = classes.unsqueeze(0) == logits.argmax(1, keepdim=True)
    silent = (norms <= SILENT * norms.amax()) & ~predicted
    share = silent.double().mean(0)
    value, count = float(share.amax()), int((share >= SilencedClass.threshold).sum())
    if value < SilencedClass.threshold and _decided_by_bias(head, logits):
        return Measurement(1.0, "one class has a bias beyond all that features do, so its samples leave no gradient")
    detail = f"samples of {count} of {len(head.weight)} classes would leave no gradient below this layer"
    return Measurement(value, detail)


def _decided_by_bias(head: Head, logits: Tensor) -> bool:
    """Whether one bias alone decides the class of every sample."""
    bias = head.bias.double()
    first = int(bias.argmax())
    others = torch.arange(len(bias), device=bias.device) != first
    gaps = bias[first] - bias[others]
    features = logits - bias
    reach = (features[:, others] - features[:, first : first + 1]).abs().amax(0)
    return bool((gaps - reach > DECIDING).all())


def _looked_at(bias: Tensor) -> Tensor:
    order = bias.argsort()
    if len(order) <= _MAX_CLASSES:
        return order
    return order[torch.linspace(0, len(order) - 1, _MAX_CLASSES, device=order.device).long()]
