"""Attacks that know the defence, beside those that are asked for.

Where a release spoils single parameters, as Soteria does, the attack that leaves them out of its matching; where a
fully connected layer sees the whole input, the closed form, which whatever comes after that layer has no part in, a
random bottleneck among it (Balunovic et al., ICLR 2022, section 5).
"""

from __future__ import annotations

from dataclasses import replace

from riskaudit.attacks import AttackNotApplicable
from riskaudit.attacks.analytic import Analytic, whole_input_layer
from riskaudit.attacks.left_out import LayerLeftOut
from riskaudit.audit.client import Client
from riskaudit.studies.settings import AttackSettings


def with_adaptive(client: Client, attacks: AttackSettings) -> AttackSettings:
    """The attacks, and those made for what a client does that aren't among them."""
    release, names = client.release, list(attacks.names)
    if any(step.spoiled(release.context) for step in release.spec.all_steps):
        names.append(LayerLeftOut.name)
    if not client.is_joint and _has_whole_input_layer(client):
        names.append(Analytic.name)
    return replace(attacks, names=tuple(dict.fromkeys(names)))


def _has_whole_input_layer(client: Client) -> bool:
    try:
        whole_input_layer(client.release, tuple(client.samples.inputs.shape[1:]))
    except (AttackNotApplicable, ValueError, TypeError, LookupError, RuntimeError):
        # A model's own code may refuse inputs that are no samples.
        return False
    return True
