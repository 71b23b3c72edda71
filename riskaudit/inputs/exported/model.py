"""An exported graph as a module: each node is one call of an allowed operator with checked arguments.

Runs under torch.func (grad, jvp, vmap) and in any floating dtype, has real parameters under their
original names, and executes nothing but operators of `exported_operators.ALLOWED` and bounded arithmetic on
sizes. What it would cost is found out on shapes alone first. Shape and dtype assertions that torch.export recorded
are left out: they would forbid a float64 audit of a program that was exported in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from riskaudit.errors import CheckpointError
from riskaudit.inputs.exported.archive import ExportedArchive
from riskaudit.inputs.exported.budget import on_shapes_alone, shape_of, without_values
from riskaudit.inputs.exported.steps import DEVICE, DTYPE, EXPORT_ADVICE, ValueName, read_argument, read_steps
from riskaudit.inputs.text import clean

# How many shapes of inputs are remembered as checked.
_MAX_SHAPES = 256


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
