from __future__ import annotations

import copy
import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from input_cases import Attack, check_sentence, random_module
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from riskaudit.errors import CheckpointError, RiskauditError
from riskaudit.inputs import Samples, check_compatibility, load_checkpoint, load_loss
from riskaudit.inputs.exported.operators import ALLOWED, ArgumentBoundsError, Arithmetic, Operator, overload_of

# torch's own: the first jvp of a process compiles a few formulas, the exporter asks its own deprecated questions.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

SHAPE = (1, 6, 6)


class Residual(nn.Module):
    """Views, a split, an in-place sum and activation, arithmetic on sizes: what a graph may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.register_buffer("scale", torch.tensor(0.7))
        self.head = nn.Linear(2 * 36, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.stem(x)
        out = self.conv(x)
        out += x
        out = torch.sigmoid(out) * self.scale
        first, second = out.chunk(2, dim=1)
        joined = torch.cat([first, first * torch.softmax(second, dim=1)], dim=1)[:, 1:3]
        return self.head(self.drop(joined.reshape(joined.shape[0], joined.shape[1] * 36)))


def export(model: nn.Module, path: Path, *, batch: int = 1, dynamic: bool = False) -> None:
    x = torch.rand(max(batch, 2) if dynamic else batch, *SHAPE, dtype=next(model.parameters()).dtype)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=shapes), path)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("exported")
    model = random_module(Residual()).double()
    paths = {"static": folder / "static.pt2", "dynamic": folder / "dynamic.pt2"}
    export(model, paths["static"])
    export(model, paths["dynamic"], dynamic=True)
    return model, paths


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_description(archives, kind: str) -> None:
    model, paths = archives
    checkpoint = load_checkpoint(paths[kind])
    assert checkpoint.architecture == "torch.export"
    assert checkpoint.input_shape == SHAPE
    assert checkpoint.input_channels == 1
    assert checkpoint.num_classes == 3
    assert checkpoint.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    names = {name.removeprefix("program.") for name, _ in checkpoint.model.named_parameters()}
    assert names == {name for name, _ in model.named_parameters()}
    assert all(isinstance(parameter, nn.Parameter) for parameter in checkpoint.model.parameters())


def gradient(model: nn.Module) -> Callable[[dict[str, torch.Tensor], torch.Tensor], dict[str, torch.Tensor]]:
    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, (x,)), torch.tensor([1]))

    return grad(loss)


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_torch_func_agrees_with_eager(archives, kind: str) -> None:
    eager, paths = archives
    exported = load_checkpoint(paths[kind]).model
    x = torch.rand(1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    direction = torch.rand(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    results = []
    for model in (eager, exported):
        parameters = {name: value.detach() for name, value in model.named_parameters()}
        primal, tangent = jvp(lambda x, m=model, p=parameters: gradient(m)(p, x), (x,), (direction,))
        batched = vmap(lambda x, m=model, p=parameters: gradient(m)(p, x[None]))(torch.cat([x, x + 0.1]))
        results.append(
            [{k.removeprefix("program."): v for k, v in part.items()} for part in (primal, tangent, batched)]
        )
    for part, other in zip(*results, strict=True):
        assert part.keys() == other.keys()
        for name in part:
            torch.testing.assert_close(part[name], other[name], rtol=0, atol=1e-10)


def test_dynamic_takes_any_batch(archives) -> None:
    model, paths = archives
    x = torch.rand(5, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(load_checkpoint(paths["dynamic"]).model(x), model(x))


def test_exported_in_float32_runs_in_float64(tmp_path: Path) -> None:
    model = random_module(Residual())
    export(model, tmp_path / "f.pt2")
    exported = copy.deepcopy(load_checkpoint(tmp_path / "f.pt2").model).double()
    x = torch.rand(1, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(exported(x), model.double()(x), rtol=0, atol=1e-10)


def test_core_aten_decomposition_runs(tmp_path: Path) -> None:
    model = random_module(Residual())
    program = torch.export.export(model, (torch.rand(1, *SHAPE),)).run_decompositions()
    torch.export.save(program, tmp_path / "d.pt2")
    x = torch.rand(1, *SHAPE)
    torch.testing.assert_close(load_checkpoint(tmp_path / "d.pt2").model(x), model(x))


def test_normalization_and_compatibility(archives) -> None:
    _, paths = archives
    checkpoint = load_checkpoint(paths["static"], mean=[0.5], std=[0.2])
    samples = Samples.from_tensors(torch.rand(2, *SHAPE), torch.tensor([0, 2]))
    check_compatibility(checkpoint, samples, load_loss("cross-entropy"))


def test_other_batch_size_is_refused(tmp_path: Path, refused) -> None:
    export(random_module(Residual()), tmp_path / "b.pt2", batch=4)
    message = refused(CheckpointError, load_checkpoint, tmp_path / "b.pt2")
    assert "exported for batches of 4" in message
    assert "torch.export.export" in message


def test_arch_beside_a_program_is_refused(archives, refused) -> None:
    assert "leave out `arch" in refused(CheckpointError, load_checkpoint, archives[1]["static"], arch="lenet")


def test_training_mode_is_refused(tmp_path: Path, refused) -> None:
    export(Residual().train(), tmp_path / "t.pt2", batch=1)
    assert "model.eval()" in refused(CheckpointError, load_checkpoint, tmp_path / "t.pt2")


def test_several_inputs_are_refused(tmp_path: Path, refused) -> None:
    program = torch.export.export(nn.Bilinear(2, 2, 2), (torch.ones(1, 2), torch.ones(1, 2)))
    torch.export.save(program, tmp_path / "t.pt2")
    assert "2 inputs" in refused(CheckpointError, load_checkpoint, tmp_path / "t.pt2")


# Hostile archives


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(source) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"package/{name}", content)
    return target


def changed_json(name: str, change: Callable[[dict], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        document = json.loads(members[name])
        change(document)
        members[name] = json.dumps(document).encode()

    return apply


WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
MODEL = "models/model.json"


def graph_of(document: dict) -> dict:
    return document["graph_module"]["graph"]


@pytest.mark.parametrize("place", ["weight", "opaque", "sample inputs", "legacy weights", "library"])
def test_nothing_is_unpickled(tmp_path: Path, archives, refused, place: str) -> None:
    marker = tmp_path / "marker"
    evil = pickle.dumps(Attack(marker))
    stream = io.BytesIO()
    torch.save({"stem.0.weight": Attack(marker)}, stream)

    def change(members: dict[str, bytes]) -> None:
        if place == "weight":
            members["data/weights/weight_0"] = stream.getvalue()
            changed_json(WEIGHTS, lambda d: d["config"]["stem.0.weight"].update(use_pickle=True))(members)
        elif place == "opaque":
            members["data/constants/opaque_obj_0"] = evil
            entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
            changed_json(CONSTANTS, lambda d: d["config"].update(evil=entry))(members)
        elif place == "sample inputs":
            members["data/sample_inputs/model.pt"] = stream.getvalue()
        elif place == "legacy weights":
            members["data/weights/model.pt"] = stream.getvalue()
        else:
            members["data/aotinductor/model/evil.so"] = b"\x7fELF"

    path = rewritten(archives[1]["static"], tmp_path / "evil.pt2", change)
    if place == "sample inputs":
        # They are of no use to an audit, so they aren't even opened.
        load_checkpoint(path)
    else:
        assert "could run code" in refused(CheckpointError, load_checkpoint, path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.hub.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.conv2d.__class__",
        "torch.ops.aten.__class__.default",
        "torch.ops.aten._sparse_coo_tensor_unsafe.default",
        "torch.ops.higher_order.cond",
        "torch.ops.load_library.default",
        "torch.ops.aten.no_such_operator.default",
        "_operator.attrgetter",
        "",
    ],
)
def test_other_operators_are_refused(tmp_path: Path, archives, refused, target: str) -> None:
    change = changed_json(MODEL, lambda d: graph_of(d)["nodes"][0].update(target=target))
    path = rewritten(archives[1]["static"], tmp_path / "op.pt2", change)
    assert "isn't a plain tensor operator" in refused(CheckpointError, load_checkpoint, path)


def test_symbolic_expressions_are_not_evaluated(tmp_path: Path, archives) -> None:
    marker = tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w')"
    change = changed_json(
        MODEL, lambda d: graph_of(d)["tensor_values"]["x"]["sizes"][0]["as_expr"].update(expr_str=code)
    )
    path = rewritten(archives[1]["dynamic"], tmp_path / "sym.pt2", change)
    load_checkpoint(path).model(torch.rand(2, *SHAPE, dtype=torch.float64))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (WEIGHTS, lambda d: d["config"]["stem.0.weight"]["tensor_meta"]["sizes"][0].update(as_int=10**9)),
        (WEIGHTS, lambda d: d["config"]["stem.0.weight"]["tensor_meta"]["sizes"][0].update(as_int=-4)),
        (WEIGHTS, lambda d: d["config"]["stem.0.weight"]["tensor_meta"]["storage_offset"].update(as_int=10**6)),
        (WEIGHTS, lambda d: d["config"]["stem.0.weight"]["tensor_meta"]["strides"][0].update(as_int=10**6)),
        (WEIGHTS, lambda d: d["config"]["stem.0.weight"]["tensor_meta"].update(dtype=99)),
        (WEIGHTS, lambda d: d["config"]["stem.0.weight"].update(path_name="../../etc/passwd")),
        (WEIGHTS, lambda d: d["config"].pop("stem.0.weight")),
        (WEIGHTS, lambda d: d.update(config=[])),
        (MODEL, lambda d: d["schema_version"].update(major=9)),
        (MODEL, lambda d: d["graph_module"]["signature"].update(input_specs=[{}])),
        (MODEL, lambda d: d["graph_module"]["signature"].update(output_specs=[])),
        (MODEL, lambda d: graph_of(d)["nodes"][0].pop("inputs")),
        (MODEL, lambda d: graph_of(d)["nodes"][0]["inputs"][0].update(arg={"as_graph": {"name": "g"}})),
        (MODEL, lambda d: d.pop("graph_module")),
    ],
)
def test_broken_description(tmp_path: Path, archives, refused, name: str, change) -> None:
    path = rewritten(archives[1]["static"], tmp_path / "broken.pt2", changed_json(name, change))
    refused(CheckpointError, load_checkpoint, path)


def test_names_are_only_names(tmp_path: Path, archives) -> None:
    # torch's own loader writes these into source text and executes it.
    def change(document: dict) -> None:
        text = json.dumps(document).replace('"conv2d"', '"x); import os; os.abort(); ("')
        document.clear()
        document.update(json.loads(text))

    model, paths = archives
    path = rewritten(paths["static"], tmp_path / "n.pt2", changed_json(MODEL, change))
    x = torch.rand(1, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(load_checkpoint(path).model(x), model(x))


def test_nan_weights(tmp_path: Path, archives, refused) -> None:
    def change(members: dict[str, bytes]) -> None:
        members["data/weights/weight_0"] = b"\xff" * len(members["data/weights/weight_0"])

    path = rewritten(archives[1]["static"], tmp_path / "nan.pt2", change)
    assert "stem.0.weight in nan.pt2 holds NaN" in refused(CheckpointError, load_checkpoint, path)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated(tmp_path: Path, archives, refused, share: float) -> None:
    content = archives[1]["static"].read_bytes()
    (tmp_path / "t.pt2").write_bytes(content[: int(share * len(content)) + 1])
    refused(CheckpointError, load_checkpoint, tmp_path / "t.pt2")


def test_flipped_bytes(tmp_path: Path, archives) -> None:
    content = archives[1]["static"].read_bytes()
    places = torch.randint(len(content), (150,), generator=torch.Generator().manual_seed(0)).tolist()
    for place in places:
        (tmp_path / "f.pt2").write_bytes(content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :])
        try:
            load_checkpoint(tmp_path / "f.pt2")
        except RiskauditError as error:
            check_sentence(error)


def test_layout_of_older_torch(tmp_path: Path, archives) -> None:
    model, paths = archives
    state = io.BytesIO()
    torch.save(dict(model.state_dict()), state)
    constants = io.BytesIO()
    torch.save({}, constants)
    with zipfile.ZipFile(paths["static"]) as archive:
        program = archive.read(next(name for name in archive.namelist() if name.endswith(MODEL)))
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", program)
        archive.writestr("serialized_state_dict.pt", state.getvalue())
        archive.writestr("serialized_constants.pt", constants.getvalue())
        archive.writestr("serialized_example_inputs.pt", b"")
        archive.writestr("version", "8.2")
    x = torch.rand(1, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(load_checkpoint(tmp_path / "old.pt2").model(x), model(x))


# Limits of what a program may do


def inserted(node: dict, tmp_path: Path, archives) -> Path:
    """The static archive with one node in front, called ``new``, whose result the program returns."""

    def change(document: dict) -> None:
        graph_of(document)["nodes"].insert(0, {"metadata": {}, "outputs": [{"as_tensor": {"name": "new"}}], **node})
        spec = document["graph_module"]["signature"]["output_specs"][0]
        spec["user_output"]["arg"] = {"as_tensor": {"name": "new"}}

    return rewritten(archives[1]["static"], tmp_path / "inserted.pt2", changed_json(MODEL, change))


def node(target: str, **arguments: dict) -> dict:
    inputs = [{"name": name, "arg": value, "kind": 2} for name, value in arguments.items()]
    return {"target": f"torch.ops.aten.{target}", "inputs": inputs}


X = {"as_tensor": {"name": "x"}}
WEIGHT = {"as_tensor": {"name": "p_stem_0_weight"}}


@pytest.mark.parametrize(
    "call",
    [
        node("full.default", size={"as_ints": [2**40]}, fill_value={"as_int": 1}),
        node("expand.default", self=X, size={"as_ints": [2**31, 1, 6, 6]}),
        node("constant_pad_nd.default", self=X, pad={"as_ints": [2**33, 0]}),
        node("native_group_norm.default", input=X, weight={"as_none": True}, bias={"as_none": True},
             N={"as_int": 1}, C={"as_int": 1}, HxW={"as_int": 10**9}, group={"as_int": 1}, eps={"as_float": 1e-5}),
        node("_native_batch_norm_legit_no_training.default", input=X, weight=WEIGHT, bias=WEIGHT, running_mean=WEIGHT,
             running_var=WEIGHT, momentum={"as_float": 0.1}, eps={"as_float": 1e-5}),
        node("pixel_shuffle.default", self=X, upscale_factor={"as_int": 0}),
        node("div.Scalar_mode", self={"as_int": 1}, other={"as_int": 0}, rounding_mode={"as_string": "floor"}),
        node("max_pool2d.default", self=X, kernel_size={"as_ints": [-1, 2]}),
        node("linear.default", input={"as_string": "x"}, weight=WEIGHT),
        node("relu.default", self=X, out=X),
        node("embedding.default", weight=WEIGHT, indices={"as_tensor": {"name": "nothing"}}),
    ],
    ids=lambda call: call["target"].removeprefix("torch.ops.aten."),
)  # fmt: skip
def test_arguments_out_of_bounds_are_refused(tmp_path: Path, archives, refused, call: dict) -> None:
    path = inserted(call, tmp_path, archives)
    x = torch.rand(1, *SHAPE, dtype=torch.float64)
    refused(CheckpointError, lambda: load_checkpoint(path).model(x))


@pytest.mark.parametrize("operator", ["index.Tensor", "index_select.default", "gather.default", "embedding.default"])
def test_index_beyond_a_tensor_is_refused(operator: str) -> None:
    called = Operator(f"torch.ops.aten.{operator}")
    source, index = torch.rand(4, 3), torch.tensor([[2**40]])
    arguments = {
        "index.Tensor": [source, [index[0]]],
        "index_select.default": [source, 0, index[0]],
        "gather.default": [source, 0, index],
        "embedding.default": [source, index],
    }[operator]
    with pytest.raises((IndexError, RuntimeError), match=r"out of (bounds|range)"):
        called.call(called.bind(arguments, {}))


def test_loop_of_products_of_sizes_is_bounded() -> None:
    multiply = Arithmetic("_operator.mul")
    value = 3
    for _ in range(5):
        value = multiply.call(multiply.bind([value, value], {}))
    with pytest.raises(ArgumentBoundsError, match="beyond 64 bits"):
        multiply.call(multiply.bind([value, value], {}))


def test_allowed_operators_write_nothing_and_draw_nothing() -> None:
    for name in ALLOWED:
        schema = overload_of(name)._schema
        assert not any(item.alias_info is not None and item.alias_info.is_write for item in schema.arguments), name
        tags = overload_of(name).tags
        if not any(item.name in ("train", "dropout_p", "p") for item in schema.arguments):
            assert torch.Tag.nondeterministic_seeded not in tags, name


class SharedMemory(nn.Module):
    """Overwrites a view of a value that is used later."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(36, 3)

    def forward(self, x):
        y = x.flatten(1) * 1
        y[:, :18].add_(1.0)
        return self.head(y)


def test_overwritten_view_is_refused_and_the_advice_works(tmp_path: Path, refused) -> None:
    model, x = random_module(SharedMemory()), torch.rand(1, *SHAPE)
    program = torch.export.export(model, (x,))
    torch.export.save(program, tmp_path / "v.pt2")
    assert "run_decompositions()" in refused(CheckpointError, load_checkpoint, tmp_path / "v.pt2")
    torch.export.save(program.run_decompositions(), tmp_path / "w.pt2")
    torch.testing.assert_close(load_checkpoint(tmp_path / "w.pt2").model(x), model(x))


def test_layer_in_training_mode_is_named(tmp_path: Path, refused) -> None:
    export(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train(), tmp_path / "t.pt2", dynamic=True)
    message = refused(CheckpointError, load_checkpoint, tmp_path / "t.pt2")
    assert "the layer 1 was exported in training mode, in which batch_norm" in message


class TwoOutputs(nn.Sequential):
    def forward(self, x):
        return super().forward(x), x.sum()


def test_tuple_of_outputs_is_refused(tmp_path: Path, refused) -> None:
    export(TwoOutputs(nn.Flatten(), nn.Linear(36, 3)), tmp_path / "t.pt2")
    assert "returns 2 values" in refused(CheckpointError, load_checkpoint, tmp_path / "t.pt2")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("layer", [nn.Hardsigmoid(), nn.Hardswish(), nn.GroupNorm(1, 1), nn.MultiheadAttention(6, 2)])
def test_layers_can_be_differentiated_twice(tmp_path: Path, layer: nn.Module, decomposed: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, nn.Linear(36, 3)

        def forward(self, x):
            rows = x[:, 0]
            is_attention = isinstance(self.layer, nn.MultiheadAttention)
            hidden = self.layer(rows, rows, rows)[0] if is_attention else self.layer(4 * x - 2)
            return self.head(hidden.flatten(1))

    model, x = random_module(Net()).double(), torch.rand(2, *SHAPE, dtype=torch.float64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program.run_decompositions() if decomposed else program, tmp_path / "h.pt2")
    exported = load_checkpoint(tmp_path / "h.pt2").model
    torch.testing.assert_close(exported(x), model(x))
    parameters = dict(exported.named_parameters())
    one = x[:1]
    _, tangent = jvp(lambda z: gradient(exported)(parameters, z), (one,), (torch.ones_like(one),))
    step = 1e-6
    change = gradient(exported)(parameters, one + step), gradient(exported)(parameters, one - step)
    for name, value in tangent.items():
        torch.testing.assert_close(value, (change[0][name] - change[1][name]) / (2 * step), rtol=1e-4, atol=1e-6)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("decomposed", [False, True])
def test_program_of_tokens(tmp_path: Path, decomposed: bool) -> None:
    layers = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = random_module(nn.Sequential(nn.Embedding(20, 8), layers, nn.Flatten(), nn.Linear(40, 3)))
    x = torch.randint(0, 20, (2, 5), generator=torch.Generator().manual_seed(0))
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program.run_decompositions() if decomposed else program, tmp_path / "t.pt2")
    exported = load_checkpoint(tmp_path / "t.pt2").model
    torch.testing.assert_close(exported(x), model(x))
    with pytest.raises(CheckpointError, match="beyond a tensor"):
        exported(x + 2**40)


def run_mutations(folder: Path, archives, first: int, count: int) -> str:
    for name, path in archives[1].items():
        shutil.copy(path, folder / f"source_{name}.pt2")
    program = torch.export.export(random_module(Residual()), (torch.rand(1, *SHAPE),)).run_decompositions()
    torch.export.save(program, folder / "source_core.pt2")
    command = [sys.executable, str(Path(__file__).with_name("pt2_mutations.py")), str(folder), str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    number = (folder / f"number_{first}").read_text()
    assert done.returncode == 0, f"mutation {number}: exit {done.returncode}\n{done.stdout}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
def test_mutations(tmp_path: Path, archives) -> None:
    counts = json.loads(run_mutations(tmp_path, archives, 0, 200))
    assert sum(counts.values()) == 200
    assert counts["refused"] > 100
    assert counts["ran"] > 5


@pytest.mark.slow
def test_many_mutations(tmp_path: Path, archives) -> None:
    counts = json.loads(run_mutations(tmp_path, archives, 1000, 10_000))
    assert sum(counts.values()) == 10_000
