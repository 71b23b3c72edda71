"""The guard around every step of differentially private training with Opacus; see docs/opacus.md.

With noise multiplier s, norm bound C and expected batch size E, Opacus releases

    (sum_i min(1, C / ||g_i||) g_i + N(0, s^2 C^2)) / E

(Abadi et al., Deep learning with differential privacy, CCS 2016, algorithm 1). E is public, so the guard reviews the
sum: release "clip:C,gaussian:sC" with reduction="sum". The batch is assessed before the step: what the policy withholds
or drops never gets there. The sum with its noise is reviewed in a hook of the original optimizer, the last place before
the weights change; any step that doesn't come through `OpacusGuard.step` is withheld there.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from riskaudit.errors import GuardError, RiskauditError, SettingsError
from riskaudit.guard import AuditLog, Decision, Guard, Ledger, Policy
from riskaudit.guard.base_client import LossLike
from riskaudit.guard.noise.randomness import SecureNoise
from riskaudit.integrations.allowance import number_of_samples
from riskaudit.integrations.gradients import clear, gradients, trainable, write
from riskaudit.release import Batch


class OpacusGuard:
    """Takes the place of ``optimizer.step()``.

    Args:
        model: as `PrivacyEngine.make_private` returned it.
        optimizer: likewise; on one device, with one norm bound for the whole gradient.
        loss_fn: see `Guard`; what it gives for one sample is what the training sums or averages.
        policy: what it sanitises it must do by "drop": noise belongs to Opacus and its accountant.
        ledger: see `Guard`.
        log: see `Guard`.
        options: prior, prior_std and dtype, see `Guard`.

    Attributes:
        decision: about the last step, also one that didn't come through `step`; None before the first.

    Raises:
        SettingsError: another kind of optimizer or module, a policy that adds noise or clips, an optimizer of other
            parameters than the model's.
        RiskauditError: see `Guard`.
    """

    def __init__(
        self,
        model: GradSampleModule,
        optimizer: DPOptimizer,
        loss_fn: LossLike,
        policy: Policy,
        *,
        ledger: Ledger | str | Path | None = None,
        log: AuditLog | str | Path | None = None,
        **options: Any,
    ) -> None:
        if type(model) is not GradSampleModule or type(optimizer) is not DPOptimizer:
            raise SettingsError(
                "expected a GradSampleModule and a DPOptimizer, found "
                f"{type(model).__name__} and {type(optimizer).__name__}; use make_private with clipping='flat' and "
                "grad_sample_mode='hooks', in one process"
            )
        if policy.on_violation == "sanitise" and policy.sanitiser != "drop":
            raise SettingsError(
                f"expected sanitiser = 'drop' with Opacus, found {policy.sanitiser!r}: its accountant must know of all "
                "noise and clipping; set noise_multiplier and max_grad_norm instead"
            )
        if set(map(id, optimizer.params)) != set(map(id, trainable(model))):
            raise SettingsError("expected an optimizer of exactly the model's trainable parameters")
        self.decision: Decision | None = None
        self._model, self._optimizer, self._plain = model, optimizer, _plain(model)
        self._loss_fn, self._policy, self._options = loss_fn, policy, options
        self._ledger = Ledger(ledger) if isinstance(ledger, str | Path) else ledger
        self._log = AuditLog(log) if isinstance(log, str | Path) else log
        self._guard = self._make_guard(_release(optimizer))
        # What the next step of the original optimizer may be taken for: a batch, its ids, and its assessment.
        self._pending: tuple[Batch | Sequence[Any], Sequence[object] | None, Decision] | None = None
        _draw_from_the_system(optimizer)
        self._handle = optimizer.original_optimizer.register_step_pre_hook(self._before_step)

    def step(self, batch: Batch | Sequence[Any], *, ids: Sequence[object] | None = None) -> Decision:
        """Step with the batch that the last backward pass was of, or with what the policy leaves of it, or not at all.

        Per-sample gradients are gone afterwards in every case, and a withheld batch is in no later step.

        Args:
            batch: all of it: inputs [B, ...] and targets [B, ...].
            ids: names of the samples, see `Guard.review`.

        Returns:
            The decision; its update is Opacus's sum with noise, before the division by E. Nothing is raised but for
            interrupts: whatever goes wrong withholds the step.
        """
        self.decision = None
        try:
            self._step(batch, ids)
        except RiskauditError as error:
            self.decision = self._guard.withhold(str(error))
        except Exception as error:  # model, loss and hooks are third-party code
            self.decision = self._guard.withhold(error)
        finally:
            self.discard()
        if self.decision is None:
            self.decision = self._guard.withhold("the step never reached the optimizer")
        return self.decision

    def discard(self) -> None:
        """Forget a batch that was begun: per-sample gradients, their sums, activations and skip signals.

        Call it where training code failed between forward pass and step; `step` does it by itself.
        """
        self._pending = None
        self._optimizer._step_skip_queue.clear()
        self._optimizer._is_last_step_skipped = False
        self._optimizer.zero_grad(set_to_none=True)
        for module in self._model.modules():
            # A forward pass without a backward pass would stay in the next batch's count.
            if getattr(module, "activations", None):
                module.activations = []
            if hasattr(module, "max_batch_len"):
                del module.max_batch_len
        for parameter in trainable(self._model):
            parameter._forward_counter = 0  # type: ignore[attr-defined]
            if hasattr(parameter, "_current_grad_sample"):
                del parameter._current_grad_sample

    def close(self) -> None:
        """Let the optimizer go unguarded, and let go of the ledger."""
        self._handle.remove()
        self._guard.close()

    def _step(self, batch: Batch | Sequence[Any], ids: Sequence[object] | None) -> None:
        optimizer = self._optimizer
        self._refuse_accumulation()
        release = _release(optimizer)
        if release != self._guard.release:
            # A scheduler of Opacus changed its noise or its bound.
            self._guard = self._make_guard(release)
        for module, live in zip(self._plain.modules(), self._model._module.modules(), strict=True):
            module.training = live.training
        assessment = self._guard.assess(batch, ids=ids)
        if assessment.action == "block":
            self.decision = assessment
            return
        count = number_of_samples(batch)
        dropped = sorted(set(range(count)) - set(assessment.kept))
        for parameter in optimizer.params:
            if len(parameter.grad_sample) != count:
                raise GuardError(f"expected {count} per-sample gradients, found {len(parameter.grad_sample)}")
            parameter.grad_sample[dropped] = 0
        self._pending = batch, ids, assessment
        optimizer.step()

    def _refuse_accumulation(self) -> None:
        """Raise where a step would hold more than one batch."""
        for parameter in self._optimizer.params:
            per_sample = getattr(parameter, "grad_sample", None)
            if per_sample is None:
                raise GuardError("expected per-sample gradients, found none; call backward() before step()")
            if not isinstance(per_sample, torch.Tensor) or getattr(parameter, "summed_grad", None) is not None:
                raise GuardError(
                    "expected one batch per step, found several; don't accumulate or use BatchMemoryManager"
                )
        if self._optimizer._step_skip_queue:
            raise GuardError("expected one batch per step, found skip signals; don't use BatchMemoryManager")

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pending, self._pending = self._pending, None
        try:
            if pending is None:
                self.decision = self._guard.withhold("the step didn't come through OpacusGuard.step")
            elif any(argument is not None for argument in (*args[1:], *kwargs.values())):
                self.decision = self._guard.withhold("the optimizer was given a closure")
            else:
                self.decision = self._review(*pending)
        except Exception as error:  # whatever goes wrong withholds
            self.decision = self._guard.withhold(error)
        if self.decision.update is None:
            clear(self._optimizer.params)

    def _review(self, batch: Batch | Sequence[Any], ids: Sequence[object] | None, assessment: Decision) -> Decision:
        """About the gradients that Opacus made, which are what the weights will show."""
        scale = self._optimizer.expected_batch_size if self._optimizer.loss_reduction == "mean" else 1
        summed = [scale * gradient for gradient in gradients(self._model)]
        decision = self._guard.review(batch, summed, ids=ids, assessment=assessment, local_steps=1)
        if decision.update is not None and len(decision.exposures) < len(assessment.kept):
            # Somebody else's round entered the ledger meanwhile, and more had to be left out.
            write(self._model, [value / scale for value in decision.update])
        return decision

    def _make_guard(self, release: str) -> Guard:
        return Guard(
            self._plain,
            self._loss_fn,
            self._policy,
            release=release,
            ledger=self._ledger,
            log=self._log,
            reduction="sum",
            **self._options,
        )


def _release(optimizer: DPOptimizer) -> str:
    """What Opacus does to the sum over the batch."""
    clip, std = float(optimizer.max_grad_norm), float(optimizer.noise_multiplier) * float(optimizer.max_grad_norm)
    return f"clip:{clip!r},gaussian:{std!r}" if std else f"clip:{clip!r}"


def _draw_from_the_system(optimizer: DPOptimizer) -> None:
    """Let Opacus's noise come from `SecureNoise`: its generator has 32 bits of state, and scripts seed it."""
    add_none = optimizer.add_noise

    def add_noise() -> None:
        multiplier = optimizer.noise_multiplier
        optimizer.noise_multiplier = 0.0
        try:
            add_none()
        finally:
            optimizer.noise_multiplier = multiplier
        noise = SecureNoise("gaussian", float(multiplier) * float(optimizer.max_grad_norm))
        for parameter in optimizer.params:
            parameter.grad = noise.added(parameter.grad)

    optimizer.add_noise = add_noise


def _plain(model: GradSampleModule) -> nn.Module:
    """The module without Opacus's hooks, which would see the guard's own passes; it shares parameters and buffers."""
    module: nn.Module = model._module
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    enabled = model.hooks_enabled
    model.remove_hooks()
    try:
        return copy.deepcopy(module, shared)
    finally:
        model.add_hooks(
            loss_reduction=model.loss_reduction, batch_first=model.batch_first, force_functorch=model.force_functorch
        )
        model.hooks_enabled = enabled
