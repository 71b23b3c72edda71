"""The release: what leaves the client for one sample. Victim, proxies and attacks share this object.

r(x) is the pipeline's mean as a differentiable function of the input; noise and its law come with it.
Each sample is released on its own: a mean gradient over a batch has Jacobian J_i / B for sample i, so
this is the attacker who knows the other samples' gradients (docs/theory.md, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from riskaudit.errors import CoupledReleaseError, ReleaseError
from riskaudit.release.affine_norms import AffineNormsApart
from riskaudit.release.derivatives import Chain, chain
from riskaudit.release.noise import Noise
from riskaudit.release.parse import check_order, parse_steps
from riskaudit.release.steps import GaussianNoise, NoiseStep, Step, identity

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """Samples that are released one by one: inputs [B, *S] in data units, targets [B, ...]."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, indices: list[int]) -> Batch:
        """Some of the samples, in the order given."""
        return Batch(self.inputs[indices], self.targets[indices])


@final
class Release:
    """A model, a loss and a pipeline.

    Args:
        model: in eval mode; trainable parameters are those with ``requires_grad``.
        loss: ``loss(outputs [1, ...], targets [1, ...])`` to a scalar.
        steps: the pipeline as text or as steps; the gradient comes first.

    Raises:
        ReleaseError: a pipeline without a known noise law, a model without trainable parameters, one with random
            layers switched on, or one whose weights can't be exchanged (scripted, or in a DataParallel).
        CoupledReleaseError: a layer that mixes the samples of a batch.
    """

    coupling: Literal["per_sample"] = "per_sample"

    def __init__(self, model: nn.Module, loss: LossFunction, steps: str | Sequence[Step] = "gradient") -> None:
        self.model = model
        self.loss = loss
        self.steps = parse_steps(steps) if isinstance(steps, str) else tuple(steps)
        check_order(self.steps)
        _refuse_wrappers(model)
        _refuse_unrepeatable_layers(model)
        self.parameters = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
        if not self.parameters:
            raise ReleaseError("expected a model with trainable parameters, found none with requires_grad=True")
        frozen = {name: value.detach() for name, value in model.named_parameters() if not value.requires_grad}
        self.constants = {**frozen, **dict(model.named_buffers())}
        self._names = _names_in_modules(model)
        first = next(iter(self.parameters.values()))
        self.dtype, self.device = first.dtype, first.device
        self.num_entries = sum(value.numel() for value in self.parameters.values())
        self._functions = [step.bind(self.num_entries, self.dtype, self.device) for step in self.steps]
        noise_steps = [index for index, step in enumerate(self.steps) if isinstance(step, NoiseStep)]
        self._noise_index = noise_steps[0] if noise_steps else None
        self._plain = False

    @property
    def spec(self) -> str:
        """The pipeline as ``--release`` takes it, every default written out."""
        return ",".join(step.spec for step in self.steps)

    @property
    def noise(self) -> Noise | None:
        """Law of the noise on every released entry of one sample, or None when undefended."""
        step = None if self._noise_index is None else self.steps[self._noise_index]
        return step.noise if isinstance(step, NoiseStep) else None

    def with_noise(self, std: float) -> Release:
        """The same release with Gaussian noise of this std per released entry instead of its own."""
        quiet = [step for step in self.steps if not isinstance(step, NoiseStep)]
        return Release(self.model, self.loss, [*quiet, GaussianNoise(std)])

    def without_noise(self) -> Release:
        """The same release without its noise."""
        return Release(self.model, self.loss, [step for step in self.steps if not isinstance(step, NoiseStep)])

    def sample_loss(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Loss of one sample, scalar; inputs [*S], target [...]."""
        return self._loss(self.parameters, inputs, target)

    def gradient(self, batch: Batch) -> Tensor:
        """The gradient of every sample before any step of the pipeline, [B, P]."""
        pairs = list(zip(batch.inputs, batch.targets, strict=True))
        return self._or_plainly(
            lambda: torch.stack([self._sample_gradient(inputs, target) for inputs, target in pairs]),
            lambda: torch.stack([self._plain_gradient(inputs, target) for inputs, target in pairs]),
        )

    def sample_mean(self, inputs: Tensor, target: Tensor) -> Tensor:
        """r(x) of one sample, [P], differentiable in the inputs [*S]; runs under torch.func transforms."""
        released = self._sample_gradient(inputs, target)
        for function in self._functions:
            released = function(released)
        return released

    def _sample_gradient(self, inputs: Tensor, target: Tensor) -> Tensor:
        gradients = grad(self._loss)(self.parameters, inputs, target)
        return torch.cat([gradients[name].reshape(-1) for name in self.parameters])

    @property
    def changes_gradient(self) -> bool:
        """Whether some step does more than adding noise."""
        return any(function is not identity for function in self._functions)

    def derivative(self, gradients: Tensor) -> Chain:
        """Derivative of the pipeline w.r.t. the gradient, at gradients [B, P]."""
        return chain(
            gradients, [(mean, step.derivative) for mean, step in zip(self._functions, self.steps, strict=True)]
        )

    def after_gradient(self, gradients: Tensor) -> Tensor:
        """r(x) of samples whose gradients [B, P] are known."""
        for function in self._functions:
            gradients = torch.stack([function(row) for row in gradients])
        return gradients

    def plain_mean(self, inputs: Tensor, target: Tensor) -> Tensor:
        """r(x) of one sample, [P], by `torch.autograd` alone: for code that no torch.func transform can run.

        Differentiable in the inputs [*S] where they require it, and only outside torch.func transforms.
        """
        released = self._plain_gradient(inputs, target)
        for function in self._functions:
            released = function(released)
        return released

    def plain_loss(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Loss of one sample, scalar, without transforms."""
        with torch.no_grad(), twice_differentiable():
            return self._loss(self.parameters, inputs, target)

    def _plain_gradient(self, inputs: Tensor, target: Tensor) -> Tensor:
        parameters = {name: value.clone().requires_grad_() for name, value in self.parameters.items()}
        further = inputs.requires_grad
        with torch.enable_grad(), twice_differentiable():
            loss = self._loss(parameters, inputs, target)
            found: Sequence[Tensor | None] = [None] * len(parameters)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, list(parameters.values()), create_graph=further, allow_unused=True)
            pairs = zip(found, self.parameters.values(), strict=True)
            flat = [(torch.zeros_like(own) if one is None else one).reshape(-1) for one, own in pairs]
            return torch.cat(flat)

    def _or_plainly(self, transformed: Callable[[], Tensor], plainly: Callable[[], Tensor]) -> Tensor:
        """By torch.func transforms, or where they can't run the model, from then on by plain autograd.

        What is wrong with the model itself shows again, in its own words.
        """
        if not self._plain:
            try:
                return transformed()
            except (RuntimeError, NotImplementedError) as error:
                if is_random(error) or _is_out_of_memory(error):
                    raise
                found = plainly()
                self._plain = True
                return found
        return plainly()

    def mean(self, batch: Batch) -> Tensor:
        """r(x) of every sample, [B, P], differentiable in the inputs; not to be called under a transform."""
        pairs = list(zip(batch.inputs, batch.targets, strict=True))
        return self._or_plainly(
            lambda: self.transformed_mean(batch),
            lambda: torch.stack([self.plain_mean(inputs, target) for inputs, target in pairs]),
        )

    def transformed_mean(self, batch: Batch) -> Tensor:
        """`mean` by torch.func transforms, and under them."""
        if len(batch) == 1:
            # Without vmap the weights keep their ordinary, faster kernels.
            return self.sample_mean(batch.inputs[0], batch.targets[0]).unsqueeze(0)
        mean: Tensor = vmap(self.sample_mean)(batch.inputs, batch.targets)
        return mean

    def losses(self, batch: Batch) -> Tensor:
        """Loss of every sample, [B]."""
        pairs = list(zip(batch.inputs, batch.targets, strict=True))
        return self._or_plainly(
            lambda: self.transformed_losses(batch),
            lambda: torch.stack([self.plain_loss(inputs, target) for inputs, target in pairs]),
        )

    def transformed_losses(self, batch: Batch) -> Tensor:
        """`losses` by torch.func transforms."""
        losses: Tensor = vmap(self.sample_loss)(batch.inputs, batch.targets)
        return losses

    def sample_noise(self, generator: torch.Generator) -> Tensor:
        """One draw of the noise as it leaves the client, [P], on the release's device.

        The generator should live on the CPU, so that every device sees the same noise.

        Raises:
            ReleaseError: the release has no noise.
        """
        noise = self._require_noise()
        drawn = noise.sample(self.num_entries, generator, self.dtype).to(self.device)
        return self._after_noise(drawn)

    def observe(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """What the server receives, [B, P]: the mean plus one draw of noise per sample, if there is any."""
        mean = self.mean(batch)
        if self.noise is None:
            return mean
        return mean + torch.stack([self.sample_noise(generator) for _ in range(len(batch))])

    def log_prob(self, observation: Tensor, batch: Batch) -> Tensor:
        """Log density of an observation [B, P] if the inputs were ``batch``, [B], differentiable in them.

        Raises:
            ReleaseError: the release has no noise, hence no density.
        """
        return self._require_noise().log_density(observation - self.mean(batch), self.noisy_entries)

    def _loss(self, parameters: dict[str, Tensor], inputs: Tensor, target: Tensor) -> Tensor:
        # Attention's other kernels have no second derivatives.
        with sdpa_kernel(SDPBackend.MATH), AffineNormsApart():
            outputs = self.run(parameters, inputs.unsqueeze(0))
        return self.loss(outputs, target.unsqueeze(0)).sum()

    def run(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """The model's outputs for inputs [B, *S] with these trainable parameters."""
        given = {
            name: tensor
            for tensors in (self.constants, parameters)
            for own, tensor in tensors.items()
            for name in self._names[own]
        }
        # torch's own handling of tied weights leaves a module that occurs twice in the model with the tensors
        # of the call (torch 2.13), and tears its ties.
        outputs: Tensor = functional_call(self.model, given, (inputs,), tie_weights=False)
        return outputs

    @property
    def noisy_entries(self) -> Tensor:
        """1 where a released entry carries noise, 0 where a later step removes it for everybody, [P].

        All ones for a release without noise.
        """
        ones = torch.ones(self.num_entries, dtype=self.dtype, device=self.device)
        return ones if self._noise_index is None else self._after_noise(ones)

    def _after_noise(self, noise: Tensor) -> Tensor:
        """What the steps after the noise (linear ones only) make of it."""
        assert self._noise_index is not None
        for function in self._functions[self._noise_index + 1 :]:
            noise = function(noise)
        return noise

    def _require_noise(self) -> Noise:
        if self.noise is None:
            raise ReleaseError(
                f"the release {self.spec!r} has no noise, so its observations have no density; "
                "use with_noise for a reference noise"
            )
        return self.noise


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


def _refuse_unrepeatable_layers(model: nn.Module) -> None:
    """Refuse layers for which the release isn't a function of one sample alone."""
    for name, layer in model.named_modules():
        kind = f"layer {name or 'the model'!r} ({type(layer).__name__})"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            if layer.running_mean is None:
                raise CoupledReleaseError(
                    f"{kind} keeps no running statistics, so one sample's gradient depends on the others; "
                    "audit a model with track_running_stats=True or with another normalisation"
                )
            if layer.training:
                raise CoupledReleaseError(
                    f"{kind} is in train mode, so one sample's gradient depends on the others and on the "
                    "order of calls; call model.eval() to audit with its running statistics"
                )
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:
            raise ReleaseError(f"{kind} is in train mode, so the gradient is random; call model.eval()")
