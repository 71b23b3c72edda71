"""On a CUDA device attacks go the way that they go on the CPU."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from contracts.attack import generator

from riskaudit.attacks import ATTACKS, Observation, explains
from riskaudit.inputs.architectures import get_architecture
from riskaudit.jacobian import jacobian_maker
from riskaudit.priors import IsotropicPrior
from riskaudit.release import Batch, PerSampleRelease

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def observation(device: str) -> Observation:
    torch.manual_seed(0)
    model = get_architecture("mlp").build(widths=(64, 24, 10)).double().eval()
    inputs = torch.rand(3, 1, 8, 8, generator=generator(), dtype=torch.float64)
    batch = Batch(inputs.to(device), torch.tensor([1, 7, 2], device=device))
    release = PerSampleRelease(copy.deepcopy(model).to(device), F.cross_entropy, "gaussian:0.01")
    released = release.observe(batch, generator(1)).detach()
    return Observation(released, jacobian_maker(release, batch), (1, 8, 8), IsotropicPrior(0.5, 0.3), None, (0.0, 1.0))


@pytest.mark.parametrize("name", ["dlg", "idlg", "inverting-gradients", "gradinversion", "bayes", "analytic"])
def test_same_as_on_the_cpu(name: str) -> None:
    attack = replace(ATTACKS[name](), steps=5, restarts=2)
    expected, there = observation("cpu"), observation("cuda")
    found = attack.run(there, generator())
    assert found.inputs.device.type == "cuda"
    assert len(explains(there, found)) == 3
    torch.testing.assert_close(found.inputs.cpu(), attack.run(expected, generator()).inputs, rtol=1e-6, atol=1e-6)
    assert found.targets.tolist() == [1, 7, 2]
