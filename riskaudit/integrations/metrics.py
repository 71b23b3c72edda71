"""What may leave beside an update: metrics and settings hold private data as easily as weights do."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any


def allowed_numbers(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The entries under allowed names that are single finite numbers."""
    return {
        name: value
        for name, value in values.items()
        if name in names and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
