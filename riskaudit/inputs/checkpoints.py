"""Checkpoints: a file with weights to a model that can be audited.

Nothing in the file is executed: weights come through ``torch.load(weights_only=True)``, safetensors, or
this package's reader of torch.export archives. Code runs only where the user names it
(``arch=file.py:factory``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from riskaudit.copying import copy_model
from riskaudit.errors import ArchitectureError, CheckpointError
from riskaudit.files import sha256_of_file
from riskaudit.inputs.architectures.registry import input_channels, last_width, shapes_of
from riskaudit.inputs.exported.archive import ExportedArchive, is_exported, read_exported
from riskaudit.inputs.exported.model import ExportedModel
from riskaudit.inputs.exported.steps import EXPORT_ADVICE
from riskaudit.inputs.huggingface.adapters import adapter_sha256, is_adapter
from riskaudit.inputs.huggingface.folder import is_model_folder, open_folder
from riskaudit.inputs.huggingface.models import Task, build_from_folder
from riskaudit.inputs.huggingface.tokens import TextReader
from riskaudit.inputs.models import BuiltModel, Normalized, build_model, check_normalization, stop_in_place
from riskaudit.inputs.readers.archives import checked_members, is_zip
from riskaudit.inputs.readers.npz import read_named_arrays
from riskaudit.inputs.readers.torch_files import (
    check_file,
    read_safetensors,
    read_torch_file,
    starts_like_pickle,
    starts_like_safetensors,
)
from riskaudit.inputs.state_dicts import check_weights, read_entries
from riskaudit.inputs.text import clean, listing, natural_key

CHECKPOINT_FORMATS = {
    ".pt, .pth, .bin, .ckpt": "a state dict saved by torch, bare or anywhere in a training checkpoint",
    ".safetensors": "a state dict saved by safetensors",
    ".npz": "arrays by name, or a row of them in the order of the state dict, which needs `arch`",
    "folder": "what save_pretrained of transformers wrote: config.json, safetensors (sharded too), tokenizer; needs "
    'pip install "riskaudit[hf]"',
    ".pt2": "a program saved by torch.export.save, with a batch of 1 or a dynamic batch dimension",
}
# How the note of batch norms in eval mode ends.
STORED_STATISTICS = "use their stored statistics"
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz", ".pt2")
_ACCEPTED = "state dicts in .pt, .safetensors or .npz files and torch.export programs in .pt2 files"


@dataclass(frozen=True, kw_only=True)
class Checkpoint(BuiltModel):
    """A model and where it came from.

    Attributes:
        name: the file's name without its folder.
        sha256: of the file; None for a module in memory.
        training_loss: the largest loss that the file names beside the weights.
        normalization_mean: in data units, one value or one per channel; None where the input isn't normalised.
        normalization_std: likewise.
        text: reads texts for it, where it is a model of texts.
    """

    name: str
    sha256: str | None
    training_loss: float | None = None
    normalization_mean: list[float] | None = None
    normalization_std: list[float] | None = None
    text: TextReader | None = None

    @property
    def recognised(self) -> bool:
        """Whether the architecture was found from the weights, not named."""
        return self.assumed is not None

    @property
    def num_parameters(self) -> int:
        """Number of entries of all parameters, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @classmethod
    def from_model(cls, model: nn.Module, *, name: str = "model", architecture: str | None = None) -> Checkpoint:
        """A copy of a module in memory, in eval mode; the module itself stays as it is.

        Raises:
            CheckpointError: no module, no floating-point parameters, or NaN or infinite ones.
        """
        if not isinstance(model, nn.Module):
            raise CheckpointError(f"expected a torch.nn.Module, found a {type(model).__name__}")
        shown = clean(name) or "model"
        was_training = model.training
        try:
            copied = copy_model(model).eval()
        except ArchitectureError as cause:
            raise CheckpointError(f"{shown} can't be audited: {clean(cause)}") from cause
        if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in copied.parameters()):
            copied = copied.float()
        stop_in_place(copied)
        _check_model(copied, shown)
        shapes = shapes_of(copied)
        return cls(
            model=copied,
            name=shown,
            sha256=None,
            architecture=architecture or type(model).__name__,
            input_channels=input_channels(copied),
            num_classes=last_width(shapes),
            notes=tuple(_mode_notes(copied, "switched to eval mode" if was_training else None)),
        )


def load_checkpoint(
    path: str | Path,
    *,
    arch: str | None = None,
    weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
    base: str | Path | None = None,
) -> Checkpoint:
    """Read weights and build the model that they belong to.

    Args:
        path: a file of one of `CHECKPOINT_FORMATS`, told apart by content.
        arch: a registered architecture, ``torchvision:NAME``, ``timm:NAME`` or ``file.py:factory``;
            None to recognise it from the weights.
        weights: which set of weights, where the file holds several: a prefix of their names, or its end.
        mean: put ``(x - mean) / std`` inside the model: one value or one per channel, in data units.
        std: likewise; given together with ``mean``.
        task: what the client trains, of a folder that a model of Hugging Face's was saved in; None to go by its class.
        classes: names of its outputs in order, where it has no head yet.
        base: the folder of the model that adapters belong to, where ``path`` is a folder of PEFT's.

    Raises:
        CheckpointError: the file or its weights can't be used.
        ArchitectureError: no model, or no single model, fits the weights.
        UserCodeError: ``file.py:factory`` fails or returns no module.
    """
    path = Path(path)
    check_normalization(mean, std, None)
    if is_model_folder(path) and arch is None:
        if weights is not None:
            raise CheckpointError(f"{clean(path.name)} is a folder of one model; leave out `weights`")
        checkpoint, own = _from_folder(path, task, classes, base)
        if mean is None and own is not None:
            mean, std = own
    else:
        if base is not None:
            raise CheckpointError(f"`base` is for folders of adapters, but {clean(path.name)} is none; leave it out")
        if task is not None:
            raise CheckpointError(
                f"`task` is for folders of save_pretrained, but {clean(path.name)} is none; leave it out"
            )
        _refuse_folder(path)
        check_file(path, CheckpointError, _ACCEPTED)
        checkpoint = _of_file(path, arch, weights)
    if checkpoint.text is not None and mean is not None:
        raise CheckpointError("`mean` and `std` are of pictures' channels, but the model takes texts; leave them out")
    # Unknown for (features,), which may be flattened images.
    normalization = check_normalization(mean, std, checkpoint.input_channels)
    if normalization is None:
        return checkpoint
    model = Normalized(checkpoint.model, *normalization).eval()
    return replace(checkpoint, model=model, normalization_mean=normalization[0], normalization_std=normalization[1])


def _of_file(path: Path, arch: str | None, weights: str | None) -> Checkpoint:
    """A file's model; where none is recognised and the file lies in a folder of ``save_pretrained``, that is said."""
    try:
        return _read(path, arch, weights)
    except ArchitectureError as error:
        if arch is not None or not is_model_folder(path.parent) or is_adapter(path.parent):
            raise
        raise ArchitectureError(
            f"no architecture is recognised from {clean(path.name)} alone, but it lies in a folder of save_pretrained; "
            f"hand in the folder {clean(path.parent.resolve().name)}, whose config.json says which model it is"
        ) from error


def _from_folder(
    path: Path, task: Task | None, classes: Sequence[str] | None, base: str | Path | None
) -> tuple[Checkpoint, tuple[list[float], list[float]] | None]:
    """A model that ``save_pretrained`` of transformers or PEFT wrote, and what its pixels are normalised by."""
    name, adapters = clean(path.resolve().name), path if is_adapter(path) else None
    if adapters is None and base is not None:
        raise CheckpointError(f"`base` is for folders of adapters, but {name} is a whole model; leave it out")
    if adapters is not None and base is None:
        raise CheckpointError(
            f"{name} holds adapters, which are audited in the model that they were trained on; name its folder with "
            "`base` (it is never looked up)"
        )
    folder = path if base is None else Path(base)
    if not is_model_folder(folder) or is_adapter(folder):
        raise CheckpointError(f"expected a folder with a config.json for `base`, found {clean(folder)}; check the path")
    try:
        built = build_from_folder(folder, task, classes, adapters)
        sha256 = open_folder(folder).sha256()
    except (OSError, MemoryError) as cause:
        raise CheckpointError(f"can't read {name} ({clean(cause)}); check the folder and the free memory") from cause
    notes = [*built.notes, *_mode_notes(built.model, "audited in eval mode")]
    if adapters is not None:
        notes.append(f"the base model of the adapters is {open_folder(folder).name} (sha256 {sha256})")
        sha256 = adapter_sha256(adapters)
    stop_in_place(built.model)
    fields = vars(built) | {"notes": tuple(notes)}
    own = fields.pop("normalization")
    return Checkpoint(name=name, sha256=sha256, **fields), own


def is_training_state(name: str) -> bool:
    """Whether training code keeps something else than a model's weights in files of this name."""
    return name.startswith(("optimizer", "scheduler", "rng_", "training_", "scaler"))


def checkpoint_sha256(path: Path) -> str:
    """SHA-256 of a checkpoint's file, or of what decides the model in a folder.

    Raises:
        CheckpointError: a folder that can't be used.
        OSError: what can't be read.
    """
    if not is_model_folder(path):
        return sha256_of_file(path)
    return adapter_sha256(path) if is_adapter(path) else open_folder(path).sha256()


def _refuse_folder(path: Path) -> None:
    """Name the file of a folder, such as one of ``save_pretrained``, that holds the model's weights."""
    try:
        if not path.is_dir():
            return
        entries = sorted(path.iterdir(), key=lambda entry: natural_key(entry.name))
        names = [each.name for each in entries if each.suffix.lower() in _SUFFIXES and each.is_file()]
        folders = [each.name for each in entries if is_model_folder(each)]
    except (OSError, ValueError) as cause:
        raise CheckpointError(f"can't read {clean(path)} ({clean(cause)}); check the path") from cause
    whole = [name for name in names if not name.startswith("adapter_") and not is_training_state(name)]
    if folders:
        advice = f"hand in one of its folders {listing(folders)}"
        raise CheckpointError(f"expected one model, found the folder {clean(path)} of several; {advice}")
    if len(whole) == 1:
        advice = f"hand in its file {clean(path / whole[0])}"
    elif whole:
        advice = f"hand in one of its files {listing(whole)}"
    elif any(name.startswith("adapter_") for name in names):
        advice = "it holds adapters only: put them into the model, save its whole `model.state_dict()` and hand in that"
    else:
        advice = f"none of its files holds weights; accepted are {_ACCEPTED}"
    raise CheckpointError(f"expected a file, found the folder {clean(path)}; {advice}")


def _read(path: Path, arch: str | None, weights: str | None) -> Checkpoint:
    name = clean(path.name)
    try:
        zipped = is_zip(path)
        if zipped and is_exported(checked_members(path, CheckpointError, compressed=True)):
            return _from_exported(read_exported(path), path, arch)
        entries = read_entries(read_content(path), name)
        try:
            built = build_model(entries, name, arch, weights)
        except ArchitectureError:
            # What is wrong with the weights themselves comes first.
            named = {key: tensor for key, tensor in entries.tensors.items() if tensor.ndim > 0}
            if named:
                check_weights(named, name)
            raise
    except (OSError, MemoryError) as cause:
        raise CheckpointError(f"can't read {name} ({clean(cause)}); check the file and the free memory") from cause
    model = built.model.eval()
    fields = vars(built) | {"notes": (*built.notes, *_mode_notes(model, "audited in eval mode"))}
    loss = max(entries.losses, default=None)
    return Checkpoint(name=name, sha256=sha256_of_file(path), training_loss=loss, **fields)


def read_content(path: Path) -> object:
    """What a file of one of `CHECKPOINT_FORMATS` but the last holds, as tensors, arrays and plain containers.

    Raises:
        CheckpointError: damaged, of another format, or one that claims more than it holds or needs code.
    """
    zipped, suffix = is_zip(path), path.suffix.lower()
    if zipped and suffix == ".npz":
        return read_named_arrays(path, CheckpointError)
    if (suffix == ".safetensors" or starts_like_safetensors(path)) and not zipped:
        return read_safetensors(path, CheckpointError)
    if zipped or starts_like_pickle(path) or suffix in (".pt", ".pth", ".ckpt", ".tar"):
        return read_torch_file(path, CheckpointError)
    raise CheckpointError(f"{clean(path.name)} is none of the accepted formats: {_ACCEPTED}")


def _from_exported(archive: ExportedArchive, path: Path, arch: str | None) -> Checkpoint:
    name = clean(path.name)
    if arch is not None:
        raise CheckpointError(f"{name} brings its own architecture; leave out `arch={clean(arch, 50)}`")
    archive = replace(
        archive,
        weights=check_weights(archive.weights, name) if archive.weights else {},
        constants={key: value.clone() for key, value in archive.constants.items()},
    )
    try:
        model = ExportedModel(archive).eval()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, StopIteration) as cause:
        raise CheckpointError(f"{name} holds a program that can't be read ({clean(cause)}); {EXPORT_ADVICE}") from cause
    batch, *sizes = model.input_sizes or (None,)
    if batch not in (None, 1):
        raise CheckpointError(f"{name} was exported for batches of {batch}, expected 1 or any; {EXPORT_ADVICE}")
    _check_model(model, name)
    is_fixed = bool(sizes) and all(size is not None for size in sizes)
    return Checkpoint(
        model=model,
        name=name,
        sha256=sha256_of_file(path),
        architecture="torch.export",
        input_channels=sizes[0] if len(sizes) in (2, 3, 4) else None,
        input_shape=tuple(size for size in sizes if size is not None) if is_fixed else None,
        num_classes=model.output_width,
    )


def _check_model(model: nn.Module, name: str) -> None:
    parameters = dict(model.named_parameters())
    if not any(parameter.is_floating_point() for parameter in parameters.values()):
        raise CheckpointError(f"{name} has no floating-point parameters, so no gradient; expected a trainable model")
    for key, value in [*parameters.items(), *model.named_buffers()]:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{clean(key, 60)} in {name} holds NaN or infinite weights; use a checkpoint that didn't diverge"
            )


def _mode_notes(model: nn.Module, mode: str | None) -> list[str]:
    """What eval mode means for batch norm and dropout; ``mode`` says how the model came to it, None if it was."""
    norms = {name or "model": layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    tracked = [name for name, layer in norms.items() if layer.running_mean is not None]
    untracked = [name for name in norms if name not in tracked]
    notes = []
    if tracked and mode:
        notes.append(f"{mode}: batch-norm layers {listing(tracked)} {STORED_STATISTICS}")
    if untracked:
        notes.append(
            f"batch-norm layers {listing(untracked)} keep no statistics and use the batch's own, even in eval mode"
        )
    dropouts = [name for name, layer in model.named_modules() if isinstance(layer, nn.modules.dropout._DropoutNd)]
    if dropouts and mode and mode.startswith("switched"):
        notes.append(f"{mode}: dropout layers {listing(dropouts)} pass their input on")
    return notes
