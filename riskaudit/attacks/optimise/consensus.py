"""Guesses at the same samples that should agree: group consistency with registration.

Yin et al., CVPR 2021, Eq. 10 and 11. A guess may be a shifted copy of another one, since convolutions hardly tell; so
the group's members are registered to the one nearest to their average before they are averaged again. The paper
registers by a dense flow (RANSAC-flow); this does by whole pixels, for each image the circular shift with the least
squared distance, which its cross-correlation shows (by the FFT).
Samples of one class in an upload may have changed places from member to member, and are put in the order of the first
member's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import Observation
from riskaudit.attacks.optimise.regularisers import Penalty, Regulariser, has_pixels

# Shifts that are tried, as a share of the image's sides.
LARGEST_SHIFT = 0.25


@final
@dataclass(frozen=True)
class GroupConsistency(Regulariser):
    """Mean square of a guess's displacement from the registered average of all guesses at the same sample."""

    couples: bool = True

    @override
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        size = observation.upload_size
        uploads = samples[::size] // size
        classes = classes_of(observation)

        def spread(inputs: Tensor) -> Tensor:
            with torch.no_grad():
                images = inputs.detach().double().reshape(-1, size, *inputs.shape[1:])
                consensus = torch.empty_like(images)
                for upload in sorted(set(uploads.tolist())):
                    rows = torch.nonzero(uploads == upload).flatten()
                    consensus[rows] = agreed(images[rows], classes[rows[0]])
            return (inputs.double() - consensus.flatten(0, 1)).flatten(1).square().mean(-1)

        return spread


def agreed(members: Tensor, classes: Tensor) -> Tensor:
    """For every member of a group [g, n, *S] what the group agrees on, in the places of that member; the same shape.

    Args:
        members: guesses at the n samples of one upload.
        classes: a number per sample, [n], equal where samples may change places.
    """
    orders = torch.stack([same_order(member, members[0], classes) for member in members])
    group = torch.arange(len(members), device=members.device)[:, None]
    ordered = members[group, orders]
    # Not the average itself: between two shifted copies it lies half-way, where no shift brings either nearer.
    distances = (ordered - ordered.mean(0)).flatten(2).square().sum(-1)
    middle = ordered[distances.argmin(0), torch.arange(len(classes), device=members.device)]
    registered = torch.stack([register(member, middle) for member in ordered])
    consensus = torch.empty_like(members)
    consensus[group, orders] = registered.mean(0).expand_as(members)
    return consensus


def same_order(images: Tensor, reference: Tensor, classes: Tensor) -> Tensor:
    """Places in images [n, *S] of those that belong to a reference's [n, *S], class by class; [n]."""
    order = torch.arange(len(images), device=images.device)
    for label in sorted(set(classes.tolist())):
        places = torch.nonzero(classes == label).flatten()
        if len(places) > 1:
            costs = torch.cdist(reference[places].flatten(1), images[places].flatten(1)).square()
            rows, columns = linear_sum_assignment(costs.nan_to_num(posinf=1e300).cpu().numpy())
            order[places[torch.from_numpy(rows)]] = places[torch.from_numpy(columns)]
    return order


def register(images: Tensor, reference: Tensor) -> Tensor:
    """Images [n, ..., H, W] shifted circularly by whole pixels, each to where it is nearest to its reference.

    Inputs that aren't images stay as they are.
    """
    if not has_pixels(tuple(images.shape[1:])):
        return images
    height, width = images.shape[-2:]
    spectra = torch.fft.rfft2(reference) * torch.fft.rfft2(images).conj()
    # Of every shift the product of the shifted image with the reference, over all channels.
    correlation = torch.fft.irfft2(spectra, s=(height, width)).reshape(len(images), -1, height, width).sum(1)
    far = _is_far(height)[:, None] | _is_far(width)[None]
    correlation = correlation.masked_fill(far.to(images.device), -torch.inf).flatten(1)
    best = correlation.argmax(1)
    # What rounding alone prefers is no shift.
    better = correlation.gather(1, best[:, None])[:, 0] > correlation[:, 0] + 1e-9 * correlation[:, 0].abs()
    best = torch.where(better, best, 0)
    down = (torch.arange(height, device=images.device) - (best // width)[:, None]) % height
    across = (torch.arange(width, device=images.device) - (best % width)[:, None]) % width
    planes = images.reshape(len(images), -1, height, width)
    numbers = torch.arange(len(images), device=images.device)[:, None, None, None]
    channels = torch.arange(planes.shape[1], device=images.device)[:, None, None]
    return planes[numbers, channels, down[:, None, :, None], across[:, None, None, :]].reshape(images.shape)


def _is_far(side: int) -> Tensor:
    """Which circular shifts along a side are too large, [side]."""
    shifts = torch.arange(side)
    return torch.minimum(shifts, side - shifts) > LARGEST_SHIFT * side


def classes_of(observation: Observation) -> Tensor:
    """A number per target, equal for equal ones, [R, n]."""
    targets = observation.known_targets
    numbers: dict[tuple[float, ...], int] = {}
    rows = [numbers.setdefault(tuple(row), len(numbers)) for row in targets.reshape(len(targets), -1).tolist()]
    return torch.tensor(rows, device=targets.device).reshape(len(observation), -1)
