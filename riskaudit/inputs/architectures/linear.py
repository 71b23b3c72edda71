"""``linear``: one linear layer on the flattened input, whatever it is called: a state dict of one matrix and its bias.

The network of the one-layer case study of Zhang et al., "Inversion Influence Function", NeurIPS 2023, section 5.3.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from riskaudit.inputs.architectures.registry import Guess, MismatchError, Shapes, register, shape_at


def _infer(shapes: Shapes) -> Guess:
    if not set(shapes) <= {"fc.weight", "fc.bias"}:
        raise MismatchError("more than one matrix `weight` with its `bias`", near=False)
    classes, features = shape_at(shapes, "fc.weight", 2)
    return Guess(
        {"features": features, "classes": classes, "bias": "fc.bias" in shapes},
        num_classes=classes,
        input_shape=(features,),
        assumed="no activation",
    )


def _rename(shapes: Shapes, _named: bool) -> Mapping[str, str]:
    """One layer's names, whatever stands before ``weight`` and ``bias``."""
    names = {name: name.rpartition(".") for name in shapes}
    if len({stem for stem, _, _ in names.values()}) != 1:
        return {}
    return {name: f"fc.{kind}" for name, (_, _, kind) in names.items() if kind in ("weight", "bias")}


@register(
    "linear",
    description="flattened input, one linear layer (logistic or linear regression)",
    infer=_infer,
    rename=_rename,
    whole=True,
)
class LinearModel(nn.Module):
    """x [B, *S] to logits [B, classes]; ``features`` are prod S."""

    def __init__(self, features: int = 784, classes: int = 10, bias: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(features, classes, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of a batch x [B, ...]."""
        logits: Tensor = self.fc(x.flatten(1))
        return logits
