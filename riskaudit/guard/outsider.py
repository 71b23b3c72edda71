"""What the samples of an upload reveal to an attacker who knows none of the others, for policies that go by that one.

The posterior is that of all samples together (docs/theory.md, section 7), read off products with the upload's own
Jacobian: all of its columns where that is affordable, else a few probes, whose intervals are wide. An outsider never
learns more than who knows the others, whose upper end holds in any case.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from riskaudit.audit import AuditSettings
from riskaudit.audit.plan import UploadShape, choose_plan
from riskaudit.guard.noise.randomness import SecureNoise
from riskaudit.jacobian import Jacobian
from riskaudit.priors import Prior
from riskaudit.sensitivity import BracketedInformation, Clock, Information, Linearisation, Plan
from riskaudit.sensitivity.probing import FIRST_BLOCK_PROBES

# Costs in trainings of the round (`jacobian.unrolled`): of a product with H, and of one of many columns of J.
PRODUCT, COLUMN = 10.0, 1.5
# Products below which probes say nothing that the others' numbers don't.
LEAST_PRODUCTS = 24
# What the first iteration, which looks for the largest eigenvalue, may take of them.
FIRST_SHARE = 0.2
TOO_FEW = (
    "the outsider's numbers take more trainings than max_trainings leaves, so that limits are held against the "
    "informed ones, which are never lower; raise max_trainings"
)


def outsider_information(
    jacobian: Jacobian,
    prior: Prior,
    informed: Sequence[Information],
    trainings: float | None,
    failure: float,
    end: float,
) -> tuple[list[Information] | None, int]:
    """What every sample reveals at any noise to who knows none of the others.

    Args:
        jacobian: of one upload of n different inputs, with noise; intervals are aimed at its std.
        prior: what an attacker is taken to know.
        informed: the same of an attacker who knows all other samples, [n].
        trainings: that it may cost; None for no bound.
        failure: probability that an interval of any of the samples misses.
        end: when to stop, on the monotonic clock.

    Returns:
        [n], and the products that were made; None where too few are affordable.
    """
    flat = jacobian.batch.inputs.flatten(1)
    plan = _plan(jacobian, trainings, failure)
    if plan is None or time.monotonic() >= end:
        return None, 0
    clock, drawn = Clock(None if math.isinf(end) else end - time.monotonic()), SecureNoise("gaussian", 1.0)

    def draw(_: int) -> Tensor:
        return drawn.draw(flat.numel()).reshape(1, -1).to(flat)

    at = Linearisation(jacobian, [0], prior, plan, 0, clock, draw)
    if at.spectrum is not None:
        return at.information, at.matvecs
    unit, taus = float(at.prior.std[0]), at.sample_prior.std.tolist()
    rows = zip(at.posterior_brackets.traces, taus, informed, strict=True)
    return [BracketedInformation(traces, tau, unit, known) for traces, tau, known in rows], at.matvecs


def _plan(jacobian: Jacobian, trainings: float | None, failure: float) -> Plan | None:
    """All columns where they are affordable, else as many products as are; None where these are too few."""
    size, dimension = len(jacobian.batch), jacobian.shape[1]
    settings = AuditSettings(proxies=("posterior_rmse", "revealed_fraction"), confidence=1 - failure / size)
    release, training = jacobian.release, jacobian.release.spec.training
    passes = size if training is None else sum(map(len, training.mini_batches(size)))
    shape = UploadShape(size, max(1, passes // size))
    plan = choose_plan(settings, dimension, release.num_entries, 1, 1, release.device, shape)
    if trainings is None or (plan.solver == "dense" and COLUMN * dimension <= trainings):
        return plan
    if plan.solver == "dense":
        plan = choose_plan(replace(settings, solver="lanczos"), dimension, release.num_entries, 1, 1, release.device)
    products = int(trainings / PRODUCT)
    if products < LEAST_PRODUCTS:
        return None
    first = min(plan.max_matvecs, max(1, int(FIRST_SHARE * products)))
    each = (products - first) // FIRST_BLOCK_PROBES
    return replace(plan, max_matvecs=first, max_probe_matvecs=each, max_probe_products=products - first)
