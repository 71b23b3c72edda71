"""An exported graph as a module: each node is one call of an allowed operator with checked arguments.

Runs under torch.func (grad, jvp, vmap) and in any floating dtype, has real parameters under their
original names, and executes nothing but operators of `operators.ALLOWED` and bounded arithmetic on
sizes. What it would cost is found out on shapes alone first. Shape and dtype assertions that torch.export recorded
are left out: they would forbid a float64 audit of a program that was exported in float32.

What a program would cost is found out on shapes alone before it runs on values.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from riskaudit.errors import CheckpointError
from riskaudit.inputs.exported.archive import ExportedArchive
from riskaudit.inputs.exported.steps import DEVICE, DTYPE, EXPORT_ADVICE, ValueName, read_argument, read_steps
from riskaudit.inputs.text import clean

# Far above what networks need: a 3D U-Net of 128^3 voxels takes 10 GB and 10^12 multiplications.
MAX_TENSOR_BYTES = 4 * 2**30
MAX_TOTAL_BYTES = 256 * 2**30
MAX_WORK = 10**15
# How many shapes of inputs are remembered as checked.
_MAX_SHAPES = 256


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


class ExportedModel(nn.Module):
    """The program of a `ExportedArchive`; x [B, *S] to the program's first output.

    Raises:
        CheckpointError: more than one input, state that the program changes, an operator outside aten, or
            an argument of a kind that can't be read.
    """

    def __init__(self, archive: ExportedArchive) -> None:
        super().__init__()
        graph, signature = archive.program["graph_module"]["graph"], archive.program["graph_module"]["signature"]
        self._places: list[tuple[str, tuple[str, ...]]] = []
        self._constants: dict[str, Any] = {}
        inputs = [self._bind(spec, archive) for spec in signature["input_specs"]]
        names = [name for name in inputs if name is not None]
        if len(names) != 1:
            raise CheckpointError(
                f"the exported program takes {len(names)} inputs, expected one tensor; {EXPORT_ADVICE}"
            )
        self.input_name = names[0]
        outputs = signature["output_specs"]
        if any("user_output" not in spec for spec in outputs):
            raise CheckpointError(f"the exported program changes its own state, expected eval mode; {EXPORT_ADVICE}")
        if len(outputs) != 1:
            raise CheckpointError(
                f"the exported program returns {len(outputs)} values, expected one tensor; export a module that "
                "returns only the one that the loss takes"
            )
        self._output = read_argument(outputs[0]["user_output"]["arg"])
        sizes = graph["tensor_values"][self.input_name]["sizes"]
        # An int where the program fixes the size, None where it is symbolic.
        self.input_sizes = tuple(size.get("as_int") for size in sizes)
        self.output_width = _last_size(graph, self._output)
        given = [*self._constants, *(name for name, _ in self._places)]
        self._steps = read_steps(graph["nodes"], given, self._output)
        self._checked: set[tuple[Any, ...]] = set()

    def _bind(self, spec: Mapping[str, Any], archive: ExportedArchive) -> str | None:
        """Register what one graph input stands for; the name of the user's input, else None."""
        if "user_input" in spec:
            return str(spec["user_input"]["arg"]["as_tensor"]["name"])
        if "parameter" in spec:
            entry = spec["parameter"]
            weight = _loaded(archive.weights, entry["parameter_name"])
            self._register(entry["arg"]["name"], entry["parameter_name"], weight, parameter=True)
        elif "buffer" in spec:
            entry = spec["buffer"]
            source = archive.weights if entry["buffer_name"] in archive.weights else archive.constants
            buffer = _loaded(source, entry["buffer_name"])
            self._register(entry["arg"]["name"], entry["buffer_name"], buffer, parameter=False)
        elif "tensor_constant" in spec:
            entry = spec["tensor_constant"]
            name = entry["tensor_constant_name"]
            self._register(entry["arg"]["name"], name, _loaded(archive.constants, name), parameter=False)
        elif "constant_input" in spec:
            entry = spec["constant_input"]
            value = next(iter(entry["value"].values()))
            if value is not None and not isinstance(value, int | float | str):
                raise CheckpointError("the exported program takes a constant of an unknown kind, expected a number")
            self._constants[str(entry["name"])] = value
        else:
            raise CheckpointError(f"the exported program takes {clean(next(iter(spec)), 30)}, expected one tensor")
        return None

    def _register(self, graph_name: str, name: str, value: Tensor, *, parameter: bool) -> None:
        owner: nn.Module = self
        *folders, last = ("program." + name).split(".")
        for folder in folders:
            if folder not in owner._modules:
                owner.add_module(folder, nn.Module())
            owner = owner.get_submodule(folder)
        if parameter and value.is_floating_point():
            owner.register_parameter(last, nn.Parameter(value.clone()))
        else:
            owner.register_buffer(last, value.clone())
        self._places.append((graph_name, (*folders, last)))

    def forward(self, x: Tensor) -> Tensor:
        """The program's output for a batch x [B, *S].

        Raises:
            CheckpointError: an argument or an index out of bounds, sizes or types that don't fit, or too large a cost.
        """
        values: dict[str, Any] = dict(self._constants)
        values[self.input_name] = x
        for graph_name, path in self._places:
            values[graph_name] = reduce(getattr, path, self)
        # Class numbers and tokens have no precision of their own: that of the weights counts then.
        tensors = [x, *(value for value in values.values() if isinstance(value, Tensor))]
        dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype())
        values[DEVICE.name], values[DTYPE.name] = x.device, dtype
        key = (tuple(x.shape), x.dtype, values[DTYPE.name])
        if key not in self._checked:
            self._check_on_shapes(values)
            if len(self._checked) >= _MAX_SHAPES:
                self._checked.clear()
            self._checked.add(key)
        try:
            return self._run(values)
        except IndexError as cause:
            raise CheckpointError(f"the exported program reads beyond a tensor ({clean(cause, 100)})") from cause
        except (RuntimeError, ValueError, TypeError) as cause:
            if any(map(is_functorch_wrapped_tensor, (value for value in values.values() if isinstance(value, Tensor)))):
                # What a transform can't do, its caller may do without it.
                raise
            raise CheckpointError(
                f"the exported program can't run on these inputs ({clean(cause, 120)}); {EXPORT_ADVICE}"
            ) from cause

    def _run(self, values: dict[str, Any]) -> Tensor:
        for step in self._steps:
            result = step.operation.call({name: _filled(value, values) for name, value in step.arguments.items()})
            _store(step.outputs, result, values)
            for name in step.overwritten:
                values[name] = result
        output = _filled(self._output, values)
        if not isinstance(output, Tensor):
            raise CheckpointError(f"the exported program returns no tensor; {EXPORT_ADVICE}")
        return output

    def _check_on_shapes(self, values: Mapping[str, Any]) -> None:
        shapes = {name: shape_of(value) for name, value in values.items()}
        with on_shapes_alone():
            described = {name: without_values(value) for name, value in shapes.items()}
            described[DEVICE.name] = torch.device("meta")
            try:
                self._run(described)
            except CheckpointError:
                raise
            except Exception as cause:
                # Kernels raise errors of many classes; each means that the program can't run on this shape.
                raise CheckpointError(
                    f"the exported program can't run on inputs of shape {list(values[self.input_name].shape)} "
                    f"({clean(cause, 120)}); {EXPORT_ADVICE}"
                ) from cause


def _loaded(source: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in source:
        raise CheckpointError(f"the exported program lacks its weight {clean(name, 60)}; save it again")
    return source[name]


def _last_size(graph: Mapping[str, Any], output: Any) -> int | None:
    sizes = graph["tensor_values"][output.name]["sizes"] if isinstance(output, ValueName) else []
    return int(sizes[-1]["as_int"]) if sizes and "as_int" in sizes[-1] else None


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, ValueName):
        return values[value.name]
    return [_filled(item, values) for item in value] if isinstance(value, list) else value


def _store(outputs: Any, result: Any, values: dict[str, Any]) -> None:
    if isinstance(outputs, list):
        single = len(outputs) == 1 and not (isinstance(result, tuple) and len(result) == 1)
        for name, item in zip(outputs, [result] if single else result, strict=False):
            _store(name, item, values)
    elif outputs is not None:
        values[outputs] = result
