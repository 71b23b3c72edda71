"""Image folders: one folder per class with its images inside, or, where no labels are needed, images alone.

Folders whose names are numbers are the classes of these numbers; others are numbered by name (see `arrays`). Names of
files and of class folders may be people's: messages count instead, unless names were asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from riskaudit.errors import SamplesError
from riskaudit.inputs.arrays import NUMBER, Numbered, RawSamples, number_labels
from riskaudit.inputs.identifiers import content_key, file_chunks
from riskaudit.inputs.readers.image_files import read_images
from riskaudit.inputs.reading import Reading
from riskaudit.inputs.text import clean

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class FolderListing:
    """The classes of an image folder and, per class, its image files in sorted order; no classes if unlabelled."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[tuple[Path, ...], ...]
    plain_ids: bool = False

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

    def told(self, file: Path) -> str:
        """A file as a message may name it: by its place, unless names may be shown."""
        if self.plain_ids:
            return clean(file.name, 50)
        group = next((number for number, files in enumerate(self.files) if file in files), 0)
        position = f"image {self.files[group].index(file)}"
        return f"{position} of class folder {group} (counted from 0 by name)" if self.classes else f"{position} by name"


def list_folder(root: Path, reading: Reading) -> FolderListing:
    """Find classes and images, without opening any image.

    Raises:
        SamplesError: no class folders, no images, or a link that leads out of the folder.
    """
    name = clean(root.name) or "the folder"
    try:
        if reading.split is not None:
            whole, root = root.resolve(), root / reading.split
            if whole not in root.resolve().parents or not root.is_dir():
                raise SamplesError(f"expected a folder {clean(reading.split, 30)} in {name}; choose another `split`")
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        real_root = root.resolve()
        groups = [tuple(_images(folder, real_root, name, reading)) for folder in folders]
        flat = () if any(groups) else tuple(_images(root, real_root, name, reading))
        nested = any(entry.is_dir() for folder in folders for entry in folder.iterdir())
    except OSError as cause:
        raise SamplesError(f"can't read the folder {name} ({clean(cause.strerror or cause)}); check it") from cause
    if flat and not reading.labelled:
        return FolderListing(root, (), (flat,), reading.plain_ids)
    if not folders:
        raise SamplesError(f"expected a folder per class in {name}, found none; put each class's images in its own")
    if not any(groups):
        way_out = (
            "hand in the folder that directly holds the class folders, or choose it with `split`"
            if nested
            else (f"accepted are {', '.join(SUFFIXES)}")
        )
        raise SamplesError(f"found no images in the class folders of {name}; {way_out}")
    # A folder without images is a class only where the model's number of classes says so.
    if sum(map(bool, groups)) == reading.num_classes:
        folders = [folder for folder, files in zip(folders, groups, strict=True) if files]
        groups = [files for files in groups if files]
    return FolderListing(root, tuple(folder.name for folder in folders), tuple(groups), reading.plain_ids)


def _images(folder: Path, real_root: Path, name: str, reading: Reading) -> Iterable[Path]:
    for number, entry in enumerate([folder, *sorted(folder.iterdir())]):
        if not entry.resolve().is_relative_to(real_root):
            position = f"entry {number} of a class folder" if number else "a class folder"
            shown = clean(entry.name) if reading.plain_ids else position
            raise SamplesError(f"{shown} in {name} is a link that leads out of the folder; copy it inside")
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


def read_folder(folder: FolderListing, reading: Reading) -> RawSamples:
    """Read images as [N, C, H, W] in [0, 1] (uint8, or float64 where an image has 16 bits).

    Raises:
        SamplesError: a damaged image, images of different size, or other channels.
    """
    chosen = spread(folder.files, reading.limit)
    files = [file for _, file in chosen]
    images = read_images(files, lambda place: folder.told(files[place]), reading, clean(folder.root.name))
    return RawSamples(
        images.pixels,
        _classes(folder, [label for label, _ in chosen], reading) if folder.classes else None,
        [os.fsencode(file.relative_to(folder.root).as_posix()).decode("utf-8", "replace") for file in files],
        private_classes=True,
        notes=(*images.notes, *_order_note(folder.classes, reading)),
    )


def _order_note(names: Sequence[str], reading: Reading) -> tuple[str, ...]:
    """Folders 0 to 10 and more: the order of their names as text isn't that of their numbers."""
    numbers = [int(name) for name in names if NUMBER.fullmatch(name)]
    if reading.classes is not None or sorted(numbers) != list(range(len(names))) or numbers == sorted(numbers):
        return ()
    return (
        "class folders were taken as class numbers; torchvision's ImageFolder numbers them by name, 10 before 2: if "
        "the model was trained so, give `classes` in that order",
    )


def _classes(folder: FolderListing, labels: Sequence[int], reading: Reading) -> Numbered:
    """Class numbers of the chosen images: folders whose names are numbers have these."""
    name, names = clean(folder.root.name), folder.classes
    if reading.classes is None and all(NUMBER.fullmatch(each) for each in names):
        numbers = [int(each) for each in names]
        if len(set(numbers)) < len(numbers):
            raise SamplesError(f"two class folders in {name} have one number (01 and 1, say); rename one")
        return Numbered(torch.tensor([numbers[label] for label in labels], dtype=torch.int64))
    if reading.classes is None:
        return Numbered(torch.tensor(list(labels), dtype=torch.int64), names, "position")
    return number_labels([names[label] for label in labels], lambda: names, reading, name, "the folder of image")
