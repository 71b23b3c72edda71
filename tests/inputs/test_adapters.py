"""LoRA folders of PEFT: only adapters are trained, and what leaves of them is PEFT's own gradient."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import text_cases
import torch
import torch.nn.functional as F

from riskaudit.audit.audit import audit
from riskaudit.audit.client import make_client
from riskaudit.audit.settings import AuditSettings
from riskaudit.errors import ArchitectureError, CheckpointError
from riskaudit.inputs import load_checkpoint, load_samples
from riskaudit.inputs.huggingface.library import import_transformers, quiet

import_transformers()
peft = pytest.importorskip("peft")
TARGETS = {"bert": ["query", "value"], "gpt2": ["c_attn"]}


def adapted(kind: str, trained: bool) -> Any:
    """PEFT's own model, as a client has it."""
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=TARGETS[kind], task_type="SEQ_CLS", fan_in_fan_out=kind == "gpt2"
    )
    with torch.random.fork_rng(), quiet(import_transformers()):
        torch.manual_seed(3)
        model = peft.get_peft_model(text_cases.network_of(kind, 60), config)
        if trained:
            with torch.no_grad():
                for name, value in model.named_parameters():
                    if "lora_B" in name:
                        value.normal_(0, 0.3)
    return model.eval()


@lru_cache
def folder(kind: str, trained: bool = True) -> Path:
    path = Path(mkdtemp(prefix="riskaudit-lora-")) / f"lora-{kind}"
    with quiet(import_transformers()):
        adapted(kind, trained).save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", TARGETS)
def test_what_leaves_is_the_adapters_gradient(kind: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(folder(kind), base=text_cases.saved(kind))
    samples = load_samples(text_cases.write_texts(tmp_path / "texts.csv"), text=checkpoint.text, limit=1)
    client = make_client(checkpoint, samples, AuditSettings(release="gradient", checks=False))
    model = adapted(kind, trained=True).double()
    logits = model(input_ids=samples.tokens.ids).logits
    own = dict(client.release.parameters)
    head = "score" if kind == "gpt2" else "classifier"
    assert all(".lora_" in name or name.startswith(head) for name in own)
    wanted = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", ""): value
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    assert set(own) == set(wanted)
    gradients = torch.autograd.grad(F.cross_entropy(logits, samples.targets), [wanted[name] for name in own])
    expected = torch.cat([each.reshape(-1) for each in gradients])
    assert torch.allclose(client.release.mean(client.upload_batch([0]))[0], expected, rtol=1e-7, atol=1e-12)
    assert any("adapters" in note for note in checkpoint.notes)


def test_the_first_round_sends_less(tmp_path: Path) -> None:
    ranks = []
    for trained in (False, True):
        checkpoint = load_checkpoint(folder("bert", trained), base=text_cases.saved("bert"))
        samples = load_samples(text_cases.write_texts(tmp_path / "texts.csv"), text=checkpoint.text, limit=1)
        client = make_client(checkpoint, samples, AuditSettings(release="gradient", checks=False))
        batch = client.upload_batch([0])
        spans = {name: value.numel() for name, value in client.release.parameters.items()}
        parts = dict(zip(spans, client.release.mean(batch)[0].split(list(spans.values())), strict=True))
        first = [bool(part.any()) for name, part in parts.items() if ".lora_A." in name]
        assert all(first) if trained else not any(first)
        assert any("first round" in note for note in checkpoint.notes) is not trained
        ranks.append(int(np.linalg.matrix_rank(client.jacobian(client.release)(batch).hessian().matmat(
            torch.eye(batch.inputs[0].numel(), dtype=torch.float64)[None])[0].numpy())))  # fmt: skip
    assert ranks[0] <= ranks[1]


def test_a_base_is_named_and_never_looked_up(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="`base`"):
        load_checkpoint(folder("bert"))
    with pytest.raises(CheckpointError, match="whole model"):
        load_checkpoint(text_cases.saved("bert"), base=text_cases.saved("bert"))
    with pytest.raises(ArchitectureError, match="base"):
        load_checkpoint(folder("bert"), base=text_cases.saved("distilbert"))
    changed = tmp_path / "changed"
    shutil.copytree(folder("bert"), changed)
    config = json.loads((changed / "adapter_config.json").read_text())
    (changed / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(CheckpointError, match="LORA"):
        load_checkpoint(changed, base=text_cases.saved("bert"))


def test_images_of_a_vit_folder(tmp_path: Path) -> None:
    transformers = import_transformers()
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
    )
    with quiet(transformers), torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.ViTForImageClassification(config)
        network.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.25]}')
    checkpoint = load_checkpoint(tmp_path / "vit")
    assert (checkpoint.input_shape, checkpoint.normalization_mean, checkpoint.text) == ((1, 8, 8), [0.5], None)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", images=rng.integers(0, 256, (2, 8, 8), dtype=np.uint8), labels=np.arange(2))
    samples = load_samples(tmp_path / "data.npz", channels=1)
    with torch.no_grad():
        expected = network.eval()(pixel_values=(samples.inputs.float() - 0.5) / 0.25).logits
    result = audit(checkpoint, samples, release="gaussian:0.01", proxies=("revealed_fraction", "posterior_rmse"))
    assert [row.status for row in result.samples] == ["exact", "exact"]
    losses = F.cross_entropy(expected, samples.targets, reduction="none").tolist()
    assert [row.loss for row in result.samples] == pytest.approx(losses, rel=1e-4)
