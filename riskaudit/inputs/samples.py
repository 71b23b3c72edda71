"""Samples: any of the accepted sources to inputs [N, *S] in data units and their targets.

Formats are told apart by what the path is and how it ends; contents are checked against what they
claim before memory is allocated. Identifiers are hidden unless asked for (see identifiers.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riskaudit.errors import SamplesError, UserCodeError
from riskaudit.files import sha256_of_file
from riskaudit.inputs.arrays import (
    MAX_INPUT_BYTES,
    NUMBER,
    Numbered,
    Numbering,
    RawSamples,
    are_images,
    as_tensor,
    check_lengths,
    numbered_array,
    range_notes,
    raw_from_mapping,
    to_inputs,
    to_targets,
)
from riskaudit.inputs.huggingface.tokens import TextReader, Tokens
from riskaudit.inputs.identifiers import content_key, file_chunks, hide_ids
from riskaudit.inputs.identifiers import plain_ids as shown_ids
from riskaudit.inputs.losses import Loss
from riskaudit.inputs.readers.archives import foreign_format, is_zip
from riskaudit.inputs.readers.idx import is_idx, read_idx
from riskaudit.inputs.readers.image_folders import hashes_of, list_folder, read_folder
from riskaudit.inputs.readers.npz import read_npy, read_npz
from riskaudit.inputs.readers.tables import read_csv, read_parquet
from riskaudit.inputs.readers.texts import TEXT_SUFFIXES, read_texts, read_token_numbers
from riskaudit.inputs.readers.torch_files import check_file, read_safetensors, read_torch_file
from riskaudit.inputs.reading import Reading
from riskaudit.inputs.text import clean
from riskaudit.inputs.texts import prepare
from riskaudit.inputs.user_code import call_user_function, is_user_spec, load_user_function
from riskaudit.tables import TableEncoding, read_encoding

SAMPLE_FORMATS = {
    ".npz": "arrays images|x|inputs and labels|y|targets, optionally ids and class_names; `split` of several",
    ".pt, .pth": "the same names as a dict of tensors, a pair (inputs, targets), or a list of such pairs",
    ".safetensors": "the same names as tensors",
    "folder": "a folder of images per class, named by class number or by class",
    ".csv": "numeric features, or columns declared by an encoding; a label column (label, y, target or the last), "
    "optionally id",
    ".parquet": 'as .csv, or a column of images as Hugging Face stores them; needs pip install "riskaudit[parquet]"',
    "idx-ubyte, .gz": "MNIST's own files: the images, with the labels beside them",
    ".txt, .csv, .jsonl, .parquet": "texts with text and label, for Hugging Face folders; .txt has a text a line",
    "file.py:function": "a function without arguments that returns (inputs, targets) or a dict of them",
}
_ACCEPTED = ".npz, .pt, .safetensors, .csv, .parquet, idx-ubyte, a folder of images per class, and file.py:function"


_SUFFIXES = (".npz", ".npy", ".pt", ".pth", ".safetensors", ".csv", ".parquet")


@dataclass(frozen=True)
class Samples:
    """N samples to audit.

    Attributes:
        inputs: ``[N, *S]`` float64 in data units; images as [N, C, H, W].
        targets: int64 [N] class numbers, or float64 [N, ...].
        ids: one per sample, distinct; "0", "1", ... or hashes of identifiers.
        class_names: by class number, None where the source has none.
        name: the source's name without its folder.
        sha256: of the file, or of all names and contents of a folder; None for functions and tensors.
        are_images: inputs are grey or colour images.
        numbering: where class numbers come from: "numbers" as stored, "position" among the sorted words of the
            source, "classes" as the user named them.
        notes: what a reader of the audit should be told.
        encoding: which inputs belong to which column of a table; None for inputs of another kind.
        stored_shape: of one input in its source, where axes may have been moved since; None where that isn't known.
        tokens: of texts, whose embeddings the inputs are, [N, T, E] with rows of zeros beyond a text's end; else None.
    """

    inputs: Tensor
    targets: Tensor
    ids: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    name: str = "samples"
    sha256: str | None = None
    are_images: bool = False
    numbering: Numbering = "numbers"
    notes: tuple[str, ...] = ()
    encoding: TableEncoding | None = None
    stored_shape: tuple[int, ...] | None = None
    tokens: Tokens | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, indices: list[int]) -> Samples:
        """Some of the samples, with their ids; the hash stays that of the whole file."""
        return replace(
            self,
            inputs=self.inputs[indices],
            targets=self.targets[indices],
            ids=tuple(self.ids[index] for index in indices),
            tokens=None if self.tokens is None else self.tokens.select(indices),
        )

    @property
    def lengths(self) -> list[int] | None:
        """Tokens of every text; None where samples are no texts."""
        return None if self.tokens is None else self.tokens.lengths.tolist()

    @classmethod
    def from_tensors(
        cls,
        inputs: Tensor,
        targets: Tensor,
        ids: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "samples",
    ) -> Samples:
        """Samples in memory: inputs ``[N, *S]`` (uint8 is divided by 255), targets [N, ...].

        ``ids`` are kept as they are, since the caller chose them.

        Raises:
            SamplesError: lengths that differ, no samples, or NaN or infinite values.
        """
        shown = clean(name) or "samples"
        labels = Numbered(as_tensor(targets, "targets", shown), None if class_names is None else tuple(class_names))
        raw = RawSamples(as_tensor(inputs, "inputs", shown), labels, ids)
        return _assemble(raw, _Source(shown, None, b""), Reading(plain_ids=True))


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
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    scale: float | None = None,
    split: str | None = None,
    labelled: bool = True,
    encoding: str | Path | TableEncoding | None = None,
    text: TextReader | None = None,
    max_tokens: int | None = None,
) -> Samples:
    """Read samples from a file, a folder or the user's function, one of `SAMPLE_FORMATS`.

    Args:
        path: of the source.
        channels: this and the others that aren't named here are the fields of `Reading`.
        limit: see there.
        plain_ids: see there.
        loss: see there.
        classes: see there.
        num_classes: see there.
        scale: see there.
        split: see there.
        labelled: see there.
        encoding: see there, or the file that declares it.
        text: reads texts for the model (`Checkpoint.text`); None where it takes none.
        max_tokens: tokens after which a text is cut; None to refuse one that is longer than the model takes.

    Raises:
        SamplesError: the source can't be used.
        SettingsError: the encoding can't be.
        UserCodeError: the user's function fails or returns something else.
    """
    if encoding is not None and not isinstance(encoding, TableEncoding):
        encoding = read_encoding(encoding)
    if encoding is not None and Path(path).suffix.lower() not in (".csv", ".parquet"):
        raise SamplesError(
            f"expected a table, .csv or .parquet, for `encoding`, found {clean(Path(path).name)}; leave `encoding` out"
        )
    reading = Reading(channels, limit, plain_ids, loss, classes, num_classes, scale, split, labelled, encoding)
    if text is not None:
        return _load_texts(path, text, reading, max_tokens)
    if max_tokens is not None:
        raise SamplesError("`max_tokens` cuts texts, but the model takes none; leave it out")
    raw, source = _read(path, reading)
    return _assemble(raw, source, reading)


def _load_texts(path: str | Path, text: TextReader, reading: Reading, max_tokens: int | None) -> Samples:
    """Texts, or numbers of tokens, as samples of one model."""
    path = Path(path)
    name, accepted = clean(path.name), f"{', '.join(TEXT_SUFFIXES)}, and .npz with input_ids"
    check_file(path, SamplesError, accepted)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        rows, labels = read_token_numbers(path, reading, labelled=text.task == "classification")
        tokens, own = text.of_numbers(rows, name), None
    elif suffix in TEXT_SUFFIXES:
        raw = read_texts(path, _naming(reading, text), labelled=text.task == "classification")
        tokens, labels, own = text.tokens(raw.texts, name, max_tokens), raw.labels, raw.ids
    else:
        raise SamplesError(f"{name} holds no texts, which {text.name} takes; accepted are {accepted}")
    prepared = prepare(text, tokens, labels, reading.loss, name)
    size = prepared.tokens.ids.numel() * tokens.vocabulary.shape[1] * 8
    if size > MAX_INPUT_BYTES:
        raise SamplesError(f"{name} takes {size / 1e9:.3g} GB as embedded tokens; use `limit` or `max_tokens`")
    ids = tuple(str(number) for number in range(len(prepared.targets)))
    if own is not None:
        ids = shown_ids(own) if reading.plain_ids else hide_ids(own, content_key(file_chunks(path)))
    names = None if labels is None or labels.class_names is None else tuple(map(clean, labels.class_names))
    return Samples(
        inputs=prepared.tokens.embedded(),
        targets=prepared.targets,
        ids=ids,
        class_names=names or (text.class_names if text.task == "classification" else None),
        name=name,
        sha256=sha256_of_file(path),
        numbering="numbers" if labels is None else labels.numbering,
        notes=prepared.notes,
        tokens=prepared.tokens,
    )


def _naming(reading: Reading, text: TextReader) -> Reading:
    """Labels in words are named by the model's own classes, where the user names none."""
    if reading.classes is not None or text.class_names is None:
        return reading
    return replace(reading, classes=text.class_names)


def _read(path: str | Path, reading: Reading) -> tuple[RawSamples, _Source]:
    spec, path = str(path), Path(path)
    name = clean(path.name)
    try:
        if is_user_spec(spec):
            return _from_function(spec, reading)
        if path.is_dir():
            folder = list_folder(path, reading)
            sha256, key = hashes_of(folder)
            return read_folder(folder, reading), _Source(clean(path.resolve().name), sha256, key)
        check_file(path, SamplesError, _ACCEPTED)
        if path.suffix.lower() not in _SUFFIXES and is_idx(path):
            idx, sha256 = read_idx(path, reading)
            return idx, _Source(name, sha256, b"")
        raw = _from_file(path, reading)
        key = content_key(file_chunks(path)) if raw.ids is not None else b""
        return raw, _Source(name, sha256_of_file(path), key)
    except (OSError, MemoryError, ValueError) as cause:
        reason = clean(cause) if isinstance(cause, OSError) else type(cause).__name__
        raise SamplesError(f"can't read {name} ({reason}); check the file and the free memory") from cause


def _from_file(path: Path, reading: Reading) -> RawSamples:
    name = clean(path.name)
    match path.suffix.lower():
        case ".npz":
            if not is_zip(path):
                raise SamplesError(f"{name} is no .npz archive; save it with numpy.savez")
            return raw_from_mapping(read_npz(path, reading), name, reading)
        case ".npy" if not reading.labelled:
            return RawSamples(as_tensor(read_npy(path, reading.limit), "inputs", name))
        case ".pt" | ".pth":
            return _from_pair_or_mapping(read_torch_file(path, SamplesError), name, SamplesError, reading)
        case ".safetensors":
            return raw_from_mapping(read_safetensors(path, SamplesError), name, reading)
        case ".csv":
            return read_csv(path, reading)
        case ".parquet":
            return read_parquet(path, reading)
    raise SamplesError(foreign_format(path) or f"{name} is none of the accepted formats: {_ACCEPTED}")


def _from_function(spec: str, reading: Reading) -> tuple[RawSamples, _Source]:
    content = call_user_function(load_user_function(spec), spec)
    name = clean(spec.replace("\\", "/").rpartition("/")[2])
    if isinstance(content, Samples):
        ids = None if content.ids == tuple(str(index) for index in range(len(content))) else content.ids
        labels = Numbered(content.targets, content.class_names, content.numbering)
        raw = RawSamples(content.inputs, labels, ids, notes=content.notes)
    else:
        raw = _from_pair_or_mapping(content, name, UserCodeError, reading)
    # Ids that code makes may be anything, so they are hidden like those of a file; the inputs are the secret.
    key = content_key([raw.inputs.contiguous().numpy().tobytes()]) if raw.ids is not None else b""
    return raw, _Source(name, None, key)


def _from_pair_or_mapping(
    content: Any, name: str, error: type[SamplesError] | type[UserCodeError], reading: Reading
) -> RawSamples:
    if isinstance(content, Mapping):
        return raw_from_mapping({str(key): value for key, value in content.items()}, name, reading)
    if isinstance(content, tuple | list) and content and all(_is_pair(each) for each in content):
        pairs = content[: reading.limit]
        content = [[each[0] for each in pairs], [each[1] for each in pairs]]
        content[0] = torch.stack([as_tensor(each, "inputs", name) for each in content[0]])
    elif isinstance(content, Tensor) and not reading.labelled:
        return RawSamples(as_tensor(content, "inputs", name))
    if isinstance(content, tuple | list) and len(content) == 2:
        inputs = as_tensor(content[0], "inputs", name)
        return RawSamples(inputs, numbered_array(content[1], reading, name, inputs))
    actual = f"{len(content)} values" if isinstance(content, tuple | list) else f"a {type(content).__name__}"
    raise error(f"expected (inputs, targets) or a dict of them from {name}, found {actual}; return or save a pair")


def _is_pair(value: Any) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2 or not isinstance(value[0], Tensor):
        return False
    return isinstance(value[1], int | float | str) or (isinstance(value[1], Tensor) and value[1].ndim == 0)


def _assemble(raw: RawSamples, source: _Source, reading: Reading) -> Samples:
    labels, limit = check_lengths(raw, source.name), reading.limit
    stored = raw.inputs[:limit]
    inputs = to_inputs(stored, reading.channels, source.name, reading.scale)
    if raw.ids is None:
        ids = tuple(str(index) for index in range(len(inputs)))
    else:
        names = raw.ids[:limit]
        ids = shown_ids(names) if reading.plain_ids else hide_ids(names, source.key)
    return Samples(
        inputs=inputs,
        targets=to_targets(labels.targets[:limit], reading.loss, source.name),
        ids=ids,
        class_names=_class_names(raw, labels.class_names, source, reading),
        name=source.name,
        sha256=source.sha256,
        are_images=are_images(inputs),
        numbering=labels.numbering,
        # Images in files are from 0 to 1 by their format.
        notes=raw.notes
        if raw.private_classes or reading.encoding is not None
        else (*raw.notes, *range_notes(stored, inputs, reading.scale)),
        encoding=reading.encoding,
        stored_shape=tuple(stored.shape[1:]),
    )


def _class_names(
    raw: RawSamples, names: Sequence[str] | None, source: _Source, reading: Reading
) -> tuple[str, ...] | None:
    """Names of classes, those of folders hashed like file names: a folder may be named after a person."""
    if names is None:
        return None
    if raw.private_classes and not reading.plain_ids:
        pairs = zip(names, hide_ids(names, source.key), strict=True)
        return tuple(name if NUMBER.fullmatch(name) else f"class-{hashed}" for name, hashed in pairs)
    return tuple(clean(name) for name in names)
