"""Which units are active for how many samples: what two signs read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from riskaudit.checks.received.base import SignNotApplicable
from riskaudit.checks.received.observation import ObservedModel

# Shares of fewer units that are ever active say nothing, and count as 0.
LEAST_UNITS = 16


def gates_of(observed: ObservedModel) -> Mapping[str, Tensor]:
    """Activity [N, m] of all gates with enough units, by layer.

    Raises:
        SignNotApplicable: there is none.
    """
    gates = {name: active for name, active in observed.gates.items() if active.shape[1] >= LEAST_UNITS}
    if not gates:
        raise SignNotApplicable(f"no activation that stops some inputs, as ReLU does, has {LEAST_UNITS} units or more")
    return gates
