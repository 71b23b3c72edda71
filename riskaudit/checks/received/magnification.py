"""How strongly a model's gradients depend on their inputs: the largest singular value of dr/dx, by a few products.

r is the gradient of one sample's cross-entropy (docs/theory.md, section 1). Its label is the likeliest but the one
predicted: at the label of a sample a trained network has hardly any gradient, and how much depends on how sure it is.

Only models of which all layers are known to the structured Jacobian are looked at; the layers are found once for all
models of an architecture.
"""

from __future__ import annotations

import math
import statistics

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riskaudit.checks.received.base import SignNotApplicable
from riskaudit.inputs.text import clean
from riskaudit.jacobian import StructuredJacobian, obstacle_of
from riskaudit.jacobian.agreement import described, layout_of
from riskaudit.jacobian.structured import Layout, UnsupportedLayer
from riskaudit.linalg import lanczos
from riskaudit.release import Batch, PerSampleRelease

# The median of three is that of an ordinary sample, though one may lie at an edge.
SAMPLES, PRODUCTS = 3, 3
# Passes through the model that one sample's products take, and that finding the layers takes.
PASSES_OF_A_SAMPLE, PASSES_OF_A_LAYOUT = 10, 30
_SEED = 20231


class Magnification:
    """Measures models of one architecture."""

    def __init__(self, affordable_passes: float, models: int) -> None:
        """Passes through the model that all its models may take together."""
        share = (affordable_passes - PASSES_OF_A_LAYOUT) / models / PASSES_OF_A_SAMPLE
        self._num_samples = min(SAMPLES, int(share))
        self._layout: Layout | None = None

    def of(self, model: nn.Module, inputs: Tensor) -> float | str:
        """The median over some samples of the largest singular value, or why there is none.

        Args:
            model: in eval mode; never changed.
            inputs: [N, *S], in the model's dtype.
        """
        if self._num_samples < 1:
            return "the model is too large for products with the Jacobian of its gradient"
        try:
            return self._measured(model, inputs[: self._num_samples])
        except SignNotApplicable as reason:
            return str(reason)
        except UnsupportedLayer as unsupported:
            return f"{described(model, unsupported)} is not known to the structured Jacobian"
        except Exception as error:  # third-party code may raise anything, and quote its inputs
            return obstacle_of(error) or f"the model's gradient can't be differentiated ({clean(type(error).__name__)})"

    def _measured(self, model: nn.Module, inputs: Tensor) -> float:
        with torch.no_grad():
            outputs = model(inputs)
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
            raise SignNotApplicable("the outputs aren't one per class")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise SignNotApplicable("no parameter is trained")
        batch = Batch(inputs, outputs.topk(2, dim=1).indices[:, 1])
        release = PerSampleRelease(model, F.cross_entropy)
        with torch.enable_grad():
            if self._layout is None:
                self._layout = layout_of(release, batch)
            hessian = StructuredJacobian(release, batch, self._layout).hessian()
            generator = torch.Generator().manual_seed(_SEED)
            start = torch.randn(len(inputs), inputs[0].numel(), generator=generator, dtype=torch.float64).to(inputs)
            spaces = lanczos(hessian, start, lambda _, __: False, PRODUCTS)
        tridiagonals = [space.tridiagonal for space in spaces]
        if not all(np.isfinite(each.diagonal).all() for each in tridiagonals):
            return math.inf
        return statistics.median(math.sqrt(each.largest) for each in tridiagonals)
