"""The pages in docs/ run as they are printed."""

from __future__ import annotations

import gc
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import received_cases
import torch
import torch.distributed as dist
import torch.nn.functional as F
from integration_cases import small_batch, small_model
from torch.nn.parallel import DistributedDataParallel

from riskaudit.guard import Guard, Policy

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)


def execute(code: str, **names) -> None:
    exec(code, {"loss_fn": F.cross_entropy, "loader": [small_batch()], **names})


@pytest.mark.parametrize("page", ["pytorch.md", "guard.md"])
def test_a_round_of_the_page(page, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = [block for block in blocks(page, "python") if "guard.record" in block]
    # Its limit depends on the model; the noise is chosen for another one.
    code = re.sub(r"gaussian:[0-9.]+", "gaussian:30", code)
    names = {"model": small_model(), "torch": torch, "Guard": Guard, "Policy": Policy}
    sent: list[dict[str, torch.Tensor]] = []
    scope = {"loss_fn": F.cross_entropy, "loader": [small_batch(), small_batch(seed=2)], "send": sent.append, **names}
    exec(code, scope)
    assert scope["decision"].action == "allow", scope["decision"].reasons
    assert list(scope["decision"].update) == list(scope["model"].state_dict())


@pytest.mark.skipif(find_spec("flwr") is None, reason="flwr is not installed")
def test_the_training_function_of_the_flower_page(monkeypatch) -> None:
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 2)
    (code,) = [block for block in blocks("flower.md", "python") if "guard.record" in block]
    scope = {
        "model": small_model(), "torch": torch, "loader": [small_batch()], "metrics": MetricRecord({"num-examples": 6}),
        "ClientApp": ClientApp, "Message": Message, "RecordDict": RecordDict, "ArrayRecord": ArrayRecord,
    }  # fmt: skip
    exec(code.replace("gaussian:0.2", "gaussian:30"), scope)
    arrays = ArrayRecord(small_model().state_dict())
    message = Message(RecordDict({"arrays": arrays}), dst_node_id=2, message_type="train")
    reply = scope["app"](message, Context(run_id=2, node_id=2, node_config={}, state=RecordDict(), run_config={}))
    assert not reply.has_error()
    assert list(reply.content["arrays"]) == list(small_model().state_dict())


@pytest.mark.skipif(find_spec("nvflare") is None, reason="nvflare is not installed")
def test_the_script_of_the_nvflare_page() -> None:
    from nvflare.app_common.abstract.fl_model import FLModel

    from riskaudit.integrations.nvflare import TICKET

    (code,) = [block for block in blocks("nvflare.md", "python") if "guard.record" in block]
    sent: list[FLModel] = []
    received = FLModel(params=small_model().state_dict(), params_type="FULL", current_round=1)
    flare = SimpleNamespace(receive=lambda: received, send=sent.append, FLModel=FLModel)
    scope = {"model": small_model(), "torch": torch, "loader": [small_batch()], "flare": flare}
    exec(code.replace("gaussian:0.2", "gaussian:30"), scope)
    assert TICKET in sent[0].meta
    assert set(sent[0].params) == set(small_model().state_dict())


def inspecting_guard() -> Guard:
    """Of the network that `received` is a changed one of."""
    return Guard(received_cases.mlp(), F.cross_entropy, Policy(max_revealed=0.2), prior_std=0.3, release="gaussian:30")


def received(planted: bool) -> dict[str, torch.Tensor]:
    """The weights that a server sends."""
    model = received_cases.mlp()
    if planted:
        received_cases.plant_imprint(model, model.layers[0])
    return model.state_dict()


@pytest.mark.skipif(find_spec("flwr") is None, reason="flwr is not installed")
@pytest.mark.parametrize("planted", [True, False])
def test_the_inspecting_app_of_the_flower_page(planted, monkeypatch) -> None:
    from flwr.app import ArrayRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.supercore.task_identity import TaskIdentity

    from riskaudit.integrations.flower import GuardMod

    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 2)
    (code,) = [block for block in blocks("flower.md", "python") if "inspect=" in block]
    scope = {
        "ClientApp": ClientApp,
        "GuardMod": GuardMod,
        "guard": inspecting_guard(),
        "inputs": received_cases.inputs(),
    }
    exec(code, scope)
    reached: list[Message] = []

    @scope["app"].train()
    def train(message, context):
        reached.append(message)
        return Message(RecordDict(), reply_to=message)

    message = Message(RecordDict({"arrays": ArrayRecord(received(planted))}), dst_node_id=2, message_type="train")
    scope["app"](message, Context(run_id=2, node_id=2, node_config={}, state=RecordDict(), run_config={}))
    assert len(reached) == (not planted)


@pytest.mark.skipif(find_spec("nvflare") is None, reason="nvflare is not installed")
@pytest.mark.parametrize("planted", [True, False])
def test_the_inspection_of_the_nvflare_page(planted) -> None:
    from nvflare.app_common.abstract.fl_model import FLModel

    from riskaudit.integrations.nvflare import may_train

    (code,) = [block for block in blocks("nvflare.md", "python") if "may_train" in block]
    sent: list[FLModel] = []
    model = FLModel(params=received(planted), params_type="FULL")
    flare = SimpleNamespace(receive=lambda: model, send=sent.append, FLModel=FLModel)
    exec(code, {"flare": flare, "may_train": may_train, "guard": inspecting_guard(), "inputs": received_cases.inputs()})
    assert [result.params for result in sent] == ([{}] if planted else [])


def test_the_single_process_loop_of_the_page(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_model()
    # Its limit depends on the model; the noise is chosen for this one.
    execute(blocks("pytorch.md", "python")[1], model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert capsys.readouterr().out == "allow\n"


def test_the_data_parallel_loop_of_the_page(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)

    def run() -> None:
        ddp = DistributedDataParallel(small_model())
        code = blocks("pytorch.md", "python")[2].replace("min_ranks=2", "min_ranks=1")
        execute(code, ddp=ddp, optimizer=torch.optim.SGD(ddp.parameters(), lr=0.1))

    try:
        run()
    finally:
        # The model goes before the group: torch may wait for ever where the model is the last to hold the group.
        gc.collect()
        dist.destroy_process_group()
    assert capsys.readouterr().out == "allow 1 True\n"


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_the_loop_of_the_opacus_page(tmp_path, monkeypatch, capsys) -> None:
    opacus = pytest.importorskip("opacus", reason="opacus is not installed: pip install 'riskaudit[opacus]'")
    monkeypatch.chdir(tmp_path)
    model = opacus.GradSampleModule(small_model())
    optimizer = opacus.optimizers.DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=6
    )
    execute(blocks("opacus.md", "python")[0], model=model, optimizer=optimizer)
    assert capsys.readouterr().out == "allow 0\n"


@pytest.mark.parametrize("page", ["pytorch.md", "opacus.md"])
def test_commands_name_examples_that_exist(page) -> None:
    for script in re.findall(r"python (examples/\S+\.py)", "".join(blocks(page, "sh"))):
        assert (ROOT / script).is_file()
