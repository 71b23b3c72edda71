"""Figures that the I2F authors' logs show, held beside ours for the same network and data.

Their untrained LeNet on MNIST (noise variance 1e-5) has l_1 between 2.4 and 4.2 and tr H between 41 and
70. Both depend strongly on the drawn weights, so ours are taken over many draws.
"""

from __future__ import annotations

import cases
import numpy as np
import pytest
import torch

from riskaudit.inputs import load_loss
from riskaudit.inputs.architectures import get_architecture
from riskaudit.jacobian import GenericJacobian
from riskaudit.linalg import GramOperator, Spectrum
from riskaudit.release import PerSampleRelease

NUM_DRAWS, NUM_IMAGES = 20, 3


@pytest.mark.slow
def test_untrained_lenet_spans_the_published_range() -> None:
    batch = cases.mnist(NUM_IMAGES)
    largest, traces = [], []
    for seed in range(NUM_DRAWS):
        torch.manual_seed(seed)
        model = get_architecture("lenet").build(channels=1, features=588, classes=10).double().eval()
        for parameter in model.parameters():
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
        release = PerSampleRelease(model, load_loss("cross-entropy"), "gaussian:0.0031623")
        values = Spectrum.of(GramOperator(GenericJacobian(release, batch))).values
        largest.append(float(values[:, -1].median()))
        traces.append(float(values.sum(-1).median()))
    print(f"l_1 over {NUM_DRAWS} draws, quartiles: {np.quantile(largest, [0, 0.25, 0.5, 0.75, 1]).round(2)}")
    print(f"tr H over {NUM_DRAWS} draws, quartiles: {np.quantile(traces, [0, 0.25, 0.5, 0.75, 1]).round(1)}")
    assert min(largest) < 4.2
    assert max(largest) > 2.4
    assert min(traces) < 70
    assert max(traces) > 41
