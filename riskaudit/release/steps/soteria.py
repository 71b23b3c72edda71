"""Soteria: of one linear layer's weight gradient, columns of the least revealing features are set to zero.

The layer takes f(x), and its weight's gradient is s f^T. Kept are the columns k whose score

    |  ||df_k/dx||_2 / (f_k + 0.1)  |

is at or above the Q-th percentile of the scores (Sun et al., CVPR 2021; as Balunovic et al., ICLR 2022, appendix A.1,
run it with Q = 80). The layer's bias and all other layers are sent as they are, and whoever leaves this layer's weight
out of a matching isn't hindered (their equation 6; `riskaudit.attacks.left_out`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from typing_extensions import override

from riskaudit.errors import ReleaseError
from riskaudit.release.arguments import Argument, optional_text, percentage
from riskaudit.release.steps.base import Step, StepContext, VectorFunction, register, without_wrapper
from riskaudit.release.steps.closed_forms import Kept

if TYPE_CHECKING:
    from torch import Tensor, nn

    from riskaudit.release.steps.base import ModelRun

# Keeps scores of features that are 0, as ReLU leaves them, finite.
OFFSET = 0.1
# Features whose derivatives are held at once.
CHUNK = 64


@register
@final
@dataclass(frozen=True)
class Soteria(Step):
    """Keep the columns of a linear layer's weight gradient whose features are the least exposed.

    Which ones is constant around a sample.

    Attributes:
        percentile: Q, of the scores below which columns are set to 0.
        layer: name of the layer in the model; None for the linear layer with the largest weight.

    Raises:
        ReleaseError: no such layer, or one that doesn't take one vector of a sample.
    """

    percentile: float
    layer: str | None = None
    name: ClassVar[str] = "soteria"
    summary: ClassVar[str] = (
        "of the weight of one linear layer (default: the largest) set to 0 the columns of features scored below the "
        "Q-th percentile (Soteria)"
    )
    arguments: ClassVar[tuple[Argument, ...]] = (percentage("Q"), optional_text("LAYER"))
    chooses: ClassVar[bool] = True
    before_mean: ClassVar[bool] = True
    looks_at_input: ClassVar[bool] = True

    @override
    def bind(self, context: StepContext) -> VectorFunction:
        self.defended_layer(context)
        mask = None if context.inputs is None else self._mask(context, context.inputs)

        def apply(released: Tensor) -> Tensor:
            assert mask is not None, "a step that looks at a sample's input is bound to it first"
            return released * mask

        return apply

    @override
    def derivative(self, released: Tensor, context: StepContext) -> Kept:
        import torch

        assert context.inputs is not None
        return Kept(torch.stack([self._mask(context, inputs) for inputs in context.inputs]))

    @override
    def spoiled(self, context: StepContext) -> frozenset[str]:
        return frozenset({f"{self.defended_layer(context)}.weight".lstrip(".")})

    def defended_layer(self, context: StepContext) -> str:
        """The name of the layer.

        Raises:
            ReleaseError: the model has no such linear layer whose weight is sent.
        """
        layers = _linear_layers(context)
        if not layers:
            raise ReleaseError(
                f"expected a model with a linear layer whose weight is sent for '{self}', found none; leave it out"
            )
        if self.layer is None:
            return max(layers, key=lambda name: layers[name].weight.numel())
        layer = self.layer if self.layer in layers else without_wrapper(layers).get(self.layer, self.layer)
        if layer not in layers:
            known = ", ".join(layers)
            raise ReleaseError(
                f"expected one of the linear layers {known} in '{self}', found {self.layer!r}; name one of them"
            )
        return layer

    def _threshold(self, scores: Tensor) -> Tensor:
        """The least of scores [F] that is at or above their percentile, wherever that is interpolated, scalar."""
        # Less what a product of floats may have beyond a whole number.
        position = math.ceil(self.percentile / 100 * (len(scores) - 1) - 1e-9)
        return scores.sort().values[position]

    def _mask(self, context: StepContext, inputs: Tensor) -> Tensor:
        """1 at the entries that are kept, 0 elsewhere, [P], for one sample's inputs [*S]."""
        import torch

        name, function = self.defended_layer(context), context.function
        assert function is not None
        scores = feature_scores(function, name, inputs.detach())
        kept = (scores >= self._threshold(scores)).to(context.dtype)
        weight = f"{name}.weight".lstrip(".")
        parts = [
            kept.expand(shape).reshape(-1)
            if parameter == weight
            else torch.ones(shape.numel(), dtype=context.dtype, device=context.device)
            for parameter, shape in context.shapes.items()
        ]
        return torch.cat(parts)


def feature_scores(function: ModelRun, layer: str, inputs: Tensor) -> Tensor:
    """Score of every feature that a linear layer takes, [features].

    Args:
        function: the model.
        layer: its name in the model.
        inputs: of one sample, [*S].

    Raises:
        ReleaseError: the layer isn't called once with one vector of the sample.
    """
    import torch
    from torch.autograd import grad
    from torch.func import vjp, vmap

    def transformed() -> Tensor:
        features: Tensor
        features, pullback = vjp(lambda x: _features(function, layer, x), inputs)  # type: ignore[misc]
        return _scores(features, lambda rows: vmap(pullback)(rows)[0])

    def plainly() -> Tensor:
        with torch.enable_grad():
            at = inputs.clone().requires_grad_()
            features = _features(function, layer, at)
            return _scores(
                features.detach(),
                lambda rows: torch.stack([grad(features, at, row, retain_graph=True)[0] for row in rows]),
            )

    return function.or_plainly(transformed, plainly)


def _scores(features: Tensor, pull: Any) -> Tensor:
    """Scores of features [F], where ``pull`` takes rows [K, F] to their derivatives [K, *S]."""
    import torch

    count, norms = len(features), []
    for first in range(0, count, CHUNK):
        rows = torch.zeros(min(CHUNK, count - first), count, dtype=features.dtype, device=features.device)
        rows.diagonal(first).fill_(1)
        norms.append(pull(rows).flatten(1).norm(dim=1))
    return (torch.cat(norms) / (features + OFFSET)).abs()


def _features(function: ModelRun, layer: str, inputs: Tensor) -> Tensor:
    """What enters a linear layer where the model sees one sample, [features].

    Raises:
        ReleaseError: it isn't one vector, once.
    """
    seen: list[Tensor] = []
    handle = function.model.get_submodule(layer).register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0])
    )
    try:
        function.run(function.parameters, inputs.unsqueeze(0))
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0].shape[:-1].numel() != 1:
        raise ReleaseError(
            f"expected a layer for soteria that the model gives one vector of features for a sample, found {layer}, "
            f"which takes {' and '.join(str(list(each.shape)) for each in seen) or 'nothing'}; name another LAYER"
        )
    return seen[0].reshape(-1)


def _linear_layers(context: StepContext) -> dict[str, nn.Linear]:
    """The linear layers whose weights are among what a vector consists of, by name."""
    from torch import nn

    if context.function is None:
        return {}
    layers = {name: layer for name, layer in context.function.model.named_modules() if isinstance(layer, nn.Linear)}
    return {name: layer for name, layer in layers.items() if f"{name}.weight".lstrip(".") in context.shapes}
