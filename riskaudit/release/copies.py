"""Which samples of an upload are copies of one input, whatever their targets are."""

from __future__ import annotations

import numpy as np

from riskaudit.release.base import Batch


def first_copies(batch: Batch) -> list[list[int]]:
    """For each of the n samples of every upload the position in it of the first with the same input, U lists of n.

    Inputs are equal where all their numbers are, in the dtype that the release works in; 0 and -0 are one number.
    """
    rows = (batch.inputs.detach().flatten(1).cpu() + 0).contiguous()
    contents = [np.ascontiguousarray(row).tobytes() for row in rows.numpy()]
    uploads = []
    for begin in range(0, len(batch), batch.upload_size):
        first: dict[bytes, int] = {}
        own = contents[begin : begin + batch.upload_size]
        uploads.append([first.setdefault(content, position) for position, content in enumerate(own)])
    return uploads
