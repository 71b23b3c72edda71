"""``riskaudit list``: every name that options take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from riskaudit.cli.options import in_options
from riskaudit.errors import SettingsError
from riskaudit.report import FILE_NAMES


def list_names(
    topic: Annotated[str | None, typer.Argument(metavar="[TOPIC]", help="One of the headings; default all.")] = None,
) -> int:
    """List architectures, releases, defenses, proxies, checks, attacks, metrics, solvers, signs, losses, formats."""
    named = topics()
    if topic is not None and topic not in named:
        raise SettingsError(f"expected one of {', '.join(named)}, found {topic!r}")
    for heading, names in named.items():
        if topic not in (None, heading):
            continue
        typer.echo(heading)
        width = max(map(len, names)) + 2
        for name, description in names.items():
            typer.echo(f"  {name:<{width}}{in_options(description)}".rstrip())
        if topic is None:
            typer.echo("")
    return 0


def topics() -> dict[str, Mapping[str, str]]:
    """Every heading, with its names and what each is."""
    from riskaudit.attacks import ATTACKS
    from riskaudit.checks import CHECKS
    from riskaudit.checks.received import SIGNS
    from riskaudit.inputs import CHECKPOINT_FORMATS, LOSSES, SAMPLE_FORMATS, architecture_names
    from riskaudit.inputs.model_defenses import MODEL_DEFENSES
    from riskaudit.linalg import EIGENVALUE_SOLVERS, INVERSE_SOLVERS
    from riskaudit.metrics import METRICS
    from riskaudit.proxies import PROXIES
    from riskaudit.release.grammar import usages

    return {
        "architectures": architecture_names(),
        "releases": usages(),
        "model-defenses": MODEL_DEFENSES,
        "proxies": {name: f"{proxy.title} ({proxy.units})" for name, proxy in PROXIES.items()},
        "checks": {name: check.summary for name, check in sorted(CHECKS.items())},
        "attacks": {name: attack.summary for name, attack in ATTACKS.items()},
        "metrics": {name: f"{metric.title} ({metric.units})" for name, metric in METRICS.items()},
        "solvers": {name: _first_line(solver) for name, solver in EIGENVALUE_SOLVERS.items()},
        "inverses": {name: _first_line(solver) for name, solver in INVERSE_SOLVERS.items()},
        "signs": {name: f"{sign.title} ({sign.units})" for name, sign in SIGNS.items()},
        "losses": {name: loss.description for name, loss in LOSSES.items()},
        "checkpoints": CHECKPOINT_FORMATS,
        "samples": SAMPLE_FORMATS,
        "formats": FILE_NAMES,
    }


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]
