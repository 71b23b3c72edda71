"""Private inputs as clean PNG files: decoded and encoded again, so that nothing rides along."""

from __future__ import annotations

import base64
import io

_MAX_SIDE = 4096


def safe_png(encoded: str | None) -> bytes | None:
    """The PNG behind a base64 string without its metadata, or ``None`` when it can't be read."""
    from PIL import Image

    try:
        raw = base64.b64decode(encoded or "", validate=True)
        with Image.open(io.BytesIO(raw), formats=("PNG",)) as picture:
            if max(picture.size) > _MAX_SIDE:
                return None
            pixels = picture.convert("RGBA" if "A" in picture.getbands() else "RGB")
        plain = Image.frombytes(pixels.mode, pixels.size, pixels.tobytes())
        stream = io.BytesIO()
        plain.save(stream, format="PNG")
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        # Pillow reports a broken PNG chunk as SyntaxError.
        return None
    return stream.getvalue()
