"""``convnet``: the 8-layer network with batch norm that gradient-inversion papers attack.

Geiping et al., "Inverting Gradients", NeurIPS 2020; also in Balunovic et al., ICLR 2022. Layer
names follow the former's published weights.
"""

from __future__ import annotations

from torch import Tensor, nn

from riskaudit.inputs.architectures.registry import Guess, MismatchError, Shapes, register, shape_at

# Multiples of the width after each convolution; max-pooling by 3 follows the convolutions named.
WIDTHS = (1, 2, 2, 4, 4, 4, 4, 4)
POOL_AFTER = (5, 7)
ASSUMED = "ReLU, stride 1, max-pooling by 3 after the sixth and the eighth convolution"


def _infer(shapes: Shapes) -> Guess:
    width, channels, _, _ = shape_at(shapes, "conv0.weight", 4)
    classes, features = shape_at(shapes, "linear.weight", 2)
    if features % (4 * width):
        raise MismatchError(f"linear.weight takes {features} features, expected a multiple of {4 * width}")
    # Pooling rounds down, so several input sizes give the same number of features.
    arguments = {"channels": channels, "width": width, "features": features, "classes": classes}
    return Guess(arguments, num_classes=classes, input_channels=channels, assumed=ASSUMED)


@register("convnet", description="8 convolutions 3x3 with batch norm, ReLU, 2 max-pools, 1 linear layer", infer=_infer)
class ConvNet(nn.Module):
    """x [B, C, H, W] to logits [B, classes]; ``features`` are 4 width floor(H/9) floor(W/9)."""

    def __init__(self, channels: int = 3, width: int = 32, features: int = 1152, classes: int = 10) -> None:
        super().__init__()
        inputs = channels
        self.order: list[str] = []
        for position, multiple in enumerate(WIDTHS):
            self._append(f"conv{position}", nn.Conv2d(inputs, multiple * width, kernel_size=3, padding=1))
            self._append(f"bn{position}", nn.BatchNorm2d(multiple * width))
            self._append(f"relu{position}", nn.ReLU())
            if position in POOL_AFTER:
                self._append(f"pool{POOL_AFTER.index(position)}", nn.MaxPool2d(3))
            inputs = multiple * width
        self._append("flatten", nn.Flatten())
        self._append("linear", nn.Linear(features, classes))

    def _append(self, name: str, layer: nn.Module) -> None:
        self.order.append(name)
        self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of a batch x [B, ...]."""
        for name in self.order:
            x = self.get_submodule(name)(x)
        return x
