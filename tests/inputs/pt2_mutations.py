"""Mutations of exported programs, run in a process of their own: ``python pt2_mutations.py FOLDER FIRST COUNT``.

Each mutation must end in a model that ran, or in an error of riskaudit's own; every operator that Python called must be
an allowed one, and no kernel of a dangerous kind may have run. Prints one line of counts, or the first offence.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import json
import math
import random
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from riskaudit.errors import RiskauditError
from riskaudit.inputs import load_checkpoint
from riskaudit.inputs.exported.operators import ALLOWED

MAX_SECONDS = 30
MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
DANGEROUS = (
    "sparse", "quantize", "set_", "resize", "from_file", "record_stream", "rand", "bernoulli", "normal_", "storage",
    "nested", "mkldnn",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 3, 7, 64, -64, 2**20, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63), 2**63)
FLOATS = (0.0, -1.0, 0.5, 1e-300, 1e300, math.inf, -math.inf, math.nan)
OTHER_TARGETS = (
    "torch.ops.aten.as_strided.default", "torch.ops.aten.set_.source_Tensor", "torch.ops.aten.resize_.default",
    "torch.ops.aten.sparse_coo_tensor.indices_size", "torch.ops.aten.from_file.default", "torch.ops.aten.add.out",
    "torch.ops.aten.empty.memory_format", "torch.ops.aten._index_put_impl_.default", "torch.ops.higher_order.cond",
    "torch.ops.aten.quantize_per_tensor.default", "os.system", "torch.ops.prims.as_strided.default",
    "_operator.pow", "_operator.lshift", "torch.ops.aten.relu_.default", "torch.ops.aten.add_.Tensor",
)  # fmt: skip


class CalledOperators(TorchFunctionMode):
    """Operators that Python called, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if isinstance(func, torch._ops.OpOverload):
            self.names.add(str(func))
        return func(*args, **(kwargs or {}))


class Kernels(TorchDispatchMode):
    """Kernels that ran, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def argument(draw: random.Random, names: list[str]) -> dict[str, Any]:
    """A random argument of the export schema."""
    number, tensor = draw.choice(NUMBERS), {"name": draw.choice(names)}
    return draw.choice(
        [
            {"as_int": number},
            {"as_float": draw.choice(FLOATS)},
            {"as_bool": draw.random() < 0.5},
            {"as_none": True},
            {"as_tensor": tensor},
            {"as_tensors": [tensor] * draw.randint(0, 3)},
            {"as_optional_tensors": [{"as_none": True}, {"as_tensor": tensor}][: draw.randint(0, 2)]},
            {"as_ints": [draw.choice(NUMBERS) for _ in range(draw.randint(0, 5))]},
            {"as_string": draw.choice(["same", "valid", "tanh", "ij,jk", "floor", "trunc", "__class__"])},
            {"as_scalar_type": draw.randint(0, 30)},
            {"as_sym_int": {"as_name": draw.choice(names)}},
            {"as_device": {"type": "cuda", "index": 99}},
            {"as_layout": 1},
            {"as_memory_format": draw.randint(0, 9)},
        ]
    )


def likely(draw: random.Random, schema: Any, names: list[str]) -> dict[str, Any]:
    """An argument of the schema's type with a value that may be out of bounds."""
    kind = str(schema.real_type).removeprefix("Optional[").rstrip("]")
    small = [0, 1, 1, 2, 2, 3, 4, -1, 8]
    tensor = {"name": draw.choice(names)}
    makers = {
        "Tensor": lambda: {"as_tensor": tensor},
        "List[Tensor": lambda: {"as_tensors": [{"name": draw.choice(names)} for _ in range(draw.randint(1, 3))]},
        "List[Optional[Tensor": lambda: {"as_optional_tensors": [{"as_tensor": tensor}]},
        "List[int": lambda: {
            "as_ints": [draw.choice([*small, draw.choice(NUMBERS)]) for _ in range(draw.randint(1, 4))]
        },
        "List[float": lambda: {"as_floats": [draw.choice([0.5, 2.0, *FLOATS]) for _ in range(draw.randint(1, 3))]},
        "int": lambda: {"as_int": draw.choice([*small, draw.choice(NUMBERS)])},
        "number": lambda: {"as_int": draw.choice([*small, draw.choice(NUMBERS)])},
        "float": lambda: {"as_float": draw.choice([0.1, 1.0, *FLOATS])},
        "bool": lambda: {"as_bool": draw.random() < 0.3},
    }
    return makers.get(kind, lambda: argument(draw, names))()


def new_node(draw: random.Random, names: list[str], place: int) -> dict[str, Any]:
    """A call of a random allowed operator whose arguments have the right types."""
    name = draw.choice(sorted(ALLOWED))
    _, packet, overload = name.split(".")
    schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
    inputs = [
        {"name": item.name, "arg": likely(draw, item, names), "kind": 2 if item.kwarg_only else 1}
        for item in schema.arguments
        if not item.has_default_value() or draw.random() < 0.5
    ]
    for given in inputs:
        # After a default that was left out, an argument can only be given by name.
        given["kind"] = 2
    outputs = [{"as_tensor": {"name": f"new{place}_{index}"}} for index, _ in enumerate(schema.returns)]
    return {"target": f"torch.ops.{name}", "inputs": inputs, "outputs": outputs, "metadata": {}}


def mutate(draw: random.Random, program: dict[str, Any], weights: dict[str, Any]) -> None:
    """Change one thing of a program or of the description of its weights."""
    graph = program["graph_module"]["graph"]
    nodes, names = graph["nodes"], list(graph["tensor_values"])
    place = draw.randrange(len(nodes))
    node, kind = nodes[place], draw.randrange(14)
    if kind == 0:
        node["target"] = draw.choice(OTHER_TARGETS)
    elif kind == 1:
        node["target"] = "torch.ops." + draw.choice(sorted(ALLOWED))
    elif kind == 2 and node["inputs"]:
        draw.choice(node["inputs"])["arg"] = argument(draw, names)
    elif kind == 3:
        draw.choice([lambda: nodes.pop(place), lambda: nodes.insert(place, node), lambda: draw.shuffle(nodes)])()
    elif kind == 4:
        meta = draw.choice(list(weights["config"].values()))["tensor_meta"]
        field = draw.choice(["sizes", "strides", "storage_offset", "dtype"])
        changed = draw.choice(NUMBERS)
        if field in ("sizes", "strides") and meta[field]:
            draw.choice(meta[field])["as_int"] = changed
        else:
            meta[field] = changed if field == "dtype" else {"as_int": changed}
    elif kind == 5:
        signature = program["graph_module"]["signature"]
        specs = signature[draw.choice(["input_specs", "output_specs"])]
        draw.choice([specs.pop, lambda: specs.append(draw.choice(specs)), lambda: draw.shuffle(specs)])()
    elif kind == 6:
        graph["tensor_values"][draw.choice(names)]["sizes"] = [{"as_int": draw.choice(NUMBERS)}]
    elif kind == 7:
        program["graph_module"]["signature"]["output_specs"][0]["user_output"]["arg"] = argument(draw, names)
    else:
        created = [new_node(draw, names, index) for index in range(draw.randint(1, 3))]
        nodes[place:place] = created
        if draw.random() < 0.7:
            result = created[-1]["outputs"][0]
            program["graph_module"]["signature"]["output_specs"][0]["user_output"]["arg"] = result


def outcome(path: Path, x: torch.Tensor) -> str:
    """Read and run one archive; "ran", "refused", or what shouldn't have happened."""
    called, kernels, start = CalledOperators(), Kernels(), time.monotonic()
    result = "ran"
    try:
        model = load_checkpoint(path).model
        with torch.no_grad(), called, kernels:
            model(x.to(next(model.parameters())))
    except RiskauditError:
        result = "refused"
    ran = {name for name in called.names if name.startswith("aten.")} - ALLOWED
    danger = [name for name in kernels.names if any(word in name for word in DANGEROUS)]
    if ran or danger:
        return f"outside the list: {sorted(ran)} {danger}"
    return result if time.monotonic() - start < MAX_SECONDS else "too slow"


def main() -> None:
    """Run mutations FIRST to FIRST + COUNT over the archives in FOLDER."""
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    sources = []
    for path in sorted(folder.glob("source_*.pt2")):
        with zipfile.ZipFile(path) as archive:
            sources.append({name.partition("/")[2]: archive.read(name) for name in archive.namelist()})
    x = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    counts: collections.Counter[str] = collections.Counter()
    target = folder / f"mutation_{first}.pt2"
    for number in range(first, first + count):
        draw = random.Random(number)
        members = dict(draw.choice(sources))
        program, weights = json.loads(members[MODEL]), json.loads(members[WEIGHTS])
        with contextlib.suppress(IndexError, KeyError):
            for _ in range(draw.choice([1, 1, 1, 2, 4])):
                mutate(draw, program, weights)
        members[MODEL] = json.dumps(copy.deepcopy(program)).encode()
        members[WEIGHTS] = json.dumps(weights).encode()
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in members.items():
                archive.writestr(f"package/{name}", content)
        # Written first, so that the number is known when the process dies.
        (folder / f"number_{first}").write_text(str(number))
        result = outcome(target, x)
        if result.startswith(("outside", "too slow")):
            print(f"mutation {number}: {result}")
            raise SystemExit(1)
        counts[result] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
