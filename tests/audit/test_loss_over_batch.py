"""A loss of the user's own that isn't the mean over a batch is said to be none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import riskaudit

LOSSES = {
    "mean": ("F.cross_entropy(o, t)", None),
    "weights": ("F.cross_entropy(o, t, weight=torch.tensor([1.0, 5.0, 1.0]).to(o))", "weights its samples"),
    "sum": ("F.cross_entropy(o, t, reduction='sum')", "weights its samples 4 to 4 times"),
    "contrastive": ("F.cross_entropy(o, t) + (o.mean(0) - o).square().mean()", "by constant factors"),
    "hardest": ("F.cross_entropy(o, t, reduction='none').amax()", "its samples"),
    "one at a time": ("F.cross_entropy(o.reshape(3), t.reshape(()))", None),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_over_a_batch(tmp_path, name) -> None:
    text, expected = LOSSES[name]
    file = tmp_path / "own.py"
    file.write_text(f"import torch\nimport torch.nn.functional as F\ndef loss(o, t):\n    return {text}\n")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    samples = riskaudit.Samples.from_tensors(torch.rand(4, 6), torch.tensor([0, 1, 2, 1]))
    result = riskaudit.audit(model, samples, release="gaussian:0.1", loss=f"{file}:loss")
    found = [one for one in result.warnings if one.startswith("over a batch the loss own.py:loss")]
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]
