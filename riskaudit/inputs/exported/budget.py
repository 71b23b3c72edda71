"""What an exported program would cost, found out on shapes alone before it runs on values."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Far above what networks need: a 3D U-Net of 128^3 voxels takes 10 GB and 10^12 multiplications.
MAX_TENSOR_BYTES = 4 * 2**30
MAX_TOTAL_BYTES = 256 * 2**30
MAX_WORK = 10**15


class BudgetError(ValueError):
    """A program wants larger tensors or more arithmetic than any network that can be audited."""


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2 * MAX_TENSOR_BYTES


class Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all results and the arithmetic of the kernels under it, and stops at the limits.

    A tensor may have at most `MAX_TENSOR_BYTES` and half of the machine's memory, all together `MAX_TOTAL_BYTES`;
    `MAX_WORK` bounds operations of products, convolutions and pools.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = min(MAX_TENSOR_BYTES, _memory() // 2)
        self.num_bytes = 0
        self.work = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one kernel on shapes and count it."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                size = leaf.numel() * leaf.element_size()
                self.num_bytes += size
                if size > self.largest or self.num_bytes > MAX_TOTAL_BYTES:
                    raise BudgetError(f"it wants a tensor of {size} bytes, {self.num_bytes} in all")
        self.work += _work(func, args, kwargs or {}, result)
        if self.work > MAX_WORK:
            raise BudgetError(f"it wants {self.work:.1e} operations, at most {MAX_WORK:.0e} are allowed")
        return result


def _work(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    packet = getattr(func, "overloadpacket", None)
    formula: Callable[..., int] | None = flop_registry.get(packet)
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=result))
    if "pool" in str(packet) and len(args) > 1 and isinstance(args[1], list | tuple):
        outputs = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return math.prod(map(int, args[1])) * max(outputs, default=0)
    return 0


@contextmanager
def on_shapes_alone() -> Iterator[Budget]:
    """Under it operators on ``meta`` tensors are counted, apart from any derivative, batching or recording around."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch._C._DisableFuncTorch())
        stack.enter_context(torch._C.DisableTorchFunction())
        stack.enter_context(_disable_current_modes())
        yield stack.enter_context(Budget())


def shape_of(value: Any) -> Any:
    """A tensor without values of the same shape, strides and type; a function of what may be a wrapped tensor."""
    if not isinstance(value, Tensor):
        return value
    return value.shape, value.stride(), value.dtype


def without_values(described: Any) -> Any:
    """The ``meta`` tensor that `shape_of` describes."""
    if not isinstance(described, tuple):
        return described
    shape, strides, dtype = described
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
