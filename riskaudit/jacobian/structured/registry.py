"""The functions of torch that may be given a trainable parameter, and the layer that stands for each.

A layer has the signature of its function with the recorder in front; it returns the output and records how the
parameters were used (`Recorder.record_call`, `Recorder.record_view`). It is registered beside its contraction, in a
file of `layers`; the package imports every file there.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

# A function of torch, or what stands for it.
Function: TypeAlias = Callable[..., Any]
AnyFunction = TypeVar("AnyFunction", bound=Function)


class UnsupportedLayer(Exception):  # noqa: N818 - it says what was found, and is an answer as often as an error
    """A use of a parameter that has no contraction; ``parameter`` is its name, None where there is none."""

    def __init__(self, what: str, parameter: str | None = None) -> None:
        super().__init__(what)
        self.what, self.parameter = what, parameter


LAYERS: dict[Function, Function] = {}
# Functions of torch that are made of others, in a form that lets the recorder see these.
COMPOSITES: dict[Function, Function] = {}

# Functions without parameters, in a form whose second derivatives cost less.
SMOOTH: dict[Function, Function] = {}

# Layers that depend on the batch even where no parameter is given to them.
BATCH_LAYERS: dict[Function, Function] = {}


def register(*functions: Function) -> Callable[[AnyFunction], AnyFunction]:
    """Decorator: the layer stands for these functions of torch.

    Raises:
        ValueError: one of them is registered already.
    """

    def add(layer: AnyFunction) -> AnyFunction:
        for function in functions:
            if function in LAYERS or function in COMPOSITES:
                raise ValueError(f"{function} is registered twice")
            LAYERS[function] = layer
        return layer

    return add


def register_batch_layer(*functions: Function) -> Callable[[AnyFunction], AnyFunction]:
    """Decorator: what stands for these functions of torch where they are given no parameter."""

    def add(layer: AnyFunction) -> AnyFunction:
        BATCH_LAYERS.update(dict.fromkeys(functions, layer))
        return layer

    return add


def register_smooth(*functions: Function) -> Callable[[AnyFunction], AnyFunction]:
    """Decorator: what stands for these functions of torch where no tensor that they are given has a source.

    It has the signature of the function, without a recorder.
    """

    def add(smooth: AnyFunction) -> AnyFunction:
        SMOOTH.update(dict.fromkeys(functions, smooth))
        return smooth

    return add


def register_composite(function: Function) -> None:
    """Let the recorder see the functions that a composite function of torch calls, instead of the function itself.

    Raises:
        ValueError: it is registered already.
    """
    if function in LAYERS or function in COMPOSITES:
        raise ValueError(f"{function} is registered twice")
    assert isinstance(function, types.FunctionType)
    # torch's own functions hand themselves over whole wherever this test says that a mode is active.
    scope = {**function.__globals__, "has_torch_function": lambda *_: False}
    body = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    COMPOSITES[function] = body
