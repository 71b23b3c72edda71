"""Folders of save_pretrained: the model that is audited is theirs, and what is broken or hostile is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import text_cases
import torch

from riskaudit.copying import copy_model
from riskaudit.errors import ArchitectureError, CheckpointError, RiskauditError, SamplesError, SettingsError
from riskaudit.inputs import check_compatibility, load_checkpoint, load_loss, load_samples
from riskaudit.inputs.huggingface.sequences import PADDING, TextModel


def changed(tmp_path: Path, kind: str = "bert", **config: Any) -> Path:
    """A copy of a folder with other values in its configuration; None removes one."""
    folder = tmp_path / "changed"
    shutil.copytree(text_cases.saved(kind), folder)
    values = json.loads((folder / "config.json").read_text())
    values.update(config)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


@pytest.mark.parametrize("kind", text_cases.KINDS)
def test_embedded_texts_have_the_models_own_logits_whatever_they_are_padded_to(kind: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(text_cases.saved(kind))
    samples = load_samples(text_cases.write_texts(tmp_path / "texts.csv"), text=checkpoint.text)
    network = text_cases.network_of(kind, 60)
    names = dict(network.named_parameters())
    assert [name for name, _ in checkpoint.model.named_parameters()] == list(names)
    assert len(set(samples.lengths)) > 1
    with torch.no_grad():
        embedded = checkpoint.model(samples.inputs.float())
        by_number = checkpoint.model(samples.tokens.ids)
        for index, length in enumerate(samples.lengths):
            expected = network(input_ids=samples.tokens.ids[index : index + 1, :length]).logits[0]
            assert torch.allclose(embedded[index], expected, atol=1e-5)
            assert torch.allclose(by_number[index], expected, atol=1e-5)
    assert not samples.inputs[samples.tokens.ids == PADDING].any()


def test_a_copy_uses_its_own_weights() -> None:
    model = load_checkpoint(text_cases.saved("bert")).model
    assert isinstance(model, TextModel)
    copied = copy_model(model).double()
    inputs = torch.randn(1, 4, text_cases.WIDTH, dtype=torch.float64)
    before = copied(inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(copied(inputs), before)
    assert copied.word_embedding.weight.dtype == torch.float64


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".txt"])
def test_formats_of_texts(suffix: str, tmp_path: Path) -> None:
    task = "masked-lm" if suffix == ".txt" else "classification"
    checkpoint = load_checkpoint(text_cases.saved("bert", "MaskedLM" if suffix == ".txt" else "SequenceClassification"))
    assert checkpoint.text is not None
    assert checkpoint.text.task == task
    samples = load_samples(text_cases.write_texts(tmp_path / f"texts{suffix}"), text=checkpoint.text, limit=3)
    assert samples.ids == ("0", "1", "2")
    words = text_cases.SENTENCES[1].split()
    assert samples.lengths[1] == len(words) + 2
    assert samples.tokens.ids[1, 0] == text_cases.SPECIAL.index("[CLS]")
    if suffix != ".txt":
        assert samples.targets.tolist() == [0, 1, 2]


def test_shards_hold_the_same_model(tmp_path: Path) -> None:
    folder = text_cases.save(tmp_path / "sharded", "bert", max_shard_size="4KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    whole, parts = (load_checkpoint(path) for path in (text_cases.saved("bert"), folder))
    for (name, one), (_, other) in zip(whole.model.named_parameters(), parts.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert whole.sha256 != parts.sha256
    next(folder.glob("model-00002*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "a\\b"])
def test_an_index_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    folder = text_cases.save(tmp_path / "sharded", "bert", max_shard_size="4KB")
    shutil.copy(next(folder.glob("model-00001*.safetensors")), tmp_path / "secret.safetensors")
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = name
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="isn't in the folder itself"):
        load_checkpoint(folder)


def test_half_precision_is_read_exactly_and_said(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "half"
    shutil.copytree(text_cases.saved("bert"), folder)
    weights = {key: value.bfloat16() for key, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = load_checkpoint(folder)
    rows = dict(checkpoint.model.named_parameters())["bert.embeddings.word_embeddings.weight"]
    assert rows.dtype == torch.float32
    assert torch.equal(rows, weights["bert.embeddings.word_embeddings.weight"].float())
    assert any("bfloat16" in note for note in checkpoint.notes)


def test_a_file_of_a_folder_names_the_folder() -> None:
    with pytest.raises(ArchitectureError, match="hand in the folder tiny-bert"):
        load_checkpoint(text_cases.saved("bert") / "model.safetensors")


def test_a_head_that_the_folder_lacks_is_drawn_and_said(tmp_path: Path) -> None:
    from riskaudit.inputs.huggingface.library import import_transformers, quiet

    transformers = import_transformers()
    folder = tmp_path / "base"
    with quiet(transformers):
        transformers.BertModel(text_cases.config_of("bert", 60)).save_pretrained(folder)
    with pytest.raises(SettingsError, match="task"):
        load_checkpoint(folder)
    first, second = (load_checkpoint(folder, task="classification", classes=["a", "b"]) for _ in range(2))
    assert first.num_classes == 2
    assert any("classifier" in note and "random" in note for note in first.notes)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_what_a_folder_lacks_below_its_head_is_no_draw(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = changed(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.attention.self.query.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": None}, "model_type"),
        ({"model_type": "never-seen", "auto_map": {"AutoModel": "code.Model"}}, "never run"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": 10**9}, "vocab_size"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_attention_heads": 3}, "config.json|don't fit"),
        ({"num_hidden_layers": 3}, "lacks"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configurations_that_lie(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RiskauditError, match=words):
        load_checkpoint(changed(tmp_path, **config))


def test_code_of_a_folder_is_never_imported(tmp_path: Path) -> None:
    folder = changed(tmp_path, auto_map={"AutoModelForSequenceClassification": "code.Model"})
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert load_checkpoint(folder).architecture == "BertForSequenceClassification"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_broken_configuration_is_one_sentence(content: str, tmp_path: Path) -> None:
    folder = changed(tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("texts", "labels", "words"),
    [
        (("no fever", ""), (0, 1), "text 1 .* is empty"),
        (("no fever", "well " * 15), (0, 1), "text 1 .* has 17 tokens, .* takes 16"),
        (("no fever", "[PAD] well"), (0, 1), "text 1 .* exactly zero"),
        (("no fever", "well"), (0, "x"), "has the label|is none|names 2 classes|isn't a number|of text 1"),
    ],
    ids=["empty", "long", "padding in the text", "words"],
)
def test_texts_that_cannot_be_audited(texts: Any, labels: Any, words: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(text_cases.saved("bert"))
    file = text_cases.write_texts(tmp_path / "texts.jsonl", texts, labels)
    loss = load_loss("cross-entropy")
    with pytest.raises(SamplesError, match=words) as raised:
        check_compatibility(checkpoint, load_samples(file, text=checkpoint.text, loss=loss), loss)
    assert "fever" not in str(raised.value)


def test_longer_texts_are_cut_on_demand(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(text_cases.saved("bert"))
    file = text_cases.write_texts(tmp_path / "texts.csv", ("no fever", "well " * 15), (0, 1))
    assert load_samples(file, text=checkpoint.text, max_tokens=6).lengths == [4, 6]


def test_a_folder_without_tokenizer_takes_numbers(tmp_path: Path) -> None:
    import numpy as np

    folder = changed(tmp_path)
    (folder / "tokenizer.json").unlink()
    checkpoint = load_checkpoint(folder)
    with pytest.raises(SamplesError, match="no tokenizer"):
        load_samples(text_cases.write_texts(tmp_path / "texts.csv"), text=checkpoint.text)
    arrays = {"input_ids": np.full((2, 5), 7), "attention_mask": np.array([[1] * 5, [1, 1, 1, 0, 0]])}
    np.savez(tmp_path / "tokens.npz", labels=np.array([0, 1]), **arrays)
    samples = load_samples(tmp_path / "tokens.npz", text=checkpoint.text)
    assert samples.lengths == [5, 3]
    assert samples.targets.tolist() == [0, 1]


def test_targets_of_language_models(tmp_path: Path) -> None:
    file = text_cases.write_texts(tmp_path / "texts.txt")
    causal = load_checkpoint(text_cases.saved("gpt2", "CausalLM"))
    samples = load_samples(file, text=causal.text)
    length = samples.lengths[0]
    assert samples.targets[0, : length - 1].tolist() == samples.tokens.ids[0, 1:length].tolist()
    assert set(samples.targets[0, length - 1 :].tolist()) == {-100}
    masked = load_checkpoint(text_cases.saved("bert", "MaskedLM"))
    first, second = (load_samples(file, text=masked.text) for _ in range(2))
    assert torch.equal(first.targets, second.targets)
    mask = text_cases.SPECIAL.index("[MASK]")
    for index, length in enumerate(first.lengths):
        told = first.targets[index] != -100
        assert told.sum() == max(1, round(0.15 * length))
        assert torch.equal(first.tokens.ids[index] == mask, told)
