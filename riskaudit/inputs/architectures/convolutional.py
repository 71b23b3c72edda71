"""``lenet``: the network of the gradient-inversion papers.

Three or four 5x5 convolutions of 12 channels, padding 2, strides 2-2-1 or 2-2-1-1, sigmoid after each, one linear
layer. Three is the network of Zhu et al., "Deep Leakage from Gradients", NeurIPS 2019, as its code and that of
Zhao et al., "iDLG", 2020, have it; four that of Zhang et al., "Inversion Influence Function", NeurIPS 2023, with
17038 parameters at 1 x 28 x 28 and 10 classes.

``convbig``: the network on which the Bayes paper (Balunovic et al., "Bayesian Framework for Gradient Leakage", ICLR
2022, Table 3) attacks Soteria: two convolutions, and three linear layers that hold nearly all of its 12,384,018
parameters at 3 x 32 x 32. Not DiffAI's network of that name (Mirman et al., ICML 2018).

``cnn``: the smaller network of that paper's Table 2, as its code has it.

``convnet``: the 8-layer network with batch norm that gradient-inversion papers attack (Geiping et al., "Inverting
Gradients", NeurIPS 2020; also in Balunovic et al., ICLR 2022). Layer names follow the former's published weights.
"""

from __future__ import annotations

from torch import Tensor, nn

from riskaudit.inputs.architectures.registry import Guess, Shapes, convolutional_guess, register, shape_at

# Channels of the two convolutions of ``convbig`` and ``cnn``.
FIRST_CHANNELS, LAST_CHANNELS = 32, 64
ASSUMED = "ReLU, stride 1, padding 1, average pooling by 2 after each convolution"


def _two_convolutions(channels: int, second: int) -> nn.Sequential:
    """Convolutions 3x3 and ``second`` x ``second`` with ReLU, padding 1, and average pooling by 2."""
    return nn.Sequential(
        nn.Conv2d(channels, FIRST_CHANNELS, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(FIRST_CHANNELS, LAST_CHANNELS, kernel_size=second, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
    )


def _infer_convbig(shapes: Shapes) -> Guess:
    names = ("features.0.weight", "classifier.0.weight")
    hidden, second = (shape_at(shapes, f"classifier.{number}.weight", 2)[0] for number in (0, 2))
    return convolutional_guess(
        shapes, *names, LAST_CHANNELS, ASSUMED, "classifier.4.weight", hidden=hidden, second=second
    )


@register(
    "convbig",
    description="convolutions 3x3 and 1x1, ReLU, average pooling, linear layers of 2000, 1000 (Bayes paper, Soteria)",
    infer=_infer_convbig,
)
class ConvBig(nn.Module):
    """x [B, C, H, W] to logits [B, classes]; ``features`` are 64 floor(floor(H/2)/2 + 1) floor(floor(W/2)/2 + 1)."""

    def __init__(
        self, channels: int = 3, features: int = 5184, classes: int = 10, hidden: int = 2000, second: int = 1000
    ) -> None:
        super().__init__()
        # The padding of a 1x1 convolution adds a border of its biases, as published.
        self.features = _two_convolutions(channels, second=1)
        self.classifier = nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, second), nn.ReLU(), nn.Linear(second, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of a batch x [B, ...]."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _infer_cnn(shapes: Shapes) -> Guess:
    names = ("features.0.weight", "classifier.0.weight")
    hidden, _ = shape_at(shapes, "classifier.0.weight", 2)
    return convolutional_guess(shapes, *names, LAST_CHANNELS, ASSUMED, "classifier.2.weight", hidden=hidden)


@register(
    "cnn",
    description="2 convolutions 3x3 of 32 and 64 channels, ReLU, average pooling, linear layer of 100 (Bayes paper)",
    infer=_infer_cnn,
)
class CNN(nn.Module):
    """x [B, C, H, W] to logits [B, classes]; ``features`` are 64 floor(H/4) floor(W/4)."""

    def __init__(self, channels: int = 1, features: int = 3136, classes: int = 10, hidden: int = 100) -> None:
        super().__init__()
        self.features = _two_convolutions(channels, second=3)
        self.classifier = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of a batch x [B, ...]."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


# Multiples of the width after each convolution; max-pooling by 3 follows the convolutions named.
WIDTHS = (1, 2, 2, 4, 4, 4, 4, 4)
POOL_AFTER = (5, 7)


def _infer_convnet(shapes: Shapes) -> Guess:
    width = shape_at(shapes, "conv0.weight", 4)[0]
    assumed = "ReLU, stride 1, max-pooling by 3 after the sixth and the eighth convolution"
    return convolutional_guess(shapes, "conv0.weight", "linear.weight", 4 * width, assumed, width=width)


@register(
    "convnet", description="8 convolutions 3x3 with batch norm, ReLU, 2 max-pools, 1 linear layer", infer=_infer_convnet
)
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


WIDTH = 12
STRIDES = (2, 2, 1, 1)


def _infer_lenet(shapes: Shapes) -> Guess:
    convolutions = len(STRIDES) if "body.6.weight" in shapes else len(STRIDES) - 1
    assumed = f"sigmoid activations, strides {', '.join(map(str, STRIDES[:convolutions]))}"
    return convolutional_guess(shapes, "body.0.weight", "fc.0.weight", WIDTH, assumed, convolutions=convolutions)


@register(
    "lenet", description="3 or 4 convolutions 5x5 of 12 channels, sigmoid, 1 linear (DLG, I2F)", infer=_infer_lenet
)
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
