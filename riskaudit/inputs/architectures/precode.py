"""``precode``: an MLP with a variational bottleneck before its last layers (PRECODE).

    z = E(x),  b = mu(z) + exp(log var(z) / 2) eps,  y = O(D(b)),  eps ~ N(0, I)

Scheliga, Maeder and Seeland, WACV 2022; sizes as Balunovic et al., ICLR 2022, ran it on CIFAR-10: 3072-500x5-256, a
bottleneck of 256, 256-500-10, and 0.003 times the divergence KL(N(mu, diag(var)) || N(0, I)) of every sample added to
the loss, whose gradient leaves with the rest. In training eps is drawn in every pass. An audited release has to be a
function of its inputs, so that in eval mode eps is one draw by number, the same for all samples: whatever is computed
is conditional on it. Layers before the bottleneck leak in closed form for any draw (Balunovic et al., section 5).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from riskaudit.inputs.architectures.registry import Guess, MismatchError, Shapes, register, shape_at

DIVERGENCE_WEIGHT = 0.003
_LAYER = re.compile(r"encoder\.(\d{1,4})\.weight")


class GaussianDraw(nn.Module):
    """mu and log var, each [B, size], to a draw of N(mu, diag(var)), [B, size].

    Args:
        size: of the draw.
        weight: of the divergence in the loss of training.
        draw: number of the draw of eps that eval mode takes.
    """

    noise: Tensor

    def __init__(self, size: int, weight: float = DIVERGENCE_WEIGHT, draw: int = 0) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("noise", torch.zeros(size), persistent=False)
        self.redraw(draw)

    def redraw(self, draw: int, others: tuple[int, ...] = ()) -> None:
        """Take another draw of eps in eval mode; an audit looks at ``others`` as well."""
        self.draw, self.others = draw, others
        # Not torch's generators: models are also built on devices that hold no numbers.
        self.noise = torch.from_numpy(np.random.default_rng(draw).standard_normal(len(self.noise))).to(self.noise)

    def forward(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """The draw b."""
        noise = torch.randn_like(mean) if self.training else self.noise
        drawn: Tensor = mean + (log_variance / 2).exp() * noise
        return drawn

    def added_loss(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """What the loss of every sample has in addition, [B]: weight KL(N(mu, diag(var)) || N(0, I))."""
        divergence: Tensor = (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2
        return self.weight * divergence


class VariationalBottleneck(nn.Module):
    """z [B, features] to a draw of N(mu(z), diag(var(z))), [B, size].

    Args:
        features: of z.
        size: of the bottleneck.
        weight: of the divergence in the loss of training.
        draw: number of the draw of eps that eval mode takes.
    """

    def __init__(self, features: int, size: int = 256, weight: float = DIVERGENCE_WEIGHT, draw: int = 0) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Linear(features, size), nn.Linear(features, size)
        self.draws = GaussianDraw(size, weight, draw)

    def forward(self, z: Tensor) -> Tensor:
        """The draw b of z."""
        drawn: Tensor = self.draws(self.mean(z), self.log_variance(z))
        return drawn


def gaussian_draws(model: nn.Module) -> list[GaussianDraw]:
    """The layers of a model that draw, in their order."""
    return [layer for layer in model.modules() if isinstance(layer, GaussianDraw)]


def bottleneck_draw(model: nn.Module) -> int | None:
    """Number of the draw that a model's bottleneck takes; None without one."""
    return next((layer.draw for layer in gaussian_draws(model)), None)


def num_bottleneck_draws(model: nn.Module) -> int:
    """How many draws an audit of a model looks at; 0 without a bottleneck."""
    return next((1 + len(layer.others) for layer in gaussian_draws(model)), 0)


def _infer(shapes: Shapes) -> Guess:
    numbers = sorted(int(match[1]) for name in shapes if (match := _LAYER.fullmatch(name)))
    if not numbers or numbers != list(range(0, 2 * len(numbers), 2)):
        raise MismatchError("no encoder.0, encoder.2, ... before a bottleneck", near=False)
    sizes = [shape_at(shapes, f"encoder.{number}.weight", 2) for number in numbers]
    if any(before[0] != after[1] for before, after in itertools.pairwise(sizes)):
        raise MismatchError("layers of the encoder that don't follow each other")
    size, _ = shape_at(shapes, "bottleneck.mean.weight", 2)
    hidden, _ = shape_at(shapes, "decoder.weight", 2)
    classes, _ = shape_at(shapes, "head.weight", 2)
    widths = (sizes[0][1], *(outputs for outputs, _ in sizes))
    return Guess(
        {"widths": widths, "size": size, "hidden": hidden, "classes": classes},
        num_classes=classes,
        input_shape=(widths[0],),
        assumed="ReLU after every layer of the encoder and the decoder",
    )


@register("precode", description="an MLP with a variational bottleneck before its last layers (PRECODE)", infer=_infer)
class Precode(nn.Module):
    """x [B, *S] to logits [B, classes].

    Args:
        widths: of the input and the encoder's layers.
        size: of the bottleneck.
        hidden: width of the decoder.
        classes: outputs.
    """

    def __init__(
        self,
        widths: Sequence[int] = (3072, 500, 500, 500, 500, 500, 256),
        size: int = 256,
        hidden: int = 500,
        classes: int = 10,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.bottleneck = VariationalBottleneck(widths[-1], size)
        self.decoder = nn.Linear(size, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        logits: Tensor = self.head(torch.relu(self.decoder(self.bottleneck(self.encoder(x.flatten(1))))))
        return logits
