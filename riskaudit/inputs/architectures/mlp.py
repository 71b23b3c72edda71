"""``mlp``: linear layers with ReLU between them, on the flattened input; any depth and widths.

Weights don't say what activation stood between the layers. Only this module's own naming
(``layers.0``, ``layers.2``, ...) is recognised; other stacks of linear layers are taken for it when
the user names it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from riskaudit.inputs.architectures.registry import Guess, MismatchError, Shapes, register, shape_at

_LAYER = re.compile(r"layers\.(\d{1,4})\.weight")
_NUMBERED = re.compile(r"(.*?)(\d{1,4})\.(weight|bias)")


def _infer(shapes: Shapes) -> Guess:
    numbers = sorted(int(match[1]) for name in shapes if (match := _LAYER.fullmatch(name)))
    if len(numbers) < 2 or numbers != list(range(0, 2 * len(numbers), 2)):
        linear_only = all(len(shape) <= 2 for shape in shapes.values())
        advice = "; `arch=mlp` takes any row of linear layers, with ReLU between" if linear_only else ""
        raise MismatchError(f"no layers.0, layers.2, ...{advice}", near=linear_only)
    widths: list[int] = []
    for number in numbers:
        outputs, inputs = shape_at(shapes, f"layers.{number}.weight", 2)
        if widths and inputs != widths[-1]:
            raise MismatchError(f"layers.{number}.weight takes {inputs} features, the layer before gives {widths[-1]}")
        widths += [outputs] if widths else [inputs, outputs]
    return Guess(
        {"widths": tuple(widths)},
        num_classes=widths[-1],
        input_shape=(widths[0],),
        notes=("weights don't record activations: ReLU is assumed between the linear layers",),
        assumed="ReLU between the linear layers",
    )


def _rename(shapes: Shapes, named: bool) -> Mapping[str, str]:
    """Any one numbered row of linear layers to ``layers.0``, ``layers.2``, ...; only when asked for."""
    matches = {name: _NUMBERED.fullmatch(name) for name in shapes}
    stems = {match[1] if match else None for match in matches.values()}
    if not named or len(stems) != 1 or None in stems:
        return {}
    numbers = sorted({int(match[2]) for match in matches.values() if match})
    index_of = {number: 2 * index for index, number in enumerate(numbers)}
    return {name: f"layers.{index_of[int(match[2])]}.{match[3]}" for name, match in matches.items() if match}


@register(
    "mlp", description="flattened input, linear layers with ReLU between, any widths", infer=_infer, rename=_rename
)
class MLP(nn.Module):
    """x [B, *S] to logits [B, widths[-1]]; widths are those of the input, hidden layers and classes."""

    def __init__(self, widths: Sequence[int] = (784, 128, 10)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of a batch x [B, ...]."""
        logits: Tensor = self.layers(x.flatten(1))
        return logits
