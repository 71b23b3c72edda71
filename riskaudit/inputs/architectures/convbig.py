"""``convbig``: the larger convolutional network of the Bayes paper.

Balunovic et al., "Bayesian Framework for Gradient Leakage", ICLR 2022, there taken from DiffAI (Mirman
et al., ICML 2018).
"""

from __future__ import annotations

from torch import Tensor, nn

from riskaudit.inputs.architectures.registry import Guess, MismatchError, Shapes, register, shape_at

HIDDEN = 512
LAST_CHANNELS = 64
ASSUMED = "ReLU, strides 1, 2, 1, 2, padding 1"


def _infer(shapes: Shapes) -> Guess:
    _, channels, _, _ = shape_at(shapes, "features.0.weight", 4)
    _, features = shape_at(shapes, "classifier.0.weight", 2)
    classes, _ = shape_at(shapes, "classifier.4.weight", 2)
    if features % LAST_CHANNELS:
        raise MismatchError(f"classifier.0.weight takes {features} features, expected a multiple of {LAST_CHANNELS}")
    # Two convolutions of stride 2 halve and round down: heights 4q to 4q + 3 give the same features.
    arguments = {"channels": channels, "features": features, "classes": classes}
    return Guess(arguments, num_classes=classes, input_channels=channels, assumed=ASSUMED)


@register("convbig", description="4 convolutions of 32 to 64 channels, ReLU, 3 linear layers (DiffAI)", infer=_infer)
class ConvBig(nn.Module):
    """x [B, C, H, W] to logits [B, classes]; ``features`` are 64 floor(H/4) floor(W/4)."""

    def __init__(self, channels: int = 3, features: int = 4096, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, kernel_size=3, stride=1, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, LAST_CHANNELS, kernel_size=3, stride=1, padding=1),
            nn.ReLU(),
            nn.Conv2d(LAST_CHANNELS, LAST_CHANNELS, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of a batch x [B, ...]."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
