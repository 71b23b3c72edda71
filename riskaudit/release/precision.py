"""Models in double precision that stay there: what they convert to single precision on the way isn't converted.

Attention and normalizations of many models compute a softmax or a mean square in float32 whatever their weights are in,
which keeps training in half precision accurate. In an audit in float64 it does the opposite: it rounds in the middle
of a function whose second derivatives are taken. Conversions to half precision are a model's own business, and stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.release.interception import Interception


class DoublePrecisionKept(Interception):
    """Within this context no function makes a float32 tensor of a float64 one."""

    @override
    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        given = args[0] if args else kwargs.get("input")
        if isinstance(given, Tensor) and given.dtype == torch.float64:
            if function is Tensor.float:
                return given
            args = tuple(_kept(value) for value in args)
            kwargs = {name: _kept(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)


def _kept(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
