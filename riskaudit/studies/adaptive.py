"""Attacks that know the defence, beside those that are asked for, or where none is.

A defence that the attacker doesn't know of looks better than it is (Balunovic et al., ICLR 2022, section 5). Where a
release spoils single parameters, as Soteria does, the attack that leaves them out of its matching; where steps choose
entries by the input and no noise hides which, as pruning and Soteria do, the one by the entries that were kept; where a
fully connected layer sees the whole input, the closed form, which whatever comes after that layer has no part in, a
random bottleneck among it. Of texts, the tokens in the span of the first projection's gradient.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from riskaudit.attacks import AttackNotApplicable
from riskaudit.attacks.analytic import Analytic, whole_input_layer
from riskaudit.attacks.kept_entries import KeptEntries
from riskaudit.attacks.left_out import LayerLeftOut
from riskaudit.attacks.token_span import TokenSpanAttack
from riskaudit.audit.client import Client
from riskaudit.inputs.architectures.precode import gaussian_draws
from riskaudit.release.steps.prune import Prune
from riskaudit.release.steps.soteria import Soteria
from riskaudit.studies.settings import DEFAULT_ATTACKS, AttackSettings


def with_adaptive(client: Client, attacks: AttackSettings, noise_std: float) -> AttackSettings:
    """The attacks, and those made for what a client does that aren't among them.

    Args:
        client: that is attacked.
        attacks: with names or without.
        noise_std: at which it is attacked, 0 without noise.
    """
    names = [*attacks.chosen, *_for_steps(client, {noise_std})]
    if not client.is_joint and _has_whole_input_layer(client):
        names.append(Analytic.name)
    return replace(attacks, names=tuple(dict.fromkeys(names)))


def by_default(client: Client, attacks: AttackSettings, noise_stds: Collection[float]) -> AttackSettings:
    """The attacks that are named, or else those that always run and those that are made for a client's defences.

    Args:
        client: that is attacked.
        attacks: with names or without.
        noise_stds: of every noise level, 0 without noise.
    """
    if attacks.names is not None:
        return attacks
    names = [*DEFAULT_ATTACKS, *_for_steps(client, noise_stds)]
    if client.samples.tokens is not None:
        names.append(TokenSpanAttack.name)
    if gaussian_draws(client.release.model) and not client.is_joint and _has_whole_input_layer(client):
        names.append(Analytic.name)
    return replace(attacks, names=tuple(names))


def _for_steps(client: Client, noise_stds: Collection[float]) -> list[str]:
    """Names of the attacks that know the steps of a release."""
    release = client.release
    steps, names = release.spec.all_steps, list[str]()
    if any(step.spoiled(release.context) for step in steps):
        names.append(LayerLeftOut.name)
    if 0.0 in noise_stds and any(isinstance(step, Prune | Soteria) for step in steps):
        names.append(KeptEntries.name)
    return names


def _has_whole_input_layer(client: Client) -> bool:
    try:
        whole_input_layer(client.release, tuple(client.samples.inputs.shape[1:]))
    except (AttackNotApplicable, ValueError, TypeError, LookupError, RuntimeError):
        # A model's own code may refuse inputs that are no samples.
        return False
    return True
