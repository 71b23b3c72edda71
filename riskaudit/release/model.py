"""A model and its loss as functions of the weights and the inputs, for one sample and for batches.

Gradients are made by torch.func transforms, which the Jacobian's transforms may run again, or by plain autograd where
a model can't be run under them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, replace_all_batch_norm_modules_, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from riskaudit.errors import CoupledReleaseError, ReleaseError
from riskaudit.formatting import count
from riskaudit.release.added_loss import adding_layers, collected
from riskaudit.release.affine_norms import AffineNormsApart
from riskaudit.release.precision import DoublePrecisionKept

if TYPE_CHECKING:
    from riskaudit.release.base import Batch

LossFunction = Callable[[Tensor, Tensor], Tensor]
Result = TypeVar("Result")
# How torch begins to say that batch norm has no statistics of a batch (`torch.nn.functional.batch_norm`).
ONE_VALUE = "Expected more than 1 value per channel when training"


@final
class ModelFunction:
    """A model and its loss.

    Args:
        model: in eval mode; trainable parameters are those with ``requires_grad``.
        loss: ``loss(outputs [1, ...], targets [1, ...])`` to a scalar.
        mixes_samples: whether layers may compute with the statistics of a batch.

    Attributes:
        parameters: the trainable ones, by name, without graph.
        constants: all other tensors that the model computes with, by name.
        dtype: of the parameters.
        device: of the parameters.

    Raises:
        ReleaseError: a model without trainable parameters, one with random layers switched on, or one whose weights
            can't be exchanged (scripted, or in a DataParallel).
        CoupledReleaseError: a layer that mixes the samples of a batch.
    """

    def __init__(self, model: nn.Module, loss: LossFunction, mixes_samples: bool = False) -> None:
        self.model = model
        self.loss = loss
        _refuse_wrappers(model)
        _refuse_unrepeatable_layers(model, mixes_samples)
        self.parameters = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
        if not self.parameters:
            raise ReleaseError("expected a model with trainable parameters, found none with requires_grad=True")
        frozen = {name: value.detach() for name, value in model.named_parameters() if not value.requires_grad}
        self.constants = {**frozen, **dict(model.named_buffers())}
        self._names = _names_in_modules(model)
        self._adding = adding_layers(model)
        first = next(iter(self.parameters.values()))
        self.dtype, self.device = first.dtype, first.device
        self._transforms_fail = False

    def run(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """The model's outputs for inputs [B, *S] with these trainable parameters.

        Raises:
            CoupledReleaseError: batch norm with the statistics of a batch that has one value per channel.
        """
        replaced = {
            path: tensor
            for tensors in (self.constants, parameters)
            for name, tensor in tensors.items()
            for path in self._names[name]
        }
        with DoublePrecisionKept() if self.dtype == torch.float64 else nullcontext():
            # torch's own handling of tied weights leaves a module that occurs twice in the model with the tensors
            # of the call (torch 2.13), and tears its ties.
            try:
                outputs: Tensor = functional_call(self.model, replaced, (inputs,), tie_weights=False)
            except ValueError as error:
                if not str(error).startswith(ONE_VALUE):
                    raise
                raise CoupledReleaseError(_one_value(len(inputs))) from error
        return outputs

    def run_with_added(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """`run`, and what layers add to the loss of every sample, [B]; None where none does."""
        if not self._adding:
            return self.run(parameters, inputs), None
        with collected(self._adding) as terms:
            outputs = self.run(parameters, inputs)
        return outputs, torch.stack(terms).sum(0) if terms else None

    def sample_loss(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Loss of one sample, scalar; inputs [*S], target [...]."""
        return self._loss(self.parameters, inputs, target)

    def sample_gradient(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Gradient of one sample's loss w.r.t. the parameters, [P]; runs under torch.func transforms."""
        gradients = grad(self._loss)(self.parameters, inputs, target)
        return torch.cat([gradients[name].reshape(-1) for name in self.parameters])

    def plain_loss(self, inputs: Tensor, target: Tensor) -> Tensor:
        """`sample_loss` without transforms, and without graph."""
        with torch.no_grad(), twice_differentiable():
            return self._loss(self.parameters, inputs, target)

    def plain_gradient(self, inputs: Tensor, target: Tensor) -> Tensor:
        """`sample_gradient` by `torch.autograd` alone, for code that no transform can run.

        Differentiable in the inputs where they require it, and only outside torch.func transforms.
        """
        parameters = {name: value.clone().requires_grad_() for name, value in self.parameters.items()}
        with torch.enable_grad(), twice_differentiable():
            return self.flat_gradient(self._loss(parameters, inputs, target), parameters, inputs.requires_grad)

    def flat_gradient(self, loss: Tensor, parameters: Mapping[str, Tensor], create_graph: bool) -> Tensor:
        """The gradient of a loss (scalar) w.r.t. the parameters that it was computed with, [P]; 0 where it has none."""
        gradients: Sequence[Tensor | None] = [None] * len(parameters)
        if loss.requires_grad:
            gradients = torch.autograd.grad(
                loss, list(parameters.values()), create_graph=create_graph, allow_unused=True
            )
        pairs = zip(gradients, self.parameters.values(), strict=True)
        parts = [torch.zeros_like(value) if part is None else part.to_dense() for part, value in pairs]
        return torch.cat([part.reshape(-1) for part in parts])

    def losses(self, batch: Batch) -> Tensor:
        """Loss of every sample, [B]."""
        return self.or_plainly(
            lambda: self.transformed_losses(batch),
            lambda: torch.stack([self.plain_loss(inputs, target) for inputs, target in batch.pairs()]),
        )

    def transformed_losses(self, batch: Batch) -> Tensor:
        """`losses` by torch.func transforms."""
        losses: Tensor = vmap(self.sample_loss)(batch.inputs, batch.targets)
        return losses

    def or_plainly(self, transformed: Callable[[], Result], plainly: Callable[[], Result]) -> Result:
        """By torch.func transforms, or where they can't run the model, from then on by plain autograd.

        What is wrong with the model itself shows again, in its own words.
        """
        if not self._transforms_fail:
            try:
                return transformed()
            except (RuntimeError, NotImplementedError) as error:
                if is_random(error) or _is_out_of_memory(error):
                    raise
                result = plainly()
                self._transforms_fail = True
                return result
        return plainly()

    def _loss(self, parameters: dict[str, Tensor], inputs: Tensor, target: Tensor) -> Tensor:
        # Attention's other kernels have no second derivatives.
        with sdpa_kernel(SDPBackend.MATH), AffineNormsApart():
            outputs, added = self.run_with_added(parameters, inputs.unsqueeze(0))
        loss = self.loss(outputs, target.unsqueeze(0)).sum()
        return loss if added is None else loss + added.sum()


def is_random(error: BaseException) -> bool:
    """Whether an error of a transform says that the model draws random numbers."""
    return "random operation" in str(error)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Without the fused kernels of recurrent layers, which have no second derivatives."""
    before = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)  # type: ignore[no-untyped-call]
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before[0], _fp32_precision=None)  # type: ignore[no-untyped-call]


def _names_in_modules(model: nn.Module) -> dict[str, list[str]]:
    """For every parameter and buffer, by its first name, one name for each module that holds it."""
    modules = list(model.named_modules())
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for held in ("_parameters", "_buffers"):
        for path, module in modules:
            for name, tensor in getattr(module, held).items():
                if tensor is not None:
                    full = f"{path}.{name}" if path else name
                    names.setdefault(first.setdefault(id(tensor), full), []).append(full)
    return names


def batch_norm_layers(model: nn.Module) -> list[str]:
    """Names of the layers that normalise with batch statistics when the model is in train mode."""
    return [
        f"{name or 'the model'} ({type(layer).__name__})"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]


def _one_value(num_samples: int) -> str:
    """What is said of a batch that torch doesn't train on either."""
    return (
        "expected two values per channel at least for batch norm with the statistics of the batch, found one in a "
        f"batch of {count(num_samples, 'sample')}, which torch doesn't train on either; choose other batches, leave "
        "out the sample that is left over, or let batch norm take its running statistics (`batch_norm=running` in a "
        "scan, eval() of these layers in a training)"
    )


def _refuse_wrappers(model: nn.Module) -> None:
    """Refuse what can't be run with weights other than its own, as `functional_call` does."""
    if isinstance(model, nn.DataParallel):
        raise ReleaseError(
            "expected the module that is trained, found a DataParallel around it; hand over its .module, which has the "
            "same weights"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ReleaseError(
            "expected a module of Python code, found one that torch.jit has scripted or traced; hand over the eager "
            "module that it was made of, with the same weights"
        )


def mixes_samples(model: nn.Module) -> bool:
    """Whether a layer computes with the statistics of the batch, as the model's modes are."""
    return any(
        isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None)
        for layer in model.modules()
    )


def with_batch_statistics(model: nn.Module) -> nn.Module:
    """A model in eval mode whose batch norms compute with each batch's own statistics, as in training; in place."""
    replaced: nn.Module = replace_all_batch_norm_modules_(model)
    return replaced


def _refuse_unrepeatable_layers(model: nn.Module, mixes_samples: bool) -> None:
    """Refuse layers for which the release isn't a function of its samples alone."""
    for name, layer in model.named_modules():
        kind = f"layer {name or 'the model'!r} ({type(layer).__name__})"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            if layer.running_mean is None and not mixes_samples:
                raise CoupledReleaseError(
                    f"{kind} keeps no running statistics, so one sample's gradient depends on the others; "
                    "audit samples that leave together, as training sends them (mean:N or local in the release), a "
                    "model with track_running_stats=True, or another normalisation"
                )
            if layer.training and layer.running_mean is not None:
                ignored = " (where eval() was called, the model's own train() ignored it)"
                raise CoupledReleaseError(
                    f"{kind} is in train mode{ignored}, so one sample's gradient depends on the others and on the "
                    "order of calls; call model.eval() to audit with its running statistics, or audit samples that "
                    "leave together (mean:N or local in the release)"
                )
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:
            raise ReleaseError(f"{kind} is in train mode, so the gradient is random; call model.eval()")
