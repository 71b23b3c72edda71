"""A folder of ``save_pretrained``: its files, read without executing anything and checked before they are believed.

``config.json`` names the model's type and sizes; weights lie in ``model.safetensors``, in shards that
``model.safetensors.index.json`` lists by file, or in ``pytorch_model.bin``, which is read as every file of torch is
(``weights_only``). A list of shards may name files of the folder only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from riskaudit.errors import CheckpointError
from riskaudit.files import sha256_of_file
from riskaudit.inputs.readers.torch_files import check_file, read_safetensors, read_torch_file
from riskaudit.inputs.text import clean, listing

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt")
_LARGEST_JSON = 64 * 2**20
_ACCEPTED = f"{SAFETENSORS}, its shards with {SAFETENSORS}.index.json, and {PICKLED}"


@dataclass(frozen=True)
class ModelFolder:
    """The parts of a folder that say what its model is.

    Attributes:
        path: of the folder.
        config: what ``config.json`` holds.
    """

    path: Path
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name, for messages and reports."""
        return clean(self.path.resolve().name) or "folder"

    @property
    def model_type(self) -> str:
        """As transformers registers it."""
        return str(self.config.get("model_type", ""))

    def weights(self) -> dict[str, Tensor]:
        """All tensors of the folder by name, on the CPU.

        Raises:
            CheckpointError: missing, damaged, or outside of the folder.
        """
        if (self.path / SAFETENSORS).is_file():
            return read_safetensors(_inside(self.path, SAFETENSORS, self.name), CheckpointError)
        if (self.path / f"{SAFETENSORS}.index.json").is_file():
            return self._shards(f"{SAFETENSORS}.index.json", read_safetensors)
        if (self.path / PICKLED).is_file():
            return _named(read_torch_file(_inside(self.path, PICKLED, self.name), CheckpointError), PICKLED)
        if (self.path / f"{PICKLED}.index.json").is_file():
            return self._shards(
                f"{PICKLED}.index.json", lambda path, error: _named(read_torch_file(path, error), path.name)
            )
        raise CheckpointError(f"{self.name} holds no weights; expected {_ACCEPTED}")

    def weight_files(self) -> list[Path]:
        """The files that `weights` reads, without reading tensors.

        Raises:
            CheckpointError: a list of shards that can't be used.
        """
        for single in (SAFETENSORS, PICKLED):
            if (self.path / single).is_file():
                return [self.path / single]
            if (self.path / f"{single}.index.json").is_file():
                return [self.path / name for name in sorted(set(self._index(f"{single}.index.json").values()))]
        return []

    def sha256(self) -> str:
        """Of the names and contents of all files that decide the model and its tokens."""
        files = [self.path / CONFIG, *self.weight_files(), *(self.path / name for name in TOKENIZER_FILES)]
        digest = hashlib.sha256()
        for file in files:
            if file.is_file():
                digest.update(f"{file.name} {sha256_of_file(file)}\n".encode())
        return digest.hexdigest()

    def _index(self, index: str) -> dict[str, str]:
        """Name of the shard for each tensor."""
        content = read_json(_inside(self.path, index, self.name))
        places = content.get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(each, str) for each in places.values()):
            raise CheckpointError(f"{index} in {self.name} lists no tensors under weight_map; save the model again")
        return places

    def _shards(self, index: str, read: Any) -> dict[str, Tensor]:
        places = self._index(index)
        tensors: dict[str, Tensor] = {}
        for shard in sorted(set(places.values())):
            held = read(_inside(self.path, shard, f"{index} of {self.name}"), CheckpointError)
            tensors |= {name: tensor for name, tensor in held.items() if places.get(name) == shard}
        missing = sorted(set(places) - set(tensors))
        if missing:
            raise CheckpointError(
                f"the shards in {self.name} lack {listing(missing, 2)}, which {index} lists; copy the folder again"
            )
        return tensors


def is_model_folder(path: Path) -> bool:
    """Whether a path is a folder with a configuration of a model or an adapter."""
    try:
        return path.is_dir() and any((path / name).is_file() for name in (CONFIG, ADAPTER_CONFIG))
    except (OSError, ValueError):
        return False


def open_folder(path: Path) -> ModelFolder:
    """A folder's configuration, checked as far as it can be without transformers.

    Raises:
        CheckpointError: it can't be used.
    """
    folder = ModelFolder(path, read_json(_inside(path, CONFIG, clean(path.name))))
    if not folder.model_type:
        raise CheckpointError(
            f"{CONFIG} in {folder.name} names no model_type, so that it is no model of transformers; hand in a folder "
            "that save_pretrained wrote, or the file of the weights with `arch=file.py:factory`"
        )
    if folder.config.get("quantization_config"):
        raise CheckpointError(
            f"{folder.name} holds quantised weights, which have no gradient; hand in the model that they were made of"
        )
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of moderate size.

    Raises:
        CheckpointError: something else, or damaged.
    """
    name = clean(path.name)
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise CheckpointError(f"{name} is larger than {_LARGEST_JSON >> 20} MiB; expected a short JSON file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise CheckpointError(f"can't read {name} ({clean(cause.strerror or cause)}); check the folder") from cause
    except (ValueError, RecursionError) as cause:
        raise CheckpointError(f"{name} isn't JSON ({type(cause).__name__}); save the model again") from cause
    if not isinstance(content, dict):
        raise CheckpointError(f"expected a JSON object in {name}, found a {type(content).__name__}; save it again")
    return content


def _inside(folder: Path, name: str, where: str) -> Path:
    """A file of the folder itself.

    Raises:
        CheckpointError: a name that leads elsewhere, or no such file.
    """
    if not name or "/" in name or "\\" in name or name in (".", "..") or not name.isprintable():
        raise CheckpointError(
            f"{where} names the file {clean(name, 40)!r}, which isn't in the folder itself; expected names without "
            "folders, as save_pretrained writes them"
        )
    path = folder / name
    if not path.exists():
        raise CheckpointError(f"{clean(name, 60)} is missing in {where}; copy the folder again")
    check_file(path, CheckpointError, _ACCEPTED)
    return path


def _named(content: object, name: str) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not all(isinstance(each, Tensor) for each in content.values()):
        raise CheckpointError(f"expected tensors by name in {clean(name)}, found something else; save it again")
    return {str(key): value for key, value in content.items()}
