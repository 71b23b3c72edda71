"""Which units are active for how many samples: what two signs read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from riskaudit.checks.received.base import SignNotApplicable
from riskaudit.checks.received.observation import ObservedModel

# Fewer units that are ever active, and shares of them say nothing.
LEAST_UNITS = 16


def gates_of(observed: ObservedModel) -> Mapping[str, Tensor]:
    """Activity [N, m] of all gates with enough units that are ever active, by layer.

    Raises:
        SignNotApplicable: there is none.
    """
    gates = {name: active for name, active in observed.gates.items() if int(active.any(0).sum()) >= LEAST_UNITS}
    if not gates:
        raise SignNotApplicable(
            f"no activation that stops some inputs, as ReLU does, has {LEAST_UNITS} units that some sample activates"
        )
    return gates
