"""Where the samples of a batch are in an activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from riskaudit.jacobian.structured.registry import UnsupportedLayer


@dataclass(frozen=True)
class BatchAxis:
    """Where the samples of a batch are in a tensor: along dimension ``dim``, ``repeats`` entries each.

    The entries of a sample lie in ``runs`` of one length: [B, T] merged is one run of T per sample,
    [T, B] merged is T runs of 1.
    """

    dim: int
    repeats: int
    runs: int = 1

    def samples_first(self, tensor: Tensor, num_samples: int) -> Tensor:
        """The tensor with its samples along the first axis, [B, ...]; repeats follow where there are any."""
        tensor = tensor.movedim(self.dim, 0)
        if self.repeats == 1:
            return tensor
        entries = torch.unflatten(tensor, 0, (self.runs, num_samples, self.repeats // self.runs))
        return entries.movedim(1, 0).flatten(1, 2)

    def restored(self, tensor: Tensor) -> Tensor:
        """Undo `samples_first`."""
        if self.repeats > 1:
            entries = torch.unflatten(tensor, 1, (self.runs, self.repeats // self.runs))
            tensor = entries.movedim(0, 1).flatten(0, 2)
        return tensor.movedim(0, self.dim)

    def of_uploads(self, size: int) -> BatchAxis:
        """Where uploads of so many consecutive samples each are: their samples are repeats of an upload."""
        return replace(self, repeats=size * self.repeats)

    def entries(self, sample: int, num_samples: int) -> set[int]:
        """The entries of one sample along the dimension."""
        length = self.repeats // self.runs
        return {(i * num_samples + sample) * length + k for i in range(self.runs) for k in range(length)}

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that a parameter [*shape], 1 where it is repeated, takes beside one sample.

        Raises:
            UnsupportedLayer: the parameter isn't the same for all samples.
        """
        if shape[self.dim] != 1:
            raise UnsupportedLayer("a parameter that differs between the samples of a batch")
        others = tuple(size for axis, size in enumerate(shape) if axis != self.dim)
        return others if self.repeats == 1 else (1, *others)


def find_batch_axis(small: torch.Size, large: torch.Size, counts: tuple[int, int]) -> BatchAxis:
    """The batch axis, from the shapes of one tensor in passes with two sizes of batch.

    Raises:
        UnsupportedLayer: not along exactly one dimension.
    """
    if len(small) == len(large):
        dims = [dim for dim, sizes in enumerate(zip(small, large, strict=True)) if sizes[0] != sizes[1]]
        if len(dims) == 1 and small[dims[0]] % counts[0] == 0:
            repeats = small[dims[0]] // counts[0]
            if large[dims[0]] == repeats * counts[1]:
                return BatchAxis(dims[0], repeats)
    raise UnsupportedLayer("an activation without one axis for the samples of a batch")


def find_runs(axis: BatchAxis, depends: Tensor, sample: int, num_samples: int) -> BatchAxis | None:
    """The axis again, its runs as the entries that depend on one sample show them.

    Args:
        axis: by the shapes alone.
        depends: which entries of the tensor depend on the sample.
        sample: its number in the batch.
        num_samples: B.

    Returns:
        None where no entry depends on it, which tells nothing.

    Raises:
        UnsupportedLayer: other entries than those of one sample depend on it.
    """
    along = depends.movedim(axis.dim, 0).flatten(1).any(1) if depends.ndim > 1 else depends
    dependent = set(along.nonzero().flatten().tolist())
    if not dependent:
        return None
    divisors = [runs for runs in range(1, axis.repeats + 1) if axis.repeats % runs == 0]
    candidates = [BatchAxis(axis.dim, axis.repeats, runs) for runs in divisors]
    exact = [candidate for candidate in candidates if candidate.entries(sample, num_samples) == dependent]
    fitting = exact or [candidate for candidate in candidates if candidate.entries(sample, num_samples) >= dependent]
    if len(fitting) != 1:
        raise UnsupportedLayer("an activation in which the samples of a batch can't be told apart")
    return fitting[0]
