"""Which samples are the same one: equal inputs, views of one image (`riskaudit.inputs.views`), or the same id.

Inputs that aren't images are compared by distance. Groups are transitive. The work is bounded: equal inputs are found
among all samples, others among the first `num_compared`. What was found of the last batches is remembered by their
digests, since a batch is assessed and then reviewed, and a client that trains on one batch reviews it every round.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from riskaudit.inputs.views import is_image, similar_images

# Distance, relative to the spread of one input's own entries, up to which two inputs that aren't images are one.
SAME_VECTOR = 0.01
# Samples that are compared pair by pair, and differences of entries that this takes for vectors.
MAX_COMPARED = 1000
MAX_DIFFERENCES = 10**9
CHUNK_ROWS = 1024
# Batches whose pairs are remembered, by their inputs' digests; no input is.
REMEMBERED_BATCHES = 64
_remembered: OrderedDict[bytes, list[tuple[int, int]]] = OrderedDict()
_lock = Lock()


def num_compared(inputs: Tensor) -> int:
    """How many samples of ``inputs`` [B, ...], the first ones, are compared for more than equality."""
    count, size = len(inputs), max(1, math.prod(inputs.shape[1:]))
    if not count or is_image(inputs[0]):
        return min(count, MAX_COMPARED)
    return min(count, MAX_COMPARED, math.isqrt(MAX_DIFFERENCES // size))


def duplicate_labels(inputs: Tensor, ids: Sequence[str]) -> list[int]:
    """A number per sample, the same for those that are to be audited together."""
    count = len(inputs)
    by_id: dict[str, int] = {}
    pairs = [(index, by_id.setdefault(name, index)) for index, name in enumerate(ids)]
    if count > 1:
        # The same for both zeros.
        digests = [
            hashlib.sha256((sample.detach().cpu().float() + 0.0).contiguous().numpy().tobytes()).digest()
            for sample in inputs
        ]
        by_content: dict[bytes, int] = {}
        pairs += [(index, by_content.setdefault(digest, index)) for index, digest in enumerate(digests)]
        pairs += _similar(inputs[: num_compared(inputs)].detach(), digests)
    rows, columns = zip(*pairs, strict=True)
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(count, count))
    return [int(label) for label in connected_components(graph, directed=False)[1]]


def _similar(inputs: Tensor, digests: Sequence[bytes]) -> list[tuple[int, int]]:
    """Pairs of inputs [B, ...] that aren't equal and yet one; ``digests`` are of these inputs and perhaps of more."""
    shape = repr(tuple(inputs.shape)).encode()
    key = hashlib.sha256(shape + b"".join(digests[: len(inputs)])).digest()
    with _lock:
        if key in _remembered:
            _remembered.move_to_end(key)
            return _remembered[key]
    pairs = similar_images(inputs) if is_image(inputs[0]) else _near_vectors(inputs.flatten(1).cpu().float())
    with _lock:
        _remembered[key] = pairs
        while len(_remembered) > REMEMBERED_BATCHES:
            _remembered.popitem(last=False)
    return pairs


def _near_vectors(flat: Tensor) -> list[tuple[int, int]]:
    """Pairs of rows [B, d] that differ by little of their own spread."""
    spread = (flat - flat.mean(1, keepdim=True)).norm(dim=1)
    pairs = []
    for first in range(0, len(flat), CHUNK_ROWS):
        part = slice(first, first + CHUNK_ROWS)
        distance = torch.cdist(flat[part], flat, compute_mode="donot_use_mm_for_euclid_dist")
        near = distance <= SAME_VECTOR * torch.minimum(spread[part, None], spread[None])
        pairs += [(int(i) + first, int(j)) for i, j in near.nonzero() if int(i) + first < int(j)]
    return pairs
