"""Defences that change the model: ``model_defense`` puts one into a model that was trained without.

``precode[:DRAW[-LAST][:WEIGHT]]``: a variational bottleneck of 256 before the last linear layer
(`architectures.precode`), y = O(D(b)), whose divergence is added to the loss with that weight. Its parameters are
drawn, not trained, as they are where a client switches the defence on. Of a model that has such a bottleneck already
only the draw of its noise and the divergence's weight are chosen. With LAST an audit looks at all draws from DRAW to
LAST.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from riskaudit.copying import copy_model
from riskaudit.errors import SettingsError
from riskaudit.inputs.architectures.precode import DIVERGENCE_WEIGHT, VariationalBottleneck, gaussian_draws
from riskaudit.inputs.checkpoints import Checkpoint

PRECODE = "precode"
MODEL_DEFENSES = {
    f"{PRECODE}[:DRAW[-LAST][:WEIGHT]]": "a variational bottleneck before the last layer (PRECODE), its noise by "
    "number, or by the first and last of several, and the weight of its divergence in the loss (default "
    f"{DIVERGENCE_WEIGHT:g})"
}
SIZE = 256
# An audit takes as many times as long as it looks at draws.
MOST_DRAWS = 64
_TEXT = re.compile(rf"{PRECODE}(?::([0-9]{{1,9}})(?:-([0-9]{{1,9}}))?(?::(.+))?)?")


@dataclass(frozen=True)
class Bottleneck:
    """How a model's bottleneck is set.

    Attributes:
        draw: number of the draw of its noise.
        weight: of its divergence in the loss.
        others: further draws that an audit looks at.
    """

    draw: int = 0
    weight: float = DIVERGENCE_WEIGHT
    others: tuple[int, ...] = ()


def parse_model_defense(text: str) -> Bottleneck:
    """What a text says of the bottleneck.

    Raises:
        SettingsError: another text.
    """
    found = _TEXT.fullmatch(text)
    draw, last, weight = (None, None, None) if found is None else found.groups()
    first, end = int(draw or 0), int(last or draw or 0)
    with suppress(ValueError):
        size = float(weight or DIVERGENCE_WEIGHT)
        if found is not None and 0 <= end - first < MOST_DRAWS and 0 <= size < math.inf:
            return Bottleneck(first, size, tuple(range(first + 1, end + 1)))
    raise SettingsError(
        f"expected `model_defense` to be {PRECODE} or {PRECODE}:DRAW with a whole number, {PRECODE}:FIRST-LAST with up "
        f"to {MOST_DRAWS} of them, or {PRECODE}:DRAW:WEIGHT with the weight of the divergence, found {text!r}"
    )


def with_model_defense(checkpoint: Checkpoint, text: str | None) -> Checkpoint:
    """A checkpoint whose model has a defence; itself without one.

    Args:
        checkpoint: stays as it is.
        text: as ``model_defense`` takes it.

    Raises:
        SettingsError: a text that can't be read, or a model without a linear layer.
    """
    if text is None:
        return checkpoint
    chosen, model = parse_model_defense(text), copy_model(checkpoint.model)
    draws = gaussian_draws(model)
    if draws:
        for layer in draws:
            layer.redraw(chosen.draw, chosen.others)
            layer.weight = chosen.weight
        return replace(checkpoint, model=model)
    note = f"the weights of the variational bottleneck that `model_defense={text}` puts in are drawn, not trained"
    return replace(checkpoint, model=_with_bottleneck(model, chosen).eval(), notes=(*checkpoint.notes, note))


def _with_bottleneck(model: nn.Module, chosen: Bottleneck) -> nn.Module:
    layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise SettingsError(
            f"expected a model with a linear layer for `model_defense={PRECODE}`, found none; leave it out"
        )
    path, last = layers[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bottleneck = VariationalBottleneck(last.in_features, SIZE, chosen.weight)
        decoder = nn.Linear(SIZE, last.in_features)
    parts = OrderedDict(bottleneck=bottleneck.to(last.weight), decoder=decoder.to(last.weight), output=last)
    # In the weights' own precision.
    bottleneck.draws.redraw(chosen.draw, chosen.others)
    parent, _, name = path.rpartition(".")
    if not path:
        return nn.Sequential(parts)
    setattr(model.get_submodule(parent), name, nn.Sequential(parts))
    return model
