"""LoRA adapters that PEFT saved: ``adapter_config.json`` and ``adapter_model.safetensors``, put into their base model.

Only the adapters, and heads that were saved beside them, are trained and so sent; all other parameters are frozen. The
base model is the folder that the user names: what the configuration names instead is never looked up.

Layers are PEFT's own: y = W x + b + s B A x, with s = alpha / r. In a first round B = 0, so that A has no gradient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from riskaudit.errors import ArchitectureError, CheckpointError
from riskaudit.files import sha256_of_file
from riskaudit.inputs.huggingface.folder import ADAPTER_CONFIG, read_json
from riskaudit.inputs.huggingface.library import EXTRA, import_transformers, quiet
from riskaudit.inputs.readers.torch_files import check_file, read_safetensors
from riskaudit.inputs.state_dicts import check_weights
from riskaudit.inputs.text import clean, listing

WEIGHTS = "adapter_model.safetensors"
# What decides the layers; everything else of a configuration is left where it is.
_FIELDS = (
    "r",
    "lora_alpha",
    "target_modules",
    "bias",
    "use_rslora",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "exclude_modules",
)
_PREFIX, _NAME = "base_model.model.", "default"


def is_adapter(path: Path) -> bool:
    """Whether a folder holds adapters."""
    return (path / ADAPTER_CONFIG).is_file()


def adapter_sha256(path: Path) -> str:
    """Hex SHA-256 of the adapters' weights.

    Raises:
        CheckpointError: there are none.
    """
    check_file(path / WEIGHTS, CheckpointError, WEIGHTS)
    return sha256_of_file(path / WEIGHTS)


def with_adapters(network: nn.Module, path: Path) -> tuple[nn.Module, list[str]]:
    """A base network with a folder's adapters in it, of which only these are trained; and notes for the audit.

    Args:
        network: of the base model, all of it trainable; it is changed.
        path: of the adapters.

    Raises:
        CheckpointError: no adapters that can be used.
        ArchitectureError: they don't fit the base model.
    """
    name = clean(path.resolve().name)
    config = read_json(path / ADAPTER_CONFIG)
    kind = str(config.get("peft_type", ""))
    if kind != "LORA" or config.get("use_dora"):
        shown = "DORA" if config.get("use_dora") else clean(kind, 30) or "no peft_type"
        raise CheckpointError(
            f"expected adapters of kind LORA in {name}, found {shown}; put others into the model yourself and name it "
            "with `arch=file.py:factory`"
        )
    if not (path / WEIGHTS).is_file():
        raise CheckpointError(f"{name} has no {WEIGHTS}; save the adapters as safetensors")
    weights = check_weights(read_safetensors(path / WEIGHTS, CheckpointError), name)
    _inject(network, config, name)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    expected = dict(network.named_parameters())
    filled = set[str]()
    for key, value in weights.items():
        target = _target(key, expected)
        if target is None or expected[target].shape != value.shape:
            raise ArchitectureError(
                f"{clean(key, 80)} in {name} fits no parameter of the base model; name the model that the adapters "
                "were trained on with `base`"
            )
        with torch.no_grad():
            expected[target].copy_(value)
        expected[target].requires_grad_()
        filled.add(target)
    missing = sorted(key for key in expected if ".lora_" in key and key not in filled)
    if missing:
        raise ArchitectureError(f"{name} lacks {listing(missing, 2)}, which its configuration asks for; save it again")
    trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
    heads = sorted(key for key in filled if ".lora_" not in key)
    beside = f" and {listing(heads, 2)}" if heads else ""
    notes = [
        f"only the adapters of {name}{beside} are trained and sent: {trained:,} of "
        f"{sum(value.numel() for value in network.parameters()):,} parameters"
    ]
    if _is_first_round(expected):
        notes.append(
            "every B of the adapters is zero, as in a first round: A has no gradient, and what later rounds reveal "
            "takes their own adapters"
        )
    return network, notes


def _inject(network: nn.Module, config: dict[str, Any], name: str) -> None:
    transformers = import_transformers()
    try:
        import peft
    except ImportError as cause:
        raise ArchitectureError(f"adapters need peft; {EXTRA}") from cause
    values = {field: config[field] for field in _FIELDS if config.get(field) is not None}
    try:
        with quiet(transformers), torch.random.fork_rng(devices=[]):
            peft.inject_adapter_in_model(peft.LoraConfig(**values, lora_dropout=0.0), network, adapter_name=_NAME)
    except Exception as cause:  # PEFT raises what it likes
        raise ArchitectureError(
            f"the adapters in {name} can't be put into the base model ({clean(cause, 120)}); name the model that they "
            "were trained on with `base`"
        ) from cause
    network.eval()


def _target(key: str, expected: dict[str, nn.Parameter]) -> str | None:
    """The parameter that a name in PEFT's file stands for."""
    own = key.removeprefix(_PREFIX).replace(".modules_to_save.", ".")
    for kind in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"):
        own = own.replace(f".{kind}.weight", f".{kind}.{_NAME}.weight")
    if own in expected:
        return own
    # A bias of a layer that got adapters.
    parent, _, last = own.rpartition(".")
    wrapped = f"{parent}.base_layer.{last}"
    return wrapped if wrapped in expected else None


def _is_first_round(expected: dict[str, nn.Parameter]) -> bool:
    second: list[Tensor] = [value for key, value in expected.items() if ".lora_B." in key]
    return bool(second) and not any(bool(value.any()) for value in second)
