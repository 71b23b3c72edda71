"""What the numbers of a text should be: transformers' own model in float64 and plain torch.func, without the package.

The gradient is of the loss of one text, without padding and masks, at its embedded tokens; every parameter's rows of J
are there, those of the word embedding as far as an output layer shares it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from oracles import Array
from torch import Tensor
from torch.func import functional_call, grad, jacrev


def doubled(network: Any) -> Any:
    network.set_attn_implementation("eager")
    return network.double().eval()


def embedded_gradient(network: Any, target: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
    """e [T, E] to the gradient by parameter, as transformers names and shapes them."""
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def loss(values: Mapping[str, Tensor], embedded: Tensor) -> Tensor:
        logits = functional_call(network, dict(values), kwargs={"inputs_embeds": embedded[None]}).logits
        logits = logits.transpose(1, 2) if logits.ndim == 3 else logits
        return F.cross_entropy(logits, target[None])

    return lambda embedded: grad(loss)(parameters, embedded)


def token_gradient(network: Any, ids: Tensor, target: Tensor) -> Tensor:
    """The gradient at numbers of tokens [T] by plain autograd, every parameter's, flat [P]."""
    logits = network(input_ids=ids[None]).logits
    logits = logits.transpose(1, 2) if logits.ndim == 3 else logits
    value = F.cross_entropy(logits, target[None])
    gradients = torch.autograd.grad(value, list(network.parameters()))
    return torch.cat([each.reshape(-1) for each in gradients]).detach()


def in_order(parts: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], trailing: int = 0) -> Tensor:
    """Gradients by parameter as one vector in the order of ``shapes``; matrices of GPT-2's layers are transposed there.

    Args:
        parts: [*shape, *rest] by parameter.
        shapes: in the order that they leave in.
        trailing: number of the axes of the rest.
    """
    rows = []
    for name, shape in shapes.items():
        part = parts[name]
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            part = part.transpose(0, 1)
        assert part.shape[: part.ndim - trailing] == shape, name
        rows.append(part.reshape(shape.numel(), *part.shape[part.ndim - trailing :]))
    return torch.cat(rows)


def jacobian(network: Any, embedded: Tensor, target: Tensor, shapes: Mapping[str, torch.Size]) -> tuple[Array, Array]:
    """J [P, T E] and r [P] of one text."""
    gradient = embedded_gradient(network, target)
    columns = in_order(jacrev(gradient)(embedded), shapes, trailing=2)
    return columns.flatten(1).detach().numpy(), in_order(gradient(embedded), shapes).detach().numpy()


def moments(vocabulary: Tensor, length: int) -> tuple[Array, Array]:
    """Mean and covariance of ``length`` independent tokens, each as likely as any other of the vocabulary [V, E]."""
    rows = vocabulary.double().numpy()
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / len(rows)
    import numpy as np

    return np.tile(rows.mean(0), length), np.kron(np.eye(length), covariance)
