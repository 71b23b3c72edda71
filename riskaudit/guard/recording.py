"""A round of local training, recorded as it happens, so that nobody has to tell afterwards how it went.

    recording = guard.record(optimizer)
    for inputs, targets in batches:
        optimizer.zero_grad()
        recording.loss(inputs, targets).backward()
        optimizer.step()
    decision = recording.review()

Every mini-batch is taken where the loss is computed, and every step's settings where the optimizer makes it. The
training is then repeated from the weights that were there at the beginning, and its result compared with what is about
to leave: what was not recorded, or recorded otherwise than it happened, shows there, and withholds. What is seen before
the first step to be in the way of a review is raised there, since nothing was trained yet; what comes later withholds
at the end, and leaves the training alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from riskaudit.errors import GuardError, SettingsError
from riskaudit.formatting import count
from riskaudit.guard.batches import check_batch
from riskaudit.guard.decision import LISTED, Decision, describe
from riskaudit.guard.described import refuse_larger_batch, refuse_other_batches, refuse_other_settings
from riskaudit.guard.identifiers import canonical_id, sample_digest
from riskaudit.guard.joint_client import JointClient
from riskaudit.guard.noise.randomness import SecureNoise
from riskaudit.guard.optimizers import StepSettings, holds_exactly, settings_of
from riskaudit.guard.submission import Submission
from riskaudit.guard.unsent import refuse_unsent, remember_unsent
from riskaudit.guard.updates import digest_of_update, named_arrays, split
from riskaudit.inputs.text import listing
from riskaudit.policy import Policy
from riskaudit.release.added_loss import adding_layers, collected
from riskaudit.release.shares import batch_loss
from riskaudit.release.training import LocalTraining

# Of a difference of weights, in units of the last place.
ROUNDING = 4.0


class Reviewer(Protocol):
    """The guard, as far as a recording asks it."""

    model: nn.Module
    policy: Policy

    def decide(self, submit: Callable[[], Submission], round: int | None = None) -> Decision:
        """A decision about what is handed in."""

    def confirm(self, decision: Decision) -> Decision:
        """The decision again, right before sending."""


@dataclass(frozen=True, eq=False)
class _MiniBatch:
    """What a loss was computed of.

    Attributes:
        positions: of its samples among all that were recorded.
        modes: of the model's modules, by name.
    """

    positions: tuple[int, ...]
    modes: Mapping[str, bool]


@final
class Recording:
    """One round of a guard's model, from now on until `review`. `Guard.record` makes one.

    Args:
        guard: that reviews it.
        client: of the guard's model, for this round.
        optimizer: of exactly the model's trainable parameters, with no memory of earlier rounds.
        described: how the guard's release says that the model is trained; None where it doesn't say.

    Raises:
        SettingsError: another optimizer.
        GuardError: settings of the optimizer that nobody can repeat, or that aren't the described ones; weights that
            hold a round which never left.
        RiskauditError: a model that can't be copied or compared, or that has no such release.
    """

    def __init__(
        self,
        guard: Reviewer,
        client: JointClient,
        optimizer: torch.optim.Optimizer,
        described: LocalTraining | None = None,
    ) -> None:
        if not holds_exactly(optimizer, guard.model):
            raise SettingsError("expected an optimizer of exactly the guarded model's trainable parameters")
        if any(optimizer.state.values()):
            raise SettingsError(
                "expected an optimizer that has made no step yet, found one that remembers earlier ones (momentum): "
                "what it remembers was made of other samples; make a new one for every round"
            )
        refuse_unsent(guard.model)
        self._guard, self._client, self._described = guard, client, described
        self._settings_of(optimizer)
        client.begin()
        # Modes may still change until the first loss.
        client.require({name: False for name, _ in guard.model.named_modules()})
        self._start = {name: value.detach().clone() for name, value in guard.model.state_dict().items()}
        self._positions: dict[bytes, int] = {}
        self._samples: list[tuple[Tensor, Tensor]] = []
        self._ids: list[str | None] = []
        self._pending: list[_MiniBatch] = []
        self._steps: list[tuple[_MiniBatch, StepSettings]] = []
        # The first reason why what was recorded can't be reviewed.
        self._problem: str | None = None
        self._is_over = self._has_noise = False
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def loss(self, inputs: Tensor, targets: Tensor, *, ids: Sequence[object] | None = None) -> Tensor:
        """The guard's loss of the model's outputs for one mini-batch, to call ``backward`` on; once per step.

        Args:
            inputs: [B, ...], as the model takes them.
            targets: [B, ...].
            ids: names of the samples, for a ledger; the same in every round.

        Raises:
            GuardError: before the first step: the round can't be reviewed, such as one with dropout in train mode.
        """
        try:
            self._record(inputs, targets, ids)
        except Exception as error:  # third-party code may raise anything
            self._refuse(describe(error, "the mini-batch couldn't be recorded: "))
        model, live = self._guard.model, self._client.live_loss
        with collected(adding_layers(model)) as terms:
            outputs = model(inputs)
        return batch_loss(live, outputs, targets, torch.stack(terms).sum(0) if terms else None)

    def add_noise(self) -> None:
        """Make of the difference of the weights what the guard's release says, in the model itself: steps, then noise.

        Call it once, when the training is over.

        Raises:
            GuardError: a release without noise or steps, or that leaves parameters out, or weights in a short dtype
                that are much larger than the noise.
        """
        law, steps = self._client.noise, self._client.spec.client_steps
        if law is None and not steps:
            raise GuardError("expected a release with noise, such as gaussian:0.01, found none; name it in the guard")
        trained = dict(self._guard.model.named_parameters())
        start = {name: self._start[name] for name, value in trained.items() if value.requires_grad}
        differences = {name: value - trained[name].detach() for name, value in start.items()}
        if steps:
            # Noise hides whether a clip was made, and the review takes it as made.
            left = self._client.before_noise(torch.cat([value.reshape(-1) for value in differences.values()]))
            parts = split(left, [value.shape for value in differences.values()])
            differences = {name: part.to(value) for (name, value), part in zip(differences.items(), parts, strict=True)}
        # All of them before the first is changed, since one may be refused.
        noise = None if law is None else SecureNoise(law.law, law.scale)
        noisy = {name: value if noise is None else noise.added(value) for name, value in differences.items()}
        with torch.no_grad():
            for name, difference in noisy.items():
                trained[name].copy_(start[name] - difference)
        self._has_noise = True

    def review(
        self,
        sent: Mapping[str, Any] | Sequence[Any] | None = None,
        *,
        difference: bool = False,
        round: int | None = None,
    ) -> Decision:
        """Decide about weights that are about to leave, made by this training.

        Args:
            sent: entries of the model's state dict, by name or all in its order: the trainable parameters, and
                whatever else would leave; the model's own where not given.
            difference: whether ``sent`` are differences, what is there now minus what was there at the beginning.
            round: number for the log; counted where not given.

        Returns:
            The decision, whose update is in the form of ``sent``. Entries that aren't trainable are in it as they were
            when the recording began. Nothing is raised but for interrupts: whatever
            goes wrong withholds.
        """
        decision = self._guard.decide(lambda: self._submission(sent, difference), round)
        try:
            remember_unsent(self._guard.model, decision, self._start, self._left(decision, difference))
        except Exception as error:  # whatever the model holds by now
            return decision.withheld([*decision.reasons, describe(error)])
        return decision

    def _left(self, decision: Decision, difference: bool) -> dict[str, Tensor]:
        """The entries that may leave, by name; where differences do, the model's own if they are of these."""
        if decision.update is None:
            return {}
        update = decision.update
        values = update if isinstance(update, Mapping) else dict(zip(self._start, update, strict=True))
        left = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        if not difference:
            return left
        return {
            name: value
            for name, value in self._guard.model.state_dict().items()
            if name in left and torch.equal(left[name].to(value), value - self._start[name])
        }

    def close(self) -> None:
        """Stop recording; what was recorded can still be reviewed."""
        self._handle.remove()

    @property
    def num_samples(self) -> int:
        """Different samples that were recorded."""
        return len(self._samples)

    @property
    def start(self) -> Mapping[str, Tensor]:
        """The model's state dict when the recording began."""
        return self._start

    @property
    def guard(self) -> Reviewer:
        """That reviews it."""
        return self._guard

    def withhold(self, reason: str) -> None:
        """Let every review of this recording withhold, for this reason unless there was one before."""
        self._note(reason)

    def _record(self, given: Tensor, given_targets: Tensor, names: Sequence[object] | None) -> None:
        if self._is_over:
            raise GuardError("the recording was reviewed already; record every round anew")
        if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
            raise GuardError("the round was trained under autocast, in another precision than it is reviewed in")
        inputs, targets = check_batch((given, given_targets))
        ids = [None] * len(inputs) if names is None else [canonical_id(name) for name in names]
        if len(ids) != len(inputs):
            raise GuardError(f"expected {count(len(inputs), 'id')}, one per sample, found {len(ids)}")
        positions = tuple(map(self._position, inputs, targets, ids))
        modes = {name: module.training for name, module in self._guard.model.named_modules()}
        if self._described is not None:
            refuse_larger_batch(self._described, len(positions))
        if not self._steps and not self._pending:
            self._client.require(modes, (inputs, targets))
        self._pending.append(_MiniBatch(positions, modes))

    def _position(self, inputs: Tensor, target: Tensor, name: str | None) -> int:
        """Of one sample among all that were recorded, new ones behind the others."""
        key = sample_digest(inputs, target)
        position = self._positions.setdefault(key, len(self._samples))
        if position == len(self._samples):
            self._samples.append((inputs, target))
            self._ids.append(name)
        elif self._ids[position] != name:
            raise GuardError("a sample was recorded under two ids; give every sample one, in every epoch")
        return position

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pending, self._pending = self._pending, []
        try:
            if any(argument is not None for argument in (*args[1:], *kwargs.values())):
                raise GuardError("the optimizer was given a closure, which computes losses of its own; leave it out")
            if self._has_noise:
                raise GuardError(
                    "the optimizer made a step after the noise was added; add it when the training is over"
                )
            if len(pending) != 1:
                raise GuardError(
                    f"expected one recorded mini-batch before every step of the optimizer, found {len(pending)}; take "
                    "every loss that is trained on, and no other, from the recording"
                )
            if not holds_exactly(optimizer, self._guard.model):
                raise GuardError("the optimizer holds other parameters than the guarded model")
            settings = self._settings_of(optimizer)
            if self._steps:
                before, first = self._steps[0]
                if replace(settings, lr=first.lr) != first:
                    raise GuardError("the optimizer's settings changed within the round; change the lr at most")
                if pending[0].modes != before.modes:
                    raise GuardError("the model changed between train and eval mode within the round; train in one")
            self._steps.append((pending[0], settings))
        except Exception as error:  # third-party code may raise anything
            self._refuse(describe(error, "a step couldn't be recorded: "))

    def _settings_of(self, optimizer: torch.optim.Optimizer) -> StepSettings:
        """The settings with which an optimizer makes its next step, seen to be the described ones."""
        settings = settings_of(optimizer)
        if self._described is not None:
            refuse_other_settings(self._described, settings)
        return settings

    def _refuse(self, problem: str) -> None:
        """Withhold at the end; where no step was made yet, say so at once."""
        self._note(problem)
        if not self._steps:
            raise GuardError(problem)

    def _note(self, problem: str) -> None:
        self._problem = self._problem or problem

    def _submission(self, sent: Mapping[str, Any] | Sequence[Any] | None, difference: bool) -> Submission:
        """What was recorded, and what it was said to have made."""
        was_over, self._is_over = self._is_over, True
        self.close()
        if was_over:
            raise GuardError("the recording was reviewed already; record every round anew")
        model = self._guard.model
        if self._steps and self._problem is None and not all(map(_is_finite, model.parameters())):
            raise GuardError(f"{self._training().diverged}, or find what else changed them")
        # The names that leave, in the model's order.
        arrays = named_arrays(model.state_dict() if sent is None else sent, self._start)
        trainable = [name for name, value in model.named_parameters() if value.requires_grad]
        missing = [name for name in trainable if name not in arrays]
        if missing:
            raise GuardError(f"expected all trainable parameters, found none under {missing[0]!r}")
        if self._problem is not None:
            raise GuardError(self._problem)
        if not self._steps:
            raise GuardError("no step was recorded; take the loss that is trained on from the recording")
        if self._pending:
            # Under noise what it did to the weights may not show.
            raise GuardError(
                "the last recorded mini-batch was followed by no step of the recorded optimizer; let this optimizer "
                "alone change the weights, and take no loss from the recording that isn't trained on"
            )
        if self._described is not None:
            # Under one id are all views of a sample.
            names = [position if name is None else name for position, name in enumerate(self._ids)]
            refuse_other_batches(self._described, [[names[at] for at in part.positions] for part, _ in self._steps])
        self._client.end(self._training(), self._steps[0][0].modes)
        origin = {name: torch.zeros_like(value) if difference else value for name, value in self._start.items()}
        update = {name: origin[name].double() - arrays[name].double() for name in trainable}
        tied = _tied(model)
        for name, other in tied.items():
            if name in arrays and not torch.equal(arrays[name], arrays[other]):
                raise GuardError(f"{name} and {other} are one parameter of the model and would leave as two")
        changed = [
            name
            for name in arrays
            if name not in update and name not in tied and not torch.equal(arrays[name], origin[name])
        ]
        if changed and not self._guard.policy.resets_buffers:
            raise GuardError(
                f"{listing(changed, LISTED)} would leave changed, and nobody reviews what isn't trained (running "
                "statistics of batch norm are means over the private samples); send what was received, or set buffers "
                '= "reset" in the policy'
            )
        inputs, targets = (torch.stack(parts) for parts in zip(*self._samples, strict=True))
        given = [name is not None for name in self._ids]
        if any(given) and not all(given):
            raise GuardError("some samples were recorded with ids and some without; give all of them ids, or none")
        ids = self._ids if all(given) else None

        def finish(decision: Decision) -> Decision:
            return _finished(decision, arrays, origin, changed, tied, sent)

        return Submission(self._client, (inputs, targets), update, ids, self._has_made_steps(update), finish=finish)

    def _has_made_steps(self, update: Mapping[str, Tensor]) -> bool:
        """Whether it was `add_noise` that made of the training what leaves, where noise hides who did."""
        if self._client.noise is None or not self._client.spec.client_steps:
            return True
        present = dict(self._guard.model.named_parameters())

        def is_own(name: str, value: Tensor) -> bool:
            weights = present[name].detach().double()
            # A difference that leaves was rounded once more than that of weights.
            rounding = ROUNDING * torch.finfo(present[name].dtype).eps * (weights.abs() + value.abs())
            return bool(((self._start[name].double() - weights - value).abs() <= rounding).all())

        return self._has_noise and all(is_own(name, value) for name, value in update.items())

    def _training(self) -> LocalTraining:
        _, first = self._steps[0]
        rates = tuple(settings.lr for _, settings in self._steps)
        steps = tuple(part.positions for part, _ in self._steps)
        return LocalTraining(
            epochs=1, batch=None, lr=first.lr, momentum=first.momentum, weight_decay=first.weight_decay,
            optimizer=first.optimizer, recorded=steps, rates=rates,
        )  # fmt: skip


def _tied(model: nn.Module) -> dict[str, str]:
    """Further names of trainable parameters that a model holds under several, with the first of each."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    names = [(name, first.setdefault(id(value), name)) for name, value in named if value.requires_grad]
    return {name: other for name, other in names if name != other}


def _is_finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _finished(
    decision: Decision,
    arrays: Mapping[str, Tensor],
    origin: Mapping[str, Tensor],
    changed: list[str],
    tied: Mapping[str, str],
    sent: object,
) -> Decision:
    """The decision about a difference, as one about what leaves: entries that are told as they lie beside an origin."""
    leaving: dict[str, Tensor] = {}
    for name, value in arrays.items():
        if name in tied:
            # After the others, of which it is one.
            continue
        if name not in decision.update:
            leaving[name] = origin[name].clone()
        elif decision.action == "sanitise":
            # A function of the difference that may leave and of what the server knows.
            leaving[name] = (origin[name].double() - decision.update[name].double()).to(value.dtype)
        else:
            leaving[name] = value.clone()
    leaving = {name: leaving[tied[name]].clone() if name in tied else leaving[name] for name in arrays}
    update = leaving if sent is None or isinstance(sent, Mapping) else list(leaving.values())
    return replace(decision, update=update, update_digest=digest_of_update(update)).with_reset(changed)
