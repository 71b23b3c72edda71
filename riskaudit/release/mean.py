"""The mean over samples: the gradient of a batch's loss, or the mean of what each sample's steps leave (FedSGD)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.func import grad, vmap
from typing_extensions import override

from riskaudit.release.base import Batch
from riskaudit.release.joint import JointRelease
from riskaudit.release.model import twice_differentiable
from riskaudit.release.steps import BoundStep, applied


@final
class MeanRelease(JointRelease):
    """r(x_1 ... x_n) = (1 / n) sum_i s(g(x_i)), or the gradient of the batch's loss where no step comes before."""

    @override
    def samples_per_client(self, num_samples: int) -> int:
        assert self.spec.mean is not None
        return self.spec.mean.samples or max(1, num_samples // self.spec.num_clients)

    @override
    def transformed_client(self, batch: Batch, steps: Sequence[BoundStep]) -> Tensor:
        if steps:
            samples: Tensor = vmap(
                lambda inputs, target: applied(steps, self.function.sample_gradient(inputs, target), inputs)
            )(batch.inputs, batch.targets)
            return _mean_of(samples, batch)
        gradients = grad(self.run_together)(self.parameters, batch)
        return torch.cat([gradients[name].reshape(-1) for name in self.parameters])

    @override
    def plain_client(self, batch: Batch, steps: Sequence[BoundStep]) -> Tensor:
        if steps:
            samples = [applied(steps, self.function.plain_gradient(*pair), pair[0]) for pair in batch.pairs()]
            return _mean_of(torch.stack(samples), batch)
        parameters = {name: value.clone().requires_grad_() for name, value in self.parameters.items()}
        with torch.enable_grad(), twice_differentiable():
            value = self.run_together(parameters, batch)
            return self.function.flat_gradient(value, parameters, batch.inputs.requires_grad)


def _mean_of(samples: Tensor, batch: Batch) -> Tensor:
    """The mean of samples' vectors [n, P], those of samples that are left out being 0."""
    return (samples if batch.left_out is None else samples * ~batch.left_out[:, None]).mean(0)
