"""Small random transformers of the libraries that people take them from, called with embedded sequences or images.

Two layers, 500 words, width 16. A row of zeros is padding, as far as the mask goes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contracts.same_jacobian import random_batch, randomise
from torch import Tensor, nn

from riskaudit.release import Batch
from riskaudit.release.model import LossFunction
from riskaudit.torchvision_compat import import_torchvision

WORDS, LENGTH, WIDTH, CLASSES, PIXELS = 500, 8, 16, 3, 8
COMMON = {"vocab_size": WORDS, "num_labels": CLASSES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {
    **COMMON, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 20,
}  # fmt: skip
DISTILBERT = {**COMMON, "dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 20}
GPT2 = {**COMMON, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 20}
VIT = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "image_size": PIXELS, "patch_size": 4, "num_labels": CLASSES,
}  # fmt: skip


class Embedded(nn.Module):
    """A model of a language, called with embedded sequences [B, T, E]; returns its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs_embeds=x, attention_mask=(x != 0).any(-1).long()).logits
        return logits


class Pictured(nn.Module):
    """A model of images [B, C, H, W]; returns its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=x).logits
        return logits


def words_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over all places that have a target, as language models are trained."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-100)


def library(name: str) -> Any:
    """A library that may be missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        return pytest.importorskip(name)


def of_transformers(config: str, model: str, given: dict[str, Any], **options: Any) -> nn.Module:
    module = library("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = getattr(module, model)(getattr(module, config)(**{**given, **options}))
    return made


def with_adapters(targets: Sequence[str]) -> nn.Module:
    """BERT of which only low-rank adapters and the head train."""
    bert = of_transformers("BertConfig", "BertForSequenceClassification", BERT)
    peft = library("peft")
    config = peft.LoraConfig(r=2, target_modules=list(targets), task_type="SEQ_CLS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = peft.get_peft_model(bert, config)
    return made


def of_timm(**options: Any) -> nn.Module:
    library("timm")
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        img_size=PIXELS, patch_size=4, embed_dim=WIDTH, depth=2, num_heads=2, num_classes=CLASSES, **options
    )
    return model


def of_torchvision() -> nn.Module:
    import_torchvision()
    from torchvision.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(PIXELS, 4, 2, 2, WIDTH, 24, num_classes=CLASSES)
    return model


@dataclass(frozen=True)
class TransformerCase:
    """A model with samples for it.

    Attributes:
        make: the model.
        kind: of its inputs: "images", "texts" with one label each, "words" with one at every place.
        left: sequences are padded on the left.
        rounds: the model itself converts to single precision in between.
    """

    make: Callable[[], nn.Module]
    kind: str
    left: bool = False
    rounds: bool = False

    def model(self) -> nn.Module:
        """Random weights in double precision; frozen ones stay as they are."""
        made = self.make()
        trained = [name for name, weight in made.named_parameters() if weight.requires_grad]
        randomise(made)
        assert trained == [name for name, weight in made.named_parameters() if weight.requires_grad]
        return made

    @property
    def loss(self) -> LossFunction:
        """Of one sample or of several."""
        return words_loss if self.kind == "words" else F.cross_entropy

    def batch(self, count: int, padded: bool = True) -> Batch:
        """Sequences of different lengths, or images."""
        if self.kind == "images":
            return random_batch(count, 3, PIXELS, PIXELS, classes=CLASSES)
        batch = random_batch(count, LENGTH, WIDTH, classes=CLASSES)
        targets = batch.targets
        if self.kind == "words":
            targets = torch.randint(WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(1))
        inputs = batch.inputs
        for number in range(count if padded else 0):
            rest = slice(0, number % 4) if self.left else slice(LENGTH - number % 4, LENGTH)
            inputs[number, rest] = 0
            if self.kind == "words":
                targets[number, rest] = -100
        return Batch(inputs, targets)


def hugging_face(config: str, model: str, given: dict[str, Any], **options: Any) -> Callable[[], nn.Module]:
    return lambda: Embedded(of_transformers(config, model, given, **options))


EAGER = {"attn_implementation": "eager"}
CASES = {
    "bert": TransformerCase(hugging_face("BertConfig", "BertForSequenceClassification", BERT), "texts"),
    "bert, eager attention": TransformerCase(
        hugging_face("BertConfig", "BertForSequenceClassification", BERT, **EAGER), "texts"
    ),
    "bert, tanh gelu": TransformerCase(
        hugging_face("BertConfig", "BertForSequenceClassification", BERT, hidden_act="gelu_new"), "texts"
    ),
    "bert, masked words": TransformerCase(hugging_face("BertConfig", "BertForMaskedLM", BERT), "words"),
    "distilbert": TransformerCase(
        hugging_face("DistilBertConfig", "DistilBertForSequenceClassification", DISTILBERT), "texts"
    ),
    "distilbert, masked words": TransformerCase(
        hugging_face("DistilBertConfig", "DistilBertForMaskedLM", DISTILBERT), "words"
    ),
    "gpt2": TransformerCase(hugging_face("GPT2Config", "GPT2ForSequenceClassification", GPT2), "texts", left=True),
    "gpt2, next words": TransformerCase(hugging_face("GPT2Config", "GPT2LMHeadModel", GPT2), "words"),
    "gpt2, next words, eager attention": TransformerCase(
        hugging_face("GPT2Config", "GPT2LMHeadModel", GPT2, **EAGER), "words"
    ),
    "bert with adapters": TransformerCase(lambda: Embedded(with_adapters(["query", "value"])), "texts"),
    "bert with adapters everywhere": TransformerCase(lambda: Embedded(with_adapters(["query", "dense"])), "texts"),
    "vit": TransformerCase(
        lambda: Pictured(of_transformers("ViTConfig", "ViTForImageClassification", VIT)), "images"
    ),
    "vit, eager attention": TransformerCase(
        lambda: Pictured(of_transformers("ViTConfig", "ViTForImageClassification", VIT, **EAGER)),
        "images",
        rounds=True,
    ),
    "vit of timm": TransformerCase(of_timm, "images"),
    "vit of timm, mean of the tokens": TransformerCase(
        lambda: of_timm(class_token=False, global_pool="avg", init_values=0.1, qk_norm=True), "images"
    ),
    "vit of torchvision": TransformerCase(of_torchvision, "images"),
}  # fmt: skip
# Architectures beyond those, for what else their layers do.
LLAMA = {
    **COMMON, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 20,
}  # fmt: skip
MORE_CASES = {
    "roberta": TransformerCase(hugging_face("RobertaConfig", "RobertaForSequenceClassification", BERT), "texts"),
    "albert, one layer twice": TransformerCase(
        hugging_face("AlbertConfig", "AlbertForSequenceClassification", BERT, embedding_size=WIDTH), "texts"
    ),
    "llama": TransformerCase(hugging_face("LlamaConfig", "LlamaForCausalLM", LLAMA, **EAGER), "words", rounds=True),
}
