"""The difference of the weights after local training: theta_0 - theta_K, as it is sent (federated averaging).

    S_k+1 = step(S_k; x_k),  S = (theta, what the optimizer remembers),  k = 0 ... K - 1

Each step is a differentiable function of the state before it and of the samples of its mini-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias, final

import torch
from torch import Tensor, nn
from torch.func import grad
from typing_extensions import override

from riskaudit.release.base import Batch
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.joint import JointRelease
from riskaudit.release.model import LossFunction, twice_differentiable
from riskaudit.release.steps import BoundStep
from riskaudit.release.training import LocalTraining

State: TypeAlias = dict[str, dict[str, Tensor]]
"""Of training: "weights", and by the optimizer "velocity", or "first" and "second" moments, by parameter each."""
Gradient: TypeAlias = Callable[[dict[str, Tensor], Batch], dict[str, Tensor]]

# torch.optim.Adam's defaults.
BETAS, EPSILON = (0.9, 0.999), 1e-8


@final
class LocalTrainingRelease(JointRelease):
    """theta_0 - theta_K after K steps on a client's samples.

    Attributes:
        training: how it trains.
    """

    def __init__(self, model: nn.Module, loss: LossFunction, description: ReleaseSpec | str) -> None:
        super().__init__(model, loss, description)
        assert self.spec.training is not None
        self.training: LocalTraining = self.spec.training

    @override
    def samples_per_client(self, num_samples: int) -> int:
        return max(1, num_samples // self.spec.num_clients)

    @override
    def transformed_client(self, batch: Batch, steps: Sequence[BoundStep]) -> Tensor:
        return self._trained(batch, grad(self.run_together))

    @override
    def plain_client(self, batch: Batch, steps: Sequence[BoundStep]) -> Tensor:
        def gradient(weights: dict[str, Tensor], part: Batch) -> dict[str, Tensor]:
            return self.plain_gradient(weights, part, create_graph=batch.inputs.requires_grad)

        with torch.enable_grad(), twice_differentiable():
            released = self._trained(batch, gradient, leaf=True)
        return released if batch.inputs.requires_grad else released.detach()

    def plain_gradient(self, weights: dict[str, Tensor], batch: Batch, create_graph: bool) -> dict[str, Tensor]:
        """The gradient of a mini-batch's loss at weights that require one, by plain autograd; 0 where it has none."""
        value, gradients = self.run_together(weights, batch), list[Tensor | None]([None] * len(weights))
        if value.requires_grad:
            gradients = list(
                torch.autograd.grad(value, list(weights.values()), create_graph=create_graph, allow_unused=True)
            )
        pairs = zip(weights.items(), gradients, strict=True)
        return {name: torch.zeros_like(weight) if part is None else part.to_dense() for (name, weight), part in pairs}

    def trained_step(self, state: State, number: int, batch: Batch) -> State:
        """`step` by plain autograd, as training computes it; nothing has a graph."""

        def gradient(weights: dict[str, Tensor], part: Batch) -> dict[str, Tensor]:
            leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
            with torch.enable_grad(), self._kernels():
                return self.plain_gradient(leaves, part, create_graph=False)

        with torch.no_grad():
            return self.step(state, number, batch, gradient)

    def graphed_step(self, state: State, number: int, batch: Batch) -> State:
        """`step` by plain autograd, differentiable in whatever of the state and the inputs requires it."""
        with torch.enable_grad(), self._kernels():
            return self.step(state, number, batch, lambda weights, part: self.plain_gradient(weights, part, True))

    def _kernels(self) -> AbstractContextManager[None]:
        """Those with second derivatives; they are slower where none are recurrent."""
        recurrent = any(isinstance(module, nn.RNNBase) for module in self.model.modules())
        return twice_differentiable() if recurrent else nullcontext()

    def initial_state(self) -> State:
        """Before the first step."""
        zeros = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        state = {"weights": dict(self.parameters)}
        if self.training.optimizer == "adam":
            return {**state, "first": zeros, "second": dict(zeros)}
        return {**state, "velocity": zeros} if self.training.momentum else state

    def step(self, state: State, number: int, batch: Batch, gradient: Gradient | None = None) -> State:
        """The state after step ``number`` (from 0) on one mini-batch, differentiable in both."""
        weights, training = state["weights"], self.training
        gradients = (gradient or grad(self.run_together))(weights, batch)
        if training.weight_decay:
            gradients = {name: gradients[name] + training.weight_decay * weights[name] for name in weights}
        if training.optimizer == "adam":
            return _adam(state, gradients, training.rate(number), number + 1)
        if training.momentum:
            velocity = {name: training.momentum * state["velocity"][name] + gradients[name] for name in weights}
            return {"weights": _moved(weights, velocity, training.rate(number)), "velocity": velocity}
        return {"weights": _moved(weights, gradients, training.rate(number))}

    def mini_batches(self, batch: Batch) -> list[tuple[list[int], Batch]]:
        """For every step of one client the positions of its samples, and these."""
        return [(positions, batch.samples(positions)) for positions in self.training.mini_batches(len(batch))]

    def difference(self, weights: dict[str, Tensor]) -> Tensor:
        """theta_0 - theta, [P]."""
        return torch.cat([(self.parameters[name] - weights[name]).reshape(-1) for name in self.parameters])

    def _trained(self, batch: Batch, gradient: Gradient, leaf: bool = False) -> Tensor:
        state = self.initial_state()
        if leaf:
            state["weights"] = {name: value.clone().requires_grad_() for name, value in state["weights"].items()}
        for number, (_, part) in enumerate(self.mini_batches(batch)):
            state = self.step(state, number, part, gradient)
            if leaf and not batch.inputs.requires_grad:
                state["weights"] = {name: value.detach().requires_grad_() for name, value in state["weights"].items()}
        return self.difference(state["weights"])


def _moved(weights: dict[str, Tensor], direction: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
    return {name: torch.sub(weights[name], direction[name], alpha=rate) for name in weights}


def _adam(state: State, gradients: dict[str, Tensor], rate: float, number: int) -> State:
    """Kingma and Ba, ICLR 2015, as torch.optim.Adam computes it; ``number`` counts from 1."""
    (beta1, beta2), weights = BETAS, state["weights"]
    first = {name: beta1 * state["first"][name] + (1 - beta1) * gradients[name] for name in weights}
    second = {name: beta2 * state["second"][name] + (1 - beta2) * gradients[name].square() for name in weights}
    direction = {
        name: first[name] / (1 - beta1**number) / (_root(second[name] / (1 - beta2**number)) + EPSILON)
        for name in weights
    }
    return {"weights": _moved(weights, direction, rate), "first": first, "second": second}


def _root(squares: Tensor) -> Tensor:
    """Square roots, with the derivative 0 at 0 in the place of infinity: entries without gradient stay without."""
    positive = squares > 0
    return squares.where(positive, 1.0).sqrt().where(positive, 0.0)
