"""The pages in docs/ run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from integration_cases import small_batch, small_model
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)


def execute(code: str, **names) -> None:
    exec(code, {"loss_fn": F.cross_entropy, "loader": [small_batch()], **names})


def test_the_single_process_loop_of_the_page(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_model()
    # Its limit depends on the model; the noise is chosen for this one.
    execute(blocks("pytorch.md", "python")[0], model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert capsys.readouterr().out == "allow\n"


def test_the_data_parallel_loop_of_the_page(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        ddp = DistributedDataParallel(small_model())
        code = blocks("pytorch.md", "python")[1].replace("min_ranks=2", "min_ranks=1")
        execute(code, ddp=ddp, optimizer=torch.optim.SGD(ddp.parameters(), lr=0.1))
    finally:
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
