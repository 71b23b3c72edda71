"""``lenet``: the network of the gradient-inversion papers.

Three or four 5x5 convolutions of 12 channels, padding 2, strides 2-2-1 or 2-2-1-1, sigmoid after each, one linear
layer. Three is the network of Zhu et al., "Deep Leakage from Gradients", NeurIPS 2019, as its code and that of
Zhao et al., "iDLG", 2020, have it; four that of Zhang et al., "Inversion Influence Function", NeurIPS 2023, with
17038 parameters at 1 x 28 x 28 and 10 classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from riskaudit.inputs.architectures.registry import Guess, MismatchError, Shapes, register, shape_at

WIDTH = 12
STRIDES = (2, 2, 1, 1)


def _infer(shapes: Shapes) -> Guess:
    _, channels, _, _ = shape_at(shapes, "body.0.weight", 4)
    classes, features = shape_at(shapes, "fc.0.weight", 2)
    if features % WIDTH:
        raise MismatchError(f"fc.0.weight takes {features} features, expected a multiple of {WIDTH}")
    # Heights 4q - 3 to 4q all give q rows of features, so the weights don't determine the input size.
    convolutions = len(STRIDES) if "body.6.weight" in shapes else len(STRIDES) - 1
    arguments = {"channels": channels, "features": features, "classes": classes, "convolutions": convolutions}
    strides = ", ".join(str(stride) for stride in STRIDES[:convolutions])
    assumed = f"sigmoid activations, strides {strides}"
    return Guess(arguments, num_classes=classes, input_channels=channels, assumed=assumed)


@register("lenet", description="3 or 4 convolutions 5x5 of 12 channels, sigmoid, 1 linear (DLG, I2F)", infer=_infer)
class LeNet(nn.Module):
    """x [B, C, H, W] to logits [B, classes]; ``features`` are 12 ceil(H/4) ceil(W/4)."""

    def __init__(
        self, channels: int = 1, features: int = 588, classes: int = 10, convolutions: int = len(STRIDES)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for position, stride in enumerate(STRIDES[:convolutions]):
            inputs = channels if position == 0 else WIDTH
            layers += [nn.Conv2d(inputs, WIDTH, kernel_size=5, padding=2, stride=stride), nn.Sigmoid()]
        self.body = nn.Sequential(*layers)
        self.fc = nn.Sequential(nn.Linear(features, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of a batch x [B, ...]."""
        logits: Tensor = self.fc(self.body(x).flatten(1))
        return logits
