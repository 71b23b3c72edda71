"""The nodes of an exported program as steps: what each calls, with what, and under which names its results go on.

In-place operators become their plain forms. That is right while no other name sees the overwritten memory, so a
program in which one does is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from riskaudit.errors import CheckpointError
from riskaudit.inputs.exported.archive import SAVE_AGAIN, SCALAR_TYPES
from riskaudit.inputs.exported.operators import ALLOWED, Arithmetic, Operator, operation
from riskaudit.inputs.text import clean, words

EXPORT_ADVICE = (
    "export it with torch.export.export(model.eval(), (x[:1],)), or with a dynamic batch dimension, "
    "and torch.export.save"
)

_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}

_LITERALS = ("as_int", "as_ints", "as_bool", "as_bools", "as_string", "as_strings", "as_int_lists")
MAX_NODES = 50_000
_SKIPPED = {
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}
_RANDOM = words("""
    bernoulli bernoulli_ rand randn rand_like randn_like randint normal multinomial native_dropout
""")
_DROPOUTS = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
# These may return their input itself though their schema doesn't say so.
_SAME = _DROPOUTS | {"type_as", "contiguous", "to", "expand_as", "view_as", "reshape_as", "meshgrid", "concat", "pad"}
# Fill with one value, whatever was there.
_FILLS = {"torch.ops.aten.zero_.default", "torch.ops.aten.fill_.Scalar"}


@dataclass(frozen=True)
class ValueName:
    """Refers to an earlier value of the graph."""

    name: str


# The program runs where and in what precision its input is, not where it was exported. No graph has these names.
DEVICE = ValueName("device of x")
DTYPE = ValueName("dtype of x")


def read_argument(argument: Mapping[str, Any]) -> Any:
    """One argument of the export schema (a union of one key) as a value, with `ValueName` for graph values."""
    ((kind, value),) = argument.items()
    if kind in ("as_float", "as_floats"):
        # JSON has no infinity: the schema writes it as a word.
        return [float(item) for item in value] if isinstance(value, list) else float(value)
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
    return ValueName(str(value["as_tensor"]["name"] if "as_tensor" in value else value["name"]))


def _symbol(value: Mapping[str, Any]) -> Any:
    ((kind, content),) = value.items()
    return ValueName(str(content)) if kind == "as_name" else content


def _dtype(value: int) -> Any:
    dtype = SCALAR_TYPES[value]
    return DTYPE if dtype.is_floating_point else dtype


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
    "as_device": lambda _: DEVICE,
}


def output_names(argument: Mapping[str, Any]) -> Any:
    """Names of a node's results: one, None where it is dropped, or a list of these."""
    value = read_argument(argument)
    return [item.name if item else None for item in value] if isinstance(value, list) else value and value.name


@dataclass(frozen=True)
class Step:
    """One call.

    Attributes:
        target: as the program names the operator.
        operation: checks and calls.
        arguments: by name of the operator's schema; `ValueName` for earlier values.
        outputs: names of the results, nested as the schema nests them.
        in_place: the operator is the plain form of one that overwrites its first argument.
        may_alias: a result may share memory with an argument.
        overwritten: names whose value the operator would have overwritten.
    """

    target: str
    operation: Operator | Arithmetic
    arguments: Mapping[str, Any]
    outputs: Any
    in_place: bool
    may_alias: bool
    overwritten: tuple[str, ...] = ()


def read_steps(nodes: Sequence[Mapping[str, Any]], state: Sequence[str], output: Any) -> list[Step]:
    """The steps of a graph.

    Raises:
        CheckpointError: a layer in training mode, an operator that isn't allowed, or one that overwrites memory
            that other values see.
    """
    if len(nodes) > MAX_NODES:
        raise CheckpointError(f"the exported program has {len(nodes)} nodes, expected at most {MAX_NODES}")
    # Modes first: a layer in training mode is why its state changes, and the better thing to name.
    calls = [call for node in nodes if (call := _read_call(node)) is not None]
    last_use: dict[str, int] = {}
    for number, call in enumerate(calls):
        last_use.update((name, number) for name in _names_in(list(call.arguments.values())))
    last_use.update((name, len(calls)) for name in _names_in(output))
    memory = _Memory(state, last_use)
    defined = set(state)
    steps = []
    for number, call in enumerate(calls):
        overwritten = _track(call, number, memory)
        for name in _outputs(call):
            if name in defined:
                raise CheckpointError(f"the exported program names two values {clean(name, 30)}; {SAVE_AGAIN}")
            defined.add(name)
        steps.append(replace(call, overwritten=overwritten))
    return steps


class _Memory:
    """Which names of a graph share memory, and which of these are the same tensor."""

    def __init__(self, state: Sequence[str], last_use: Mapping[str, int]) -> None:
        self.state, self.last_use = frozenset(state), last_use
        self.shared: dict[str, set[str]] = {}
        self.same: dict[str, set[str]] = {}

    def join(self, groups: dict[str, set[str]], first: str, second: str) -> None:
        joined = groups.get(first, {first}) | groups.get(second, {second})
        for name in joined:
            groups[name] = joined

    def overwrite(self, name: str, number: int, target: str) -> tuple[str, ...]:
        """The names that mean the tensor that node number ``number`` overwrites."""
        same = self.same.get(name, {name})
        others = self.shared.get(name, {name}) - same
        seen = next((other for other in sorted(others) if self.last_use.get(other, -1) > number), None)
        if seen is not None or not self.state.isdisjoint(same | others):
            what = "its own state" if seen is None else "memory that other values share"
            raise CheckpointError(
                f"the exported program changes {what} in place ({clean(target, 40)}); export it in eval mode and save "
                "program.run_decompositions(), which writes such steps out"
            )
        return tuple(sorted(same))


def _read_call(node: Mapping[str, Any]) -> Step | None:
    """What a node calls, with what; None for an assertion."""
    target = str(node["target"])
    name = target.removeprefix("torch.ops.aten.").partition(".")[0]
    if name in _SKIPPED:
        return None
    positional: list[Any] = []
    keyword: dict[str, Any] = {}
    for given in node["inputs"]:
        value = read_argument(given["arg"])
        if given.get("kind") == 2 and target.startswith("torch.ops."):
            keyword[str(given["name"])] = value
        else:
            positional.append(value)
    if name in _RANDOM:
        raise CheckpointError(f"the exported program calls the random {clean(name, 30)}; {EXPORT_ADVICE}")
    plain = _plain_form(target)
    called = operation(plain or target)
    if target == "torch.ops.aten.zero_.default":
        positional = [*positional, 0]
    arguments = called.bind(positional, keyword)
    _check_mode(node, name.rstrip("_"), arguments)
    # The schema lists a single result and a tuple of results alike, by what its operator returns.
    outputs = [output_names(output) for output in node["outputs"]]
    return Step(target, called, arguments, outputs, plain is not None, called.is_view or name.rstrip("_") in _SAME)


def _track(call: Step, number: int, memory: _Memory) -> tuple[str, ...]:
    """Note which names share memory after a call; the names that mean what it overwrites."""
    first = next(iter(call.arguments.values()), None)
    overwritten: tuple[str, ...] = ()
    if call.in_place:
        if not isinstance(first, ValueName):
            raise CheckpointError(
                f"the exported program overwrites a constant ({clean(call.target, 40)}); {EXPORT_ADVICE}"
            )
        overwritten = memory.overwrite(first.name, number, call.target)
        for output in _outputs(call):
            memory.join(memory.same, first.name, output)
            memory.join(memory.shared, first.name, output)
    elif call.may_alias:
        for output in _outputs(call):
            for source in _names_in(list(call.arguments.values())):
                memory.join(memory.shared, source, output)
    return overwritten


def _plain_form(target: str) -> str | None:
    """The operator that computes what an in-place operator writes; None for one that isn't in-place."""
    rest = target.removeprefix("torch.ops.aten.")
    name, _, overload = rest.partition(".")
    if rest == target or not name.endswith("_") or name.startswith("_"):
        return None
    if target in _FILLS:
        return "torch.ops.aten.full_like.default"
    plain = f"aten.{name[:-1]}.{overload}"
    return f"torch.ops.{plain}" if plain in ALLOWED else None


def _check_mode(node: Mapping[str, Any], name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse what a layer does in training only: drop at random, or change its statistics."""
    statistics = arguments.get("running_mean") is not None
    batch = name in ("batch_norm", "instance_norm") and statistics
    uses_batch = arguments.get("training") is not False and arguments.get("use_input_stats") is not False
    if (name in _DROPOUTS and arguments.get("train") is not False) or (batch and uses_batch):
        does = "drops entries at random" if name in _DROPOUTS else "normalises by the batch and changes its statistics"
        raise CheckpointError(
            f"{_layer(node)} was exported in training mode, in which {name} {does}, but an audit needs eval mode; "
            + EXPORT_ADVICE
        )


def _layer(node: Mapping[str, Any]) -> str:
    """The layer that a node comes from, as the exporter recorded it: ``L__self__bn1,bn1,torch.nn...``."""
    metadata = node.get("metadata")
    stack = metadata.get("nn_module_stack") if isinstance(metadata, dict) else None
    parts = stack.rpartition(";")[2].split(",") if isinstance(stack, str) else []
    return f"the layer {clean(parts[1], 60)}" if len(parts) > 2 and parts[1] else "a layer of the exported program"


def _names_in(value: Any) -> list[str]:
    return [leaf.name for leaf in tree_leaves(value) if isinstance(leaf, ValueName)]


def _outputs(call: Step) -> list[str]:
    return [str(name) for name in tree_leaves(call.outputs) if name is not None]
