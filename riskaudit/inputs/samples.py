"""Samples: any of the accepted sources to inputs [N, *S] in data units and their targets.

Formats are told apart by what the path is and how it ends; contents are checked against what they
claim before memory is allocated. Identifiers are hidden unless asked for (see identifiers.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from riskaudit.errors import SamplesError, UserCodeError
from riskaudit.files import sha256_of_file
from riskaudit.inputs.archives import is_zip
from riskaudit.inputs.arrays import (
    RawSamples,
    are_images,
    as_tensor,
    check_lengths,
    raw_from_mapping,
    to_inputs,
    to_targets,
)
from riskaudit.inputs.identifiers import content_key, file_chunks, hide_ids
from riskaudit.inputs.identifiers import plain_ids as shown_ids
from riskaudit.inputs.image_folders import hashes_of, list_folder, read_folder
from riskaudit.inputs.losses import Loss
from riskaudit.inputs.npz import read_npz
from riskaudit.inputs.tables import read_csv, read_parquet
from riskaudit.inputs.text import clean
from riskaudit.inputs.torch_files import check_file, read_safetensors, read_torch_file
from riskaudit.inputs.user_code import call_user_function, is_user_spec, load_user_function

SAMPLE_FORMATS = {
    ".npz": "arrays images|x|inputs and labels|y|targets, optionally ids and class_names",
    ".pt, .pth": "the same names as a dict of tensors, or a pair (inputs, targets)",
    ".safetensors": "the same names as tensors",
    "folder": "a folder of images per class",
    ".csv": "numeric features, a label column (label, y, target or the last), optionally id",
    ".parquet": 'as .csv; needs pip install "riskaudit[parquet]"',
    "file.py:function": "a function without arguments that returns (inputs, targets) or a dict of them",
}
_ACCEPTED = ".npz, .pt, .safetensors, .csv, .parquet, a folder of images per class, and file.py:function"


@dataclass(frozen=True)
class Samples:
    """N samples to audit.

    Attributes:
        inputs: [N, *S] float64 in data units; images as [N, C, H, W].
        targets: int64 [N] class numbers, or float64 [N, ...].
        ids: one per sample, distinct; "0", "1", ... or hashes of identifiers.
        class_names: by class number, None where the source has none.
        name: the source's name without its folder.
        sha256: of the file, or of all names and contents of a folder; None for functions and tensors.
        are_images: inputs are grey or colour images.
    """

    inputs: Tensor
    targets: Tensor
    ids: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    name: str = "samples"
    sha256: str | None = None
    are_images: bool = False

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, indices: list[int]) -> Samples:
        """Some of the samples, with their ids; the hash stays that of the whole file."""
        return replace(
            self,
            inputs=self.inputs[indices],
            targets=self.targets[indices],
            ids=tuple(self.ids[index] for index in indices),
        )

    @classmethod
    def from_tensors(
        cls,
        inputs: Tensor,
        targets: Tensor,
        ids: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "samples",
    ) -> Samples:
        """Samples in memory: inputs [N, *S] (uint8 is divided by 255), targets [N, ...].

        ``ids`` are kept as they are, since the caller chose them.

        Raises:
            SamplesError: lengths that differ, no samples, or NaN or infinite values.
        """
        shown = clean(name) or "samples"
        raw = RawSamples(as_tensor(inputs, "inputs", shown), as_tensor(targets, "targets", shown), ids, class_names)
        return _assemble(raw, _Source(shown, None, b""), channels=None, limit=None, plain_ids=True, loss=None)


@dataclass(frozen=True)
class _Source:
    """Where samples came from: name and hash for the report, and the key that hides their ids."""

    name: str
    sha256: str | None
    key: bytes


def load_samples(
    path: str | Path,
    *,
    channels: int | None = None,
    limit: int | None = None,
    plain_ids: bool = False,
    loss: Loss | None = None,
) -> Samples:
    """Read samples from a file, a folder or the user's function.

    Args:
        path: one of `SAMPLE_FORMATS`.
        channels: input channels of the model; tells image layouts apart and converts image files.
        limit: take so many: the first ones, in image folders spread over the classes.
        plain_ids: keep file names and id columns instead of hashing them.
        loss: decides whether targets are class numbers or floats; None goes by their dtype.

    Raises:
        SamplesError: the source can't be used.
        UserCodeError: the user's function fails or returns something else.
    """
    if limit is not None and limit < 1:
        raise SamplesError(f"expected --limit of at least 1, found {limit}")
    raw, source = _read(path, channels, limit, loss)
    return _assemble(raw, source, channels=channels, limit=limit, plain_ids=plain_ids, loss=loss)


def _read(path: str | Path, channels: int | None, limit: int | None, loss: Loss | None) -> tuple[RawSamples, _Source]:
    spec, path = str(path), Path(path)
    name = clean(path.name)
    try:
        if is_user_spec(spec):
            return _from_function(spec)
        if path.is_dir():
            folder = list_folder(path)
            sha256, key = hashes_of(folder)
            return read_folder(folder, channels, limit), _Source(clean(path.resolve().name), sha256, key)
        check_file(path, SamplesError, _ACCEPTED)
        raw = _from_file(path, limit, loss)
        key = content_key(file_chunks(path)) if raw.ids is not None else b""
        return raw, _Source(name, sha256_of_file(path), key)
    except (OSError, MemoryError, ValueError) as cause:
        raise SamplesError(f"can't read {name} ({clean(cause)}); check the file and the free memory") from cause


def _from_file(path: Path, limit: int | None, loss: Loss | None) -> RawSamples:
    name, suffix = clean(path.name), path.suffix.lower()
    if suffix == ".npz":
        if not is_zip(path):
            raise SamplesError(f"{name} is no .npz archive; save it with numpy.savez")
        return raw_from_mapping(read_npz(path, limit), name)
    if suffix in (".pt", ".pth"):
        return _from_pair_or_mapping(read_torch_file(path, SamplesError), name, SamplesError)
    if suffix == ".safetensors":
        return raw_from_mapping(read_safetensors(path, SamplesError), name)
    if suffix == ".csv":
        return read_csv(path, limit, loss)
    if suffix == ".parquet":
        return read_parquet(path, limit, loss)
    raise SamplesError(f"{name} is none of the accepted formats: {_ACCEPTED}")


def _from_function(spec: str) -> tuple[RawSamples, _Source]:
    content = call_user_function(load_user_function(spec), spec)
    name = clean(spec.replace("\\", "/").rpartition("/")[2])
    if isinstance(content, Samples):
        numbered = content.ids == tuple(str(index) for index in range(len(content)))
        ids = None if numbered else content.ids
        raw = RawSamples(content.inputs, content.targets, ids, content.class_names)
    else:
        raw = _from_pair_or_mapping(content, name, UserCodeError)
    # Ids that code makes may be anything, so they are hidden like those of a file; the inputs are the secret.
    key = content_key([raw.inputs.contiguous().numpy().tobytes()]) if raw.ids is not None else b""
    return raw, _Source(name, None, key)


def _from_pair_or_mapping(content: Any, name: str, error: type[SamplesError] | type[UserCodeError]) -> RawSamples:
    if isinstance(content, Mapping):
        return raw_from_mapping({str(key): value for key, value in content.items()}, name)
    if isinstance(content, tuple | list) and len(content) == 2:
        return RawSamples(as_tensor(content[0], "inputs", name), as_tensor(content[1], "targets", name))
    found = f"{len(content)} values" if isinstance(content, tuple | list) else f"a {type(content).__name__}"
    raise error(f"expected (inputs, targets) or a dict of them from {name}, found {found}; return or save a pair")


def _assemble(
    raw: RawSamples, source: _Source, *, channels: int | None, limit: int | None, plain_ids: bool, loss: Loss | None
) -> Samples:
    check_lengths(raw, source.name)
    inputs = to_inputs(raw.inputs[:limit], channels, source.name)
    if raw.ids is None:
        ids = tuple(str(index) for index in range(len(inputs)))
    else:
        names = raw.ids[:limit]
        ids = shown_ids(names) if plain_ids else hide_ids(names, source.key)
    return Samples(
        inputs=inputs,
        targets=to_targets(raw.targets[:limit], loss, source.name),
        ids=ids,
        class_names=None if raw.class_names is None else tuple(clean(name) for name in raw.class_names),
        name=source.name,
        sha256=source.sha256,
        are_images=are_images(inputs),
    )
