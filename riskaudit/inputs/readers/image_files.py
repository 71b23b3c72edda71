"""Image files of common formats as pixels, wherever they lie: in folders, or in a table's cells.

They are read by Pillow's own decoders of common formats alone, chosen by content: none that starts another program (as
those of PostScript and PDF would) or that reads vector graphics. What a message calls an image is the caller's to say,
since names may be people's.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from riskaudit.errors import SamplesError
from riskaudit.inputs.arrays import BYTE, MAX_INPUT_BYTES
from riskaudit.inputs.reading import Reading

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
_MODES = {1: "L", 3: "RGB"}
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True, eq=False)
class Images:
    """Pixels [N, C, H, W], uint8, or float64 in [0, 1] where an image has 16 bits, and what a reader should be told."""

    pixels: Tensor
    notes: tuple[str, ...] = ()


def read_images(contents: Sequence[Path | bytes], told: Callable[[int], str], reading: Reading, source: str) -> Images:
    """Decode image files of one size.

    Args:
        contents: paths of files, or files themselves.
        told: what a message calls the image at a place of ``contents``.
        reading: the model's channels, where they are known, and the scale.
        source: what holds them, as a message calls it.

    Raises:
        SamplesError: a damaged image, images of different size, or other channels.
    """
    channels = reading.channels
    if channels not in (None, *_MODES):
        raise SamplesError(f"the model takes {channels} channels, but images have 1 or 3; hand in arrays as .npz")
    if channels is None:
        channels = 1
        for place, content in enumerate(contents):
            with _opened(content, partial(told, place)) as image:
                channels = channels if image.mode in ("1", "L", *_SIXTEEN_BIT) else 3
    images: list[Tensor] = []
    num_animated = 0
    for place, content in enumerate(contents):
        with warnings.catch_warnings(), _opened(content, partial(told, place)) as image:
            warnings.simplefilter("ignore")
            images.append(torch.from_numpy(_first_frame(image, _MODES[channels])))
            num_animated += _has_more(image)
        _check_size(images, len(contents), source, partial(told, place))
    if len({image.dtype for image in images}) > 1 or (reading.scale and images[0].dtype != torch.uint8):
        if reading.scale is not None:
            raise SamplesError("images of 16 bits are read as 0 to 1; leave out `scale`")
        images = [image.double() / BYTE if image.dtype == torch.uint8 else image for image in images]
    stacked, total = torch.stack(images), len(images)
    animated = f"{num_animated} of {total} image files hold several frames or pages, of which the first is audited"
    return Images(
        stacked.unsqueeze(1) if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2),
        (animated,) if num_animated else (),
    )


def _check_size(images: list[Tensor], count: int, source: str, told: Callable[[], str]) -> None:
    """Refuse an image of another size than the first, or too many of this size for memory."""
    first, image = images[0], images[-1]
    if first.numel() * count * 8 > MAX_INPUT_BYTES:
        raise SamplesError(f"{source} holds {count} images, too many of this size to audit at once; use `limit`")
    if image.shape != first.shape:
        sizes = [f"{tensor.shape[1]}x{tensor.shape[0]}" for tensor in (first, image)]
        raise SamplesError(
            f"{source} holds images of {sizes[0]} and {sizes[1]} ({told()}), expected one size; resize them"
        )


@contextmanager
def _opened(content: Path | bytes, told: Callable[[], str]) -> Iterator[Image.Image]:
    """An image, with what goes wrong as a sentence; Pillow's decoders raise whatever they stumble over."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns of images from 90 million pixels on: here they are refused.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(content if isinstance(content, Path) else io.BytesIO(content), formats=FORMATS)
    except Exception as cause:
        raise SamplesError(
            f"{told()} isn't an image that can be read ({_reason(cause)}); leave it out, or convert it to PNG"
        ) from cause
    try:
        with image:
            yield image
    except Exception as cause:
        raise SamplesError(f"{told()} is a damaged image ({_reason(cause)}); leave it out") from cause


def _reason(cause: Exception) -> str:
    """What went wrong, without the path that Pillow puts into it."""
    bomb = isinstance(cause, Image.DecompressionBombError | Image.DecompressionBombWarning)
    return "too many pixels" if bomb else type(cause).__name__


def _has_more(image: Image.Image) -> bool:
    """Whether frames follow the first; damage further on doesn't concern it."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:
        return False


def _first_frame(image: Image.Image, mode: str) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Pixels [H, W] or [H, W, 3], uint8, or float64 in [0, 1] for 16-bit grey."""
    if image.mode in _SIXTEEN_BIT:
        grey = np.asarray(image).astype(np.float64) / 65535.0
        return grey if mode == "L" else np.repeat(grey[:, :, None], 3, axis=2)
    # Palettes with transparency lose it in a step of their own, else Pillow warns.
    whole = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    return np.array(whole.convert(mode), dtype=np.uint8)
