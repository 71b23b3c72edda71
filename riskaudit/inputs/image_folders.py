"""Image folders: one folder per class, its images inside, labels in the sorted order of folder names."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from riskaudit.errors import SamplesError
from riskaudit.inputs.arrays import RawSamples
from riskaudit.inputs.identifiers import content_key, file_chunks
from riskaudit.inputs.text import clean

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB"}
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class FolderListing:
    """The classes of an image folder and, per class, its image files in sorted order."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[tuple[Path, ...], ...]

    def relative_names(self) -> list[str]:
        """All files relative to the root, sorted."""
        return sorted(file.relative_to(self.root).as_posix() for group in self.files for file in group)

    def chunks(self) -> Iterable[bytes]:
        """Names and contents of all files, each set off by its length so that no two folders look alike."""
        for name in self.relative_names():
            encoded = name.encode("utf-8", "surrogateescape")
            size = (self.root / name).stat().st_size
            yield len(encoded).to_bytes(8, "little") + encoded + size.to_bytes(8, "little")
            yield from file_chunks(self.root / name)


def list_folder(root: Path) -> FolderListing:
    """Find classes and images, without opening any image.

    Raises:
        SamplesError: no class folders, no images, or a link that leads out of the folder.
    """
    name = clean(root.name) or "the folder"
    try:
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not folders:
            raise SamplesError(f"expected a folder per class in {name}, found none; put each class's images in its own")
        real_root = root.resolve()
        files = tuple(tuple(_images(folder, real_root, name)) for folder in folders)
    except OSError as cause:
        raise SamplesError(f"can't read the folder {name} ({clean(cause.strerror or cause)}); check it") from cause
    if not any(files):
        raise SamplesError(f"found no images in the class folders of {name}; accepted are {', '.join(SUFFIXES)}")
    return FolderListing(root, tuple(clean(folder.name) for folder in folders), files)


def _images(folder: Path, real_root: Path, name: str) -> Iterable[Path]:
    for entry in [folder, *sorted(folder.iterdir())]:
        if not entry.resolve().is_relative_to(real_root):
            raise SamplesError(f"{clean(entry.name)} in {name} is a link that leads out of the folder; copy it inside")
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file():
            yield entry


def hashes_of(folder: FolderListing) -> tuple[str, bytes]:
    """SHA-256 over names and contents, and the key that hides the ids.

    Raises:
        SamplesError: a file can't be read.
    """
    digest = hashlib.sha256()

    def observed() -> Iterable[bytes]:
        for chunk in folder.chunks():
            digest.update(chunk)
            yield chunk

    try:
        key = content_key(observed())
    except OSError as cause:
        raise SamplesError(f"can't read {clean(folder.root.name)} ({clean(cause.strerror or cause)})") from cause
    return digest.hexdigest(), key


def spread(files: Sequence[Sequence[Path]], limit: int | None) -> list[tuple[int, Path]]:
    """(class, file) in class order; of ``limit`` files, each class in turn gives its next one."""
    pairs = [(position, label) for label, group in enumerate(files) for position in range(len(group))]
    chosen = sorted(pairs)[:limit] if limit is not None else pairs
    return [(label, files[label][position]) for position, label in sorted(chosen, key=lambda pair: (pair[1], pair[0]))]


def read_folder(folder: FolderListing, channels: int | None, limit: int | None) -> RawSamples:
    """Read images as [N, C, H, W] in [0, 1] (uint8, or float64 where an image has 16 bits).

    Args:
        folder: what `list_folder` found.
        channels: 1 or 3 to convert to grey or colour; None for grey where every image is grey.
        limit: number of images, spread over the classes.

    Raises:
        SamplesError: a damaged image, images of different size, or other channels.
    """
    if channels not in (None, *_MODES):
        raise SamplesError(f"the model takes {channels} channels, but images have 1 or 3; hand in arrays as .npz")
    chosen = spread(folder.files, limit)
    if channels is None:
        grey = all(_mode(file) in ("1", "L", *_SIXTEEN_BIT) for _, file in chosen)
        channels = 1 if grey else 3
    images: list[Tensor] = []
    for _, file in chosen:
        image = torch.from_numpy(_pixels(file, _MODES[channels]))
        if images and image.shape != images[0].shape:
            sizes = [f"{tensor.shape[1]}x{tensor.shape[0]}" for tensor in (images[0], image)]
            raise SamplesError(
                f"{clean(folder.root.name)} holds images of {sizes[0]} and {sizes[1]} ({clean(file.name, 50)}), "
                "expected one size; resize them"
            )
        images.append(image)
    if len({image.dtype for image in images}) > 1:
        images = [image.double() / 255.0 if image.dtype == torch.uint8 else image for image in images]
    stacked = torch.stack(images)
    return RawSamples(
        stacked.unsqueeze(1) if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2),
        torch.tensor([label for label, _ in chosen]),
        [os.fsencode(file.relative_to(folder.root).as_posix()).decode("utf-8", "replace") for _, file in chosen],
        folder.classes,
    )


def _open(file: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow only warns of images from 90 million pixels on: here they are refused.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file)
    except Exception as cause:
        raise SamplesError(
            f"{clean(file.name)} isn't an image that can be read ({clean(cause, 80)}); leave it out"
        ) from cause


def _mode(file: Path) -> str:
    with _open(file) as image:
        return image.mode


def _pixels(file: Path, mode: str) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Pixels [H, W] or [H, W, 3]: uint8, or float64 in [0, 1] for 16-bit grey."""
    try:
        with warnings.catch_warnings(), _open(file) as image:
            warnings.simplefilter("ignore")
            if image.mode in _SIXTEEN_BIT:
                grey = np.asarray(image).astype(np.float64) / 65535.0
                return grey if mode == "L" else np.repeat(grey[:, :, None], 3, axis=2)
            # Palettes with transparency lose it in a step of their own, else Pillow warns.
            whole = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
            return np.array(whole.convert(mode), dtype=np.uint8)
    except SamplesError:
        raise
    except Exception as cause:
        # Pillow's decoders raise whatever they stumble over.
        raise SamplesError(f"{clean(file.name)} is a damaged image ({clean(cause, 80)}); leave it out") from cause
