"""A folder of transformers to a model that can be audited.

The class is the one that transformers registers for the folder's type and the task; what a folder brings in code is
never imported. Sizes that ``config.json`` claims are held against the weights before memory is taken for them. What the
weights lack of a head (a folder that was only pretrained) is drawn at random, as fine-tuning begins, and said.

A model of texts becomes a function of embedded sequences (`sequences`). Whether its attention looks at all positions or
at earlier ones only is found by running it: the function has to give what the model itself makes of the same tokens, or
the model is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from riskaudit.errors import ArchitectureError, CheckpointError, SettingsError
from riskaudit.inputs.huggingface.adapters import with_adapters
from riskaudit.inputs.huggingface.folder import ModelFolder, open_folder, read_json
from riskaudit.inputs.huggingface.library import import_transformers, quiet
from riskaudit.inputs.huggingface.sequences import Attention, TextModel
from riskaudit.inputs.huggingface.tokens import TextReader, make_reader
from riskaudit.inputs.models import BuiltModel
from riskaudit.inputs.state_dicts import check_weights
from riskaudit.inputs.text import clean, listing

Task: TypeAlias = Literal["classification", "causal-lm", "masked-lm"]
TASKS: tuple[Task, ...] = get_args(Task)
_IMAGES = "image-classification"
_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    _IMAGES: "AutoModelForImageClassification",
}
# How the names of classes end that tell the task.
_ENDINGS = {
    "ForSequenceClassification": "classification",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForMaskedLM": "masked-lm",
    "ForImageClassification": _IMAGES,
}
_HALF = (torch.float16, torch.bfloat16)
# Tokens of the sequence that the function is held against the model with, and the agreement in float64.
_TRIED, _AGREEMENT = 5, 1e-9


@dataclass(frozen=True, kw_only=True)
class FolderModel(BuiltModel):
    """A built model, and what reads its texts.

    Attributes:
        text: None for models of images.
        normalization: mean and std that the folder's image processor takes of pixels in [0, 1]; None without.
    """

    text: TextReader | None = None
    normalization: tuple[list[float], list[float]] | None = None


def build_from_folder(
    path: Path, task: Task | None, classes: Sequence[str] | None = None, adapters: Path | None = None
) -> FolderModel:
    """The model of a folder for a task.

    Args:
        path: the folder.
        task: None to go by the folder's own class.
        classes: names of the outputs, where a new head is made.
        adapters: the folder of adapters that are put into it, and alone are trained.

    Raises:
        CheckpointError: files that can't be used.
        ArchitectureError: no class of transformers for this, or weights that don't fit it.
        SettingsError: a task that has to be named, or doesn't fit.
    """
    folder = open_folder(path)
    chosen = _task_of(folder, task)
    transformers = import_transformers()
    config = _config(transformers, folder)
    model_class = _class_of(transformers, config, folder, chosen)
    stored = folder.weights()
    weights = check_weights(stored, folder.name)
    _check_sizes(config, weights, folder)
    if chosen == "classification" and classes is not None and not _has_head(folder, chosen):
        config.num_labels = len(classes)
    network, missing = _filled(transformers, model_class, config, weights, folder)
    notes = [*_dtype_notes(stored), *_head_notes(missing, folder)]
    if adapters is not None:
        network, said = with_adapters(network, adapters)
        notes += said
    num_classes = None if chosen in ("causal-lm", "masked-lm") else int(config.num_labels)
    if chosen == _IMAGES:
        channels = getattr(config, "num_channels", None)
        size = getattr(config, "image_size", None)
        shape = (channels, size, size) if isinstance(channels, int) and isinstance(size, int) else None
        return FolderModel(
            model=network,
            architecture=type(network).__name__,
            input_channels=channels,
            input_shape=shape,
            num_classes=num_classes,
            notes=tuple(notes),
            normalization=_normalization(path),
        )
    model = _embedded(network, folder)
    notes += _embedding_notes(model)
    return FolderModel(
        model=model,
        architecture=type(network).__name__,
        num_classes=num_classes,
        notes=tuple(notes),
        text=make_reader(folder, config, model.word_embedding, chosen),  # type: ignore[arg-type]
    )


def _task_of(folder: ModelFolder, task: Task | None) -> str:
    names = [str(name) for name in folder.config.get("architectures") or []]
    own = next((kind for name in names for ending, kind in _ENDINGS.items() if name.endswith(ending)), None)
    if task is None:
        if own is None:
            actual = f"is of class {listing(names, 2)}" if names else "names no class"
            raise SettingsError(
                f"expected `task` to say what the client trains ({', '.join(TASKS)}), since {folder.name} {actual}, "
                "which has no head for any; give `task=classification`, say"
            )
        return own
    if own == _IMAGES:
        raise SettingsError(f"`task={task}` is for texts, but {folder.name} is a model of images; leave `task` out")
    return task


def _config(transformers: Any, folder: ModelFolder) -> Any:
    """The configuration as transformers' own class has it, without what names code, kernels or files."""
    left_out = ("auto_map", "_name_or_path", "attn_implementation", "_attn_implementation", "model_type")
    values = {key: value for key, value in folder.config.items() if key not in left_out}
    if folder.model_type not in transformers.CONFIG_MAPPING:
        code = "; it brings its own code, which is never run" if folder.config.get("auto_map") else ""
        raise ArchitectureError(
            f"transformers {transformers.__version__} knows no model of type {clean(folder.model_type, 40)!r}, which "
            f"{folder.name} is{code}; build the model yourself with `arch=file.py:factory`"
        )
    try:
        with quiet(transformers):
            return transformers.AutoConfig.for_model(folder.model_type, **values)
    except Exception as cause:  # checks of values by transformers raise what they like
        raise CheckpointError(
            f"config.json in {folder.name} isn't one of a {clean(folder.model_type, 40)} model ({clean(cause, 120)}); "
            "save the model again"
        ) from cause


def _class_of(transformers: Any, config: Any, folder: ModelFolder, task: str) -> Any:
    mapping = getattr(transformers, _CLASSES[task])._model_mapping
    if type(config) not in mapping:
        raise ArchitectureError(
            f"transformers has no model of type {folder.model_type} for {task}; give another `task`, or build the "
            "model yourself with `arch=file.py:factory`"
        )
    chosen = mapping[type(config)]
    return chosen[0] if isinstance(chosen, tuple) else chosen


def _check_sizes(config: Any, weights: Mapping[str, Tensor], folder: ModelFolder) -> None:
    """Refuse sizes that the weights don't bear out, before anything is made of them."""
    sizes = {int(size) for tensor in weights.values() for size in tensor.shape}
    most = max(sizes, default=0)
    for name in ("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"):
        value = getattr(config, name, None)
        if isinstance(value, int) and name in ("hidden_size", "vocab_size") and value not in sizes:
            raise CheckpointError(
                f"config.json in {folder.name} says {name}={value}, a size that none of the weights has; copy the "
                "folder again, or save the model with its configuration"
            )
        # Rotary positions have no weights.
        if isinstance(value, int) and name == "intermediate_size" and not 0 < value <= most:
            raise CheckpointError(f"config.json in {folder.name} says {name}={value}, more than any weight has")
    layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > len(weights):
        raise CheckpointError(
            f"config.json in {folder.name} says num_hidden_layers={layers}, but there are {len(weights)} tensors in "
            "all; copy the folder again"
        )
    if int(getattr(config, "num_labels", 0) or 0) > 10**6:
        raise CheckpointError(f"config.json in {folder.name} says num_labels={config.num_labels}; save the model again")


def _filled(
    transformers: Any, model_class: Any, config: Any, weights: Mapping[str, Tensor], folder: ModelFolder
) -> tuple[nn.Module, list[str]]:
    """The network in eval mode, and names of the parameters that the folder lacks."""
    dtype = torch.float64 if any(each.dtype == torch.float64 for each in weights.values()) else torch.float32
    before = torch.get_default_dtype()
    try:
        with quiet(transformers), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network, told = model_class.from_pretrained(
                None,
                config=config,
                state_dict=dict(weights),
                output_loading_info=True,
                attn_implementation="eager",
                dtype=dtype,
            )
    except Exception as cause:  # transformers raises what it likes
        raise ArchitectureError(
            f"the weights in {folder.name} don't fit {model_class.__name__} as its config.json describes it "
            f"({clean(cause, 120)}); save the model again"
        ) from cause
    finally:
        torch.set_default_dtype(before)
    if told["mismatched_keys"]:
        raise ArchitectureError(f"the weights in {folder.name} have other sizes than its config.json says")
    missing = sorted(told["missing_keys"])
    body = [name for name in missing if name.startswith(f"{network.base_model_prefix}.") and ".pooler." not in name]
    if body:
        raise CheckpointError(
            f"{folder.name} lacks {listing(body, 2)}, which {model_class.__name__} has below its head; a shard may be "
            "missing: copy the folder again"
        )
    network = _with_linear_layers(network.eval())
    for parameter in network.parameters():
        parameter.requires_grad_()
    return network, missing


def _with_linear_layers(network: nn.Module) -> nn.Module:
    """GPT-2's layers y = x W + b as fully connected layers: the same entries, in the order of the transposed matrix."""
    for name, layer in list(network.named_modules()):
        if type(layer).__name__ != "Conv1D" or not isinstance(layer.weight, Tensor) or layer.weight.ndim != 2:
            continue
        width, outputs = layer.weight.shape
        linear = nn.Linear(width, outputs, bias=True, device="meta")
        linear.weight = nn.Parameter(layer.weight.detach().mT.contiguous())
        linear.bias = layer.bias
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, linear.train(layer.training))
    return network


def _has_head(folder: ModelFolder, task: str) -> bool:
    names = [str(name) for name in folder.config.get("architectures") or []]
    return any(name.endswith(ending) for name in names for ending, kind in _ENDINGS.items() if kind == task)


def _dtype_notes(stored: Mapping[str, Tensor]) -> list[str]:
    half = sorted({str(each.dtype).removeprefix("torch.") for each in stored.values() if each.dtype in _HALF})
    if not half:
        return []
    return [
        f"the weights are stored in {' and '.join(half)}, and audited as the same numbers in float32 or float64: a "
        "client that computes in half precision rounds its gradient besides"
    ]


def _head_notes(missing: Sequence[str], folder: ModelFolder) -> list[str]:
    if not missing:
        return []
    return [
        f"{folder.name} lacks {listing(missing, 3)}: drawn at random (seed 0), as in the first round of fine-tuning; "
        "what later rounds reveal takes their own weights"
    ]


def _normalization(path: Path) -> tuple[list[float], list[float]] | None:
    """What the folder's image processor subtracts and divides by, per channel."""
    file = path / "preprocessor_config.json"
    if not file.is_file():
        return None
    settings = read_json(file)
    mean, std = settings.get("image_mean"), settings.get("image_std")
    if settings.get("do_normalize") is False or not isinstance(mean, list) or not isinstance(std, list):
        return None
    if not all(isinstance(each, int | float) for each in (*mean, *std)):
        raise CheckpointError(f"{file.name} in {clean(path.name)} has an image_mean or image_std that is no number")
    return [float(each) for each in mean], [float(each) for each in std]


def _embedding_notes(model: TextModel) -> list[str]:
    weight = model.word_embedding.weight
    if isinstance(weight, Tensor) and not weight.requires_grad:
        return []
    if model.is_tied:
        return [
            "the output layer's matrix is the word embedding: J has its gradient as the output layer makes it, without "
            "the rows that looking tokens up adds; token_recovery and checks have both"
        ]
    return [
        "J is taken at the embedded tokens and leaves out the word embedding's own gradient, whose rows name the "
        "tokens: token_recovery and the check embedding-rows have it"
    ]


def _embedded(network: Any, folder: ModelFolder) -> TextModel:
    """The network as a function of embedded sequences, once it was seen to be the same.

    Raises:
        ArchitectureError: it isn't, whichever positions look at which.
    """
    by_last = hasattr(network, "score") and "SequenceClassification" in type(network).__name__
    embedding = network.get_input_embeddings()
    rows = embedding.weight.detach()
    tokens = _probe(rows, getattr(network.config, "pad_token_id", None))
    orders: tuple[Attention, ...] = ("bidirectional", "causal")
    with torch.no_grad():
        try:
            expected = network(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
            expected = expected.transpose(1, 2) if expected.ndim == 3 else expected
            for order in orders:
                model = TextModel(network, order, by_last)
                if all(_agree(model(each), expected) for each in (embedding(tokens), tokens)):
                    return model
        except Exception as cause:  # any code of transformers
            raise ArchitectureError(
                f"{type(network).__name__} in {folder.name} can't be run on embedded tokens ({clean(cause, 120)}); "
                "write a model of embeddings yourself and name it with `arch=file.py:factory`"
            ) from cause
    raise ArchitectureError(
        f"{type(network).__name__} in {folder.name} makes something else of embedded tokens than of the tokens, so "
        "that what would be audited isn't the model; write a model of embeddings yourself and name it with "
        "`arch=file.py:factory`"
    )


def _probe(rows: Tensor, padding: int | None) -> Tensor:
    """Numbers of a few tokens [1, T], none of which is padding or embedded as zeros."""
    usable = [number for number in range(min(len(rows), 64 * _TRIED)) if number != padding and bool(rows[number].any())]
    return torch.tensor([usable[-_TRIED:] or [0]], device=rows.device)


def _agree(outputs: Tensor, expected: Tensor) -> bool:
    limit = _AGREEMENT if expected.dtype == torch.float64 else 1e-4
    return outputs.shape == expected.shape and bool(
        ((outputs - expected).abs() <= limit * (1 + expected.abs().max())).all()
    )
