"""The audited model's own penultimate features: how far a reconstruction's are off, and what they leave untold.

The features are what enters the linear layer that a forward pass reaches last. Two inputs that the model can't
tell apart have distance 0 whatever they look like, so this says what a reconstruction is worth to the model,
not what a person would recognise. Not valid across models: the features have no common unit.

Feature MSE is their mean squared difference. The feature outside the span is |(I - Q Q^T) z| / |z| for a sample's
features z and an orthonormal basis Q of those that were reconstructed of its upload (Liu, Wang and Lei, "Data
reconstruction attacks and defenses", Table 2): with one sample the sine of the angle between both. Of as many samples
as features it is 0 whatever they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.metrics.base import Metric, Subject, register


def penultimate_features(model: nn.Module, inputs: Tensor) -> Tensor | None:
    """What enters the last linear layer that runs on [B, *S], [B, features]; None where none sees the batch."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen[:] = [argument.detach() for argument in arguments]

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    reference = next(model.parameters(), inputs)
    try:
        with torch.no_grad():
            model(inputs.to(dtype=reference.dtype, device=reference.device))
    finally:
        for handle in handles:
            handle.remove()
    if not seen or seen[0].ndim == 0 or len(seen[0]) != len(inputs):
        return None
    return seen[0].flatten(1)


class _OfFeatures(Metric):
    """A metric on the audited model's penultimate features."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        if subject.model is None:
            self.reason = "no model was given"
        elif not any(isinstance(layer, nn.Linear) for layer in subject.model.modules()):
            self.reason = "the model has no linear layer"
        # A batch of three, so that a layer over positions isn't taken for one over samples.
        elif penultimate_features(subject.model, torch.zeros(3, *subject.input_shape)) is None:
            self.reason = "the model's last linear layer doesn't see one row per sample"

    def _features(self, reconstruction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Of both, each [B, features], float64."""
        if self.subject.model is None:
            raise ValueError("expected a model, found none; see the metric's reason")
        features = penultimate_features(self.subject.model, torch.cat([reconstruction, truth.to(reconstruction)]))
        if features is None:
            raise ValueError("expected a linear layer that sees one row per sample, found none")
        guess, target = features.double().chunk(2)
        return guess, target


@register
class FeatureError(_OfFeatures):
    """Mean squared error of the audited model's penultimate features."""

    name = "feature_mse"
    title = "Feature MSE"
    order = 60
    units = "squared feature units"
    source = "input of the audited model's last linear layer"

    @override
    def __call__(self, reconstruction: Tensor, truth: Tensor) -> Tensor:
        guess, target = self._features(reconstruction, truth)
        return (guess - target).square().mean(1).cpu()


@register
class FeatureOutsideSpan(_OfFeatures):
    """Share of the length of a sample's features that lies outside the span of those reconstructed of its upload."""

    name = "feature_span"
    title = "Feature outside the span"
    order = 70
    units = "share of the features' length"
    source = "Liu, Wang and Lei, Table 2"

    @override
    def __call__(self, reconstruction: Tensor, truth: Tensor) -> Tensor:
        pairs = zip(
            *(torch.split(each, self.subject.upload_size) for each in self._features(reconstruction, truth)),
            strict=True,
        )
        return torch.cat([outside_span(*pair) for pair in pairs]).cpu()


def outside_span(recovered: Tensor, features: Tensor) -> Tensor:
    """|(I - Q Q^T) z| / |z| of features z [n, D], Q a basis of the recovered ones [k, D]; no number for z = 0. [n]."""
    _, values, right = torch.linalg.svd(recovered, full_matrices=False)
    basis = right[values > torch.finfo(values.dtype).eps * max(recovered.shape) * values.max()]
    left: Tensor = (features - features @ basis.T @ basis).norm(dim=1) / features.norm(dim=1)
    return left
