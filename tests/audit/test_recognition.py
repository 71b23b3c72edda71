"""An architecture that was only recognised from shapes never makes a sample "low" by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from riskaudit.audit.audit import audit
from riskaudit.inputs import Samples, load_checkpoint
from riskaudit.inputs.architectures.convolutional import LeNet
from riskaudit.inputs.architectures.mlp import MLP
from riskaudit.policy import Policy
from riskaudit.report.recomputation import recompute
from riskaudit.studies.fairness.record import FairnessStudy
from riskaudit.studies.fairness.run import with_fairness

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
# Three classes, each with its own bright column.
IMAGES = torch.zeros(6, 1, 12, 12, dtype=torch.float64)
IMAGES[torch.arange(6), 0, :, 4 * LABELS] = 1.0
IMAGES += 0.01 * torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OPTIONS = {"release": "gaussian:1000", "proxies": ("revealed_fraction", "gradient_norm")}


def saved(path: Path, model: nn.Module, steps: int = 0) -> Path:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGES.float()), LABELS).backward()
        optimizer.step()
    torch.save(model.state_dict(), path / "w.pt")
    return path / "w.pt"


def other(kind: str) -> nn.Module:
    """A network with the names and shapes of a registered one and another function."""
    torch.manual_seed(1)
    if kind == "mlp with tanh":
        net = MLP((144, 8, 8, 3))
        net.layers[1], net.layers[3] = nn.Tanh(), nn.Tanh()
        return net
    net = LeNet(1, 108, 3)
    if kind == "lenet with ReLU":
        for place in (1, 3, 5, 7):
            net.body[place] = nn.ReLU()
    else:
        net.body[2].stride, net.body[4].stride = (1, 1), (2, 2)
    return net


@pytest.mark.sampled(1)
@pytest.mark.parametrize("steps", [0, 60])
@pytest.mark.parametrize("kind", ["lenet with ReLU", "lenet with other strides", "mlp with tanh"])
def test_never_low_by_recognition_alone(tmp_path: Path, kind: str, steps: int) -> None:
    checkpoint = load_checkpoint(saved(tmp_path, other(kind), steps))
    samples = Samples.from_tensors(IMAGES, LABELS)
    result = audit(checkpoint, samples, **OPTIONS)
    assert result.checkpoint.assumed == checkpoint.assumed
    assert any(f"(assumed: {checkpoint.assumed})" in warning for warning in result.warnings)
    if result.checkpoint.doubt is None:
        # Only a function that tells the classes apart is taken for the one that was trained.
        assert steps
        assert sum(row.loss for row in result.samples) / 6 < 0.55
        return
    assert {row.verdict for row in result.samples} == {"not_assessed"}
    # No noise is said to suffice, and studies repeat the doubt.
    assert not result.noise_needed
    assert not result.noise_curve
    assert {row.noise_std_for_target for row in result.samples} == {None}
    assert result.checkpoint.doubt in with_fairness(result).studies.get(FairnessStudy).notes
    # A report that recomputes verdicts from numbers lets the reason stand.
    told, contradictions = recompute(result)
    assert {row.verdict for row in told.samples} == {"not_assessed"}
    assert not contradictions
    outcome = Policy(max_revealed=0.9).decide(result)
    assert outcome.decision == "block"
    # The message's advice: name it.
    assert f"`arch={checkpoint.architecture}`" in outcome.reasons[-1]
    named = load_checkpoint(tmp_path / "w.pt", arch=checkpoint.architecture)
    result = audit(named, samples, **OPTIONS)
    assert result.checkpoint.doubt is None
    assert {row.verdict for row in result.samples} == {"low"}
    assert result.noise_needed
    assert result.noise_curve
    assert result.samples[0].noise_std_for_target is not None
    assert Policy(max_revealed=0.9).decide(result).decision == "allow"


def test_losses_confirm_a_trained_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = saved(tmp_path, MLP((144, 8, 3)), 60)
    samples = Samples.from_tensors(IMAGES, LABELS)
    result = audit(load_checkpoint(path), samples, **OPTIONS)
    assert result.checkpoint.doubt is None
    assert {row.verdict for row in result.samples} == {"low"}
    # One class alone could be a function that always answers with it.
    single = audit(load_checkpoint(path), samples.select([0, 3]), **OPTIONS)
    assert single.checkpoint.doubt is not None


def test_other_losses_confirm_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path, MLP((144, 8, 3)))
    result = audit(load_checkpoint(path), Samples.from_tensors(IMAGES, torch.rand(6, 3)), loss="mse", **OPTIONS)
    assert "no loss of class numbers" in result.checkpoint.doubt
    assert "low" not in {row.verdict for row in result.samples}


@pytest.mark.parametrize("convolutions", [3, 4])
def test_lenet_of_the_papers(tmp_path: Path, convolutions: int) -> None:
    """Three convolutions at 3 x 32 x 32 with 100 classes is the network of DLG's and iDLG's code."""
    model = LeNet(3, 768, 100, convolutions).eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    for arch in (None, "lenet"):
        checkpoint = load_checkpoint(tmp_path / "w.pt", arch=arch)
        x = torch.rand(2, 3, 32, 32)
        assert torch.equal(checkpoint.model(x), model(x))
        assert checkpoint.assumed == (
            None if arch else f"sigmoid activations, strides 2, 2, 1{', 1' * (convolutions - 3)}"
        )
