"""An exported graph as a module: each node is one call of a plain aten operator.

Runs under torch.func (grad, jvp, vmap) and in any floating dtype, has real parameters under their
original names, and executes nothing but aten operators and integer arithmetic on sizes. Shape and
dtype assertions that torch.export recorded are left out: they would forbid a float64 audit of a
program that was exported in float32.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from riskaudit.errors import CheckpointError
from riskaudit.inputs.exported_archive import SCALAR_TYPES, ExportedArchive
from riskaudit.inputs.text import clean

EXPORT_ADVICE = (
    "export it with torch.export.export(model.eval(), (x[:1],)), or with a dynamic batch dimension, "
    "and torch.export.save"
)

_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in (
            "add",
            "sub",
            "mul",
            "floordiv",
            "mod",
            "neg",
            "truediv",
            "eq",
            "ne",
            "lt",
            "le",
            "gt",
            "ge",
            "pos",
        )
    },
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
    "torch.sym_int": int,
    "torch.sym_float": float,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
}
# Operators whose names begin with an underscore are internal and check their arguments less; these are needed.
_INTERNAL_OPERATORS = {
    "_softmax",
    "_log_softmax",
    "_to_copy",
    "_unsafe_view",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_convolution",
    "_safe_softmax",
}
_SKIPPED = {
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}
# Operators that touch files, storage, or memory that they haven't checked.
_FORBIDDEN = {"from_file", "set_", "set", "resize_", "resize", "resize_as_", "data", "record_stream", "empty_strided"}
_RANDOM = {"bernoulli", "bernoulli_", "rand", "randn", "rand_like", "randn_like", "randint", "normal", "multinomial"}
_DROPOUTS = {"dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
# In-place forms whose result differs from the plain form only in where it is written.
_IN_PLACE = {
    "relu_", "relu6_", "silu_", "hardtanh_", "leaky_relu_", "elu_", "celu_", "selu_", "sigmoid_", "tanh_",
    "hardswish_", "hardsigmoid_", "gelu_", "mish_", "add_", "sub_", "mul_", "div_", "clamp_", "clamp_min_", "dropout_",
}  # fmt: skip
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
# Without a type: its methods are untyped in torch.
_OPERATOR_TYPE: Any = torch._ops.OpOverloadPacket
_LITERALS = (
    "as_int",
    "as_ints",
    "as_float",
    "as_floats",
    "as_bool",
    "as_bools",
    "as_string",
    "as_strings",
    "as_int_lists",
)


@dataclass(frozen=True)
class _Name:
    """Refers to an earlier value of the graph."""

    name: str


# The program runs where and in what precision its input is, not where it was exported. No graph has these names.
_DEVICE = _Name("device of x")
_DTYPE = _Name("dtype of x")


@dataclass(frozen=True)
class _Step:
    function: Callable[..., Any]
    positional: tuple[Any, ...]
    keyword: tuple[tuple[str, Any], ...]
    outputs: Any
    # For a replaced in-place operator: the value that it would have overwritten.
    overwritten: str | None = None


class ExportedModel(nn.Module):
    """The program of a `ExportedArchive`; x [B, *S] to the program's first output.

    Args:
        archive: graph, weights and constants.

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
        if any("user_output" not in spec for spec in outputs) or len(outputs) != 1:
            raise CheckpointError(
                "the exported program changes its own state or has several outputs, expected eval mode and one output; "
                + EXPORT_ADVICE
            )
        self._output = _argument(outputs[0]["user_output"]["arg"])
        sizes = graph["tensor_values"][self.input_name]["sizes"]
        # An int where the program fixes the size, None where it is symbolic.
        self.input_sizes = tuple(size.get("as_int") for size in sizes)
        self.output_width = _last_size(graph, self._output)
        self._steps = [step for node in graph["nodes"] if (step := _step(node)) is not None]

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
            self._constants[entry["name"]] = next(iter(entry["value"].values()))
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
        """The program's output for a batch x [B, *S]."""
        values: dict[str, Any] = dict(self._constants)
        values[self.input_name] = x
        values[_DEVICE.name], values[_DTYPE.name] = x.device, x.dtype
        for graph_name, path in self._places:
            owner: Any = self
            for part in path:
                owner = getattr(owner, part)
            values[graph_name] = owner
        for step in self._steps:
            positional = [_filled(value, values) for value in step.positional]
            keyword = {name: _filled(value, values) for name, value in step.keyword}
            result = step.function(*positional, **keyword)
            _store(step.outputs, result, values)
            if step.overwritten is not None:
                values[step.overwritten] = result
        output: Tensor = _filled(self._output, values)
        return output


def _loaded(source: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in source:
        raise CheckpointError(f"the exported program lacks its weight {clean(name, 60)}; save it again")
    return source[name]


def _last_size(graph: Mapping[str, Any], output: Any) -> int | None:
    """Last size of the output where the program fixes it: the number of classes."""
    sizes = graph["tensor_values"][output.name]["sizes"] if isinstance(output, _Name) else []
    return int(sizes[-1]["as_int"]) if sizes and "as_int" in sizes[-1] else None


def _step(node: Mapping[str, Any]) -> _Step | None:
    target = str(node["target"])
    name = target.removeprefix("torch.ops.aten.").partition(".")[0]
    if name in _SKIPPED:
        return None
    positional: list[Any] = []
    keyword: list[tuple[str, Any]] = []
    for given in node["inputs"]:
        value = _argument(given["arg"])
        if given.get("kind") == 2 and target.startswith("torch.ops."):
            keyword.append((given["name"], value))
        else:
            positional.append(value)
    if name in _RANDOM or (name.rstrip("_") in _DROPOUTS and positional[-1] is True):
        raise CheckpointError(f"the exported program calls the random {clean(name, 30)}; {EXPORT_ADVICE}")
    overwritten = None
    if name in _IN_PLACE and positional and isinstance(positional[0], _Name):
        target = target.replace(f"aten.{name}", f"aten.{name[:-1]}", 1)
        overwritten = positional[0].name
    outputs = [_outputs(output) for output in node["outputs"]]
    # The schema lists a single result and a tuple of results alike, by what its operator returns.
    return _Step(_function(target), tuple(positional), tuple(keyword), outputs, overwritten)


def _function(target: str) -> Callable[..., Any]:
    if target in _ARITHMETIC:
        return _ARITHMETIC[target]
    parts = target.split(".")
    if len(parts) == 5 and parts[:3] == ["torch", "ops", "aten"]:
        name, overload = parts[3:]
        allowed = name in _INTERNAL_OPERATORS or not name.startswith("_")
        packet: Any = getattr(torch.ops.aten, name, None) if allowed and name not in _FORBIDDEN else None
        if isinstance(packet, _OPERATOR_TYPE) and overload in packet.overloads():
            function: Callable[..., Any] = getattr(packet, overload)
            return function
    raise CheckpointError(
        f"the exported program calls {clean(target, 60)}, which isn't a plain tensor operator; "
        "save `model.state_dict()` and use --arch file.py:factory"
    )


def _argument(argument: Mapping[str, Any]) -> Any:
    """One argument of the export schema (a union of one key) as a value, with `_Name` for graph values."""
    ((kind, value),) = argument.items()
    if kind in _LITERALS:
        return value
    if kind not in _CONVERTERS:
        raise CheckpointError(
            f"the exported program has an argument {clean(kind, 30)} that can't be read; {EXPORT_ADVICE}"
        )
    return _CONVERTERS[kind](value)


def _reference(value: Mapping[str, Any]) -> Any:
    if "as_none" in value:
        return None
    return _Name(str(value["as_tensor"]["name"] if "as_tensor" in value else value["name"]))


def _symbol(value: Mapping[str, Any]) -> Any:
    ((kind, content),) = value.items()
    return _Name(str(content)) if kind == "as_name" else content


def _dtype(value: int) -> Any:
    dtype = SCALAR_TYPES[value]
    return _DTYPE if dtype.is_floating_point else dtype


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_tensor": _reference,
    "as_optional_tensor": _reference,
    "as_tensors": lambda items: [_reference(item) for item in items],
    "as_optional_tensors": lambda items: [_reference(item) for item in items],
    "as_sym_int": _symbol,
    "as_sym_float": _symbol,
    "as_sym_bool": _symbol,
    "as_sym_ints": lambda items: [_symbol(item) for item in items],
    "as_sym_floats": lambda items: [_symbol(item) for item in items],
    "as_sym_bools": lambda items: [_symbol(item) for item in items],
    "as_scalar_type": _dtype,
    "as_memory_format": lambda value: _MEMORY_FORMATS[value],
    "as_layout": lambda _: torch.strided,
    "as_device": lambda _: _DEVICE,
}


def _outputs(argument: Mapping[str, Any]) -> Any:
    value = _argument(argument)
    return [item.name if item else None for item in value] if isinstance(value, list) else value and value.name


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, _Name):
        return values[value.name]
    return [_filled(item, values) for item in value] if isinstance(value, list) else value


def _store(outputs: Any, result: Any, values: dict[str, Any]) -> None:
    if isinstance(outputs, list):
        single = len(outputs) == 1 and not (isinstance(result, tuple) and len(result) == 1)
        for name, item in zip(outputs, [result] if single else result, strict=False):
            _store(name, item, values)
    elif outputs is not None:
        values[outputs] = result
