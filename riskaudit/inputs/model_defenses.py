"""Defences that change the model: ``model_defense`` puts one into a model that was trained without.

``precode[:DRAW]``: a variational bottleneck of 256 before the last linear layer (`architectures.precode`), y = O(D(b)).
Its weights are drawn, not trained, as they are where a client switches the defence on. Of a model that has such a
bottleneck already only the draw of its noise is chosen.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import torch
from torch import nn

from riskaudit.copying import copy_model
from riskaudit.errors import SettingsError
from riskaudit.inputs.architectures.precode import VariationalBottleneck
from riskaudit.inputs.checkpoints import Checkpoint

PRECODE = "precode"
MODEL_DEFENSES = {f"{PRECODE}[:DRAW]": "a variational bottleneck before the last layer, its noise by number (PRECODE)"}
SIZE = 256


def parse_model_defense(text: str) -> int:
    """The number of the draw.

    Raises:
        SettingsError: another text.
    """
    name, _, draw = text.partition(":")
    number = draw if ":" in text else "0"
    if name != PRECODE or not number.isdecimal() or len(number) > 9:
        raise SettingsError(
            f"expected `model_defense` to be {PRECODE} or {PRECODE}:DRAW with a whole number, found {text!r}"
        )
    return int(number)


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
    draw, model = parse_model_defense(text), copy_model(checkpoint.model)
    bottlenecks = [layer for layer in model.modules() if isinstance(layer, VariationalBottleneck)]
    if bottlenecks:
        for layer in bottlenecks:
            layer.redraw(draw)
        return replace(checkpoint, model=model)
    note = f"the weights of the variational bottleneck that `model_defense={text}` puts in are drawn, not trained"
    return replace(checkpoint, model=_with_bottleneck(model, draw).eval(), notes=(*checkpoint.notes, note))


def _with_bottleneck(model: nn.Module, draw: int) -> nn.Module:
    layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise SettingsError(
            f"expected a model with a linear layer for `model_defense={PRECODE}`, found none; leave it out"
        )
    path, last = layers[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bottleneck, decoder = VariationalBottleneck(last.in_features, SIZE, draw), nn.Linear(SIZE, last.in_features)
    parts = OrderedDict(bottleneck=bottleneck.to(last.weight), decoder=decoder.to(last.weight), output=last)
    parent, _, name = path.rpartition(".")
    if not path:
        return nn.Sequential(parts)
    setattr(model.get_submodule(parent), name, nn.Sequential(parts))
    return model
