"""How far an audit's batch is: the products that it has made, of those that it is foreseen to make."""

from __future__ import annotations

import pytest
import torch
from cases import digits
from torch import nn

import riskaudit
from riskaudit.audit.progress import NEARLY
from riskaudit.inputs import Samples


class Shown:
    """A progress that keeps what it is told is under way, of how many samples."""

    def __init__(self) -> None:
        self.under_way: list[float] = []
        self.done: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int, /) -> None:
        self.done.append((done, total))

    def show_under_way(self, amount: float, /) -> None:
        self.under_way.append(amount)


@pytest.mark.parametrize(
    ("release", "options", "most", "least"),
    [
        ("gradient,gaussian:0.1", {"solver": "dense"}, 4 * NEARLY, 4 * NEARLY),
        ("gradient,gaussian:0.1", {"solver": "lanczos"}, 4 * NEARLY, 0.0),
        ("mean:4,gaussian:0.1", {"solver": "dense"}, 4 * NEARLY, 4 * NEARLY),
        ("local:epochs=2:batch=2:lr=0.1,gaussian:0.1", {"max_matvecs": 4}, 4 * NEARLY, 4 * NEARLY),
        ("gradient,gaussian:0.1", {"solver": "lanczos", "proxies": ("lavp_l2_max",)}, 4 * NEARLY, 0.1),
        # What takes as many products as the spectrum asks for is foretold by nothing.
        ("gradient,gaussian:0.1", {"solver": "lanczos", "precision": 0.01}, 0.0, 0.0),
    ],
    ids=["dense", "lanczos", "dense-mean", "dense-training", "largest", "precise"],
)
def test_products_tell_how_far_a_batch_is(release: str, options: dict, most: float, least: float) -> None:
    shown = audited(4, 8, release, **options)
    assert shown.done == [(0, 4), (4, 4)]
    assert shown.under_way == sorted(shown.under_way)
    assert least <= max(shown.under_way, default=0.0) <= most


def test_the_limits_of_uploads_are_mostly_reached() -> None:
    shown = audited(8, 16, "local:epochs=3:batch=4:lr=0.1,gaussian:0.01", solver="lanczos")
    assert max(shown.under_way) > 0.3 * 8


def audited(count: int, width: int, release: str, **options: object) -> Shown:
    """What an audit of so many digits by a network of this width showed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10)).eval()
    batch, shown = digits(count), Shown()
    samples = Samples.from_tensors(batch.inputs, batch.targets)
    riskaudit.audit(model, samples, release=release, checks=False, progress=shown, **options)
    return shown
