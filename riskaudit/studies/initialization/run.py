"""``riskaudit study initialization``: what a network's first weights decide of the leak.

The checkpoint's architecture with fresh weights of every initialization and several seeds, and the checkpoint itself,
audited on the same samples with the same release, prior and draws of the noise; ranked by the median posterior error.
One trial is one initialization with one seed.

Layers are found by what they hold, not by their type. What each initialization sets:

- ``uniform``: U(-0.5, 0.5), weights and biases, as in the gradient-inversion papers (Zhu et al., NeurIPS 2019);
- ``normal``: N(0, 1/12), the same variance, weights and biases;
- ``kaiming_*`` (He et al., ICCV 2015, for ReLU, fan in), ``xavier_*`` (Glorot and Bengio, AISTATS 2010), and
  ``orthogonal`` (Saxe et al., ICLR 2014): every parameter of two or more dimensions; biases are 0;
- ``default``: each layer's own ``reset_parameters``.

Normalisation layers get their own start in every one of them: scale 1, shift 0, running statistics 0 and 1. A
parameter that belongs to none of this (of a user's module without ``reset_parameters``) keeps its value.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from typing_extensions import override

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_client
from riskaudit.audit.client import Client, make_client
from riskaudit.engine import Trial, make_engine
from riskaudit.errors import RiskauditError, SettingsError
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.inputs.text import clean, listing
from riskaudit.results import AuditResult, SampleRow
from riskaudit.statistics.groups import compare_medians
from riskaudit.statistics.seeding import derived_seed
from riskaudit.studies.base import (
    ATTACKS,
    ModelComparison,
    StudyRun,
    attack_settings,
    identity_of,
    measure,
    measured,
    proxies_of,
    quartiles,
)
from riskaudit.studies.initialization.record import TITLES, InitializationRow, InitializationStudy, InitializationTrial
from riskaudit.studies.settings import AttackSettings

Fill = Callable[[Tensor], object]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
# Bound of the uniform distribution; its variance is BOUND^2 / 3.
BOUND = 0.5
CHECKPOINT = "checkpoint"
NUM_SEEDS = 3
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Initialization:
    """How a network's parameters are drawn: ``weights`` fills one of two or more dimensions, ``biases`` others.

    None leaves the layer's own reset.
    """

    name: str
    description: str
    weights: Fill | None
    biases: Fill | None


def _uniform(tensor: Tensor) -> object:
    return nn.init.uniform_(tensor, -BOUND, BOUND)


def _normal(tensor: Tensor) -> object:
    return nn.init.normal_(tensor, 0.0, BOUND / 3**0.5)


INITIALIZATIONS = {
    each.name: each
    for each in (
        Initialization("uniform", "weights and biases uniform (-0.5, 0.5)", _uniform, _uniform),
        Initialization("normal", "weights and biases normal (0, 1/12), the variance of uniform", _normal, _normal),
        Initialization(
            "kaiming_uniform",
            "Kaiming uniform for ReLU, biases 0",
            partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
            nn.init.zeros_,
        ),
        Initialization(
            "kaiming_normal",
            "Kaiming normal for ReLU, biases 0",
            partial(nn.init.kaiming_normal_, nonlinearity="relu"),
            nn.init.zeros_,
        ),
        Initialization("xavier_uniform", "Xavier uniform, biases 0", nn.init.xavier_uniform_, nn.init.zeros_),
        Initialization("xavier_normal", "Xavier normal, biases 0", nn.init.xavier_normal_, nn.init.zeros_),
        Initialization("orthogonal", "orthogonal, biases 0", nn.init.orthogonal_, nn.init.zeros_),
        Initialization("default", "PyTorch's default of every layer", None, None),
    )
}


def initialize(model: nn.Module, name: str, seed: int, number: int) -> list[str]:
    """Draw a model's parameters anew, in place; returns the names of those that keep their value."""
    chosen = INITIALIZATIONS[name]
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    unset: list[str] = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derived_seed(seed, word, number))
        for path, module in model.named_modules():
            unset += [f"{path}.{name}".removeprefix(".") for name in _initialize_module(module, chosen)]
    return unset


def _initialize_module(module: nn.Module, chosen: Initialization) -> list[str]:
    parameters = dict(module.named_parameters(recurse=False))
    is_norm = isinstance(module, _NORMS) or _looks_like_norm(module)
    if not parameters and not is_norm:
        return []
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset):
        reset()
    if is_norm:
        return [] if callable(reset) else list(parameters)
    unset = []
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            continue
        fill = chosen.weights if parameter.ndim >= 2 else chosen.biases if "bias" in name else None
        if fill is not None:
            fill(parameter)
        elif not callable(reset):
            unset.append(name)
    return unset


def _looks_like_norm(module: nn.Module) -> bool:
    """Norm layers of other libraries: one-dimensional parameters only, and a name that says so."""
    parameters = list(module.parameters(recurse=False))
    return "norm" in type(module).__name__.lower() and all(parameter.ndim < 2 for parameter in parameters)


def initialization_study(
    checkpoint: Checkpoint | nn.Module,
    samples: Samples,
    settings: AuditSettings | None = None,
    run: StudyRun | None = None,
    *,
    seeds: int = NUM_SEEDS,
    names: Sequence[str] = tuple(INITIALIZATIONS),
    attacks: Sequence[str] = ATTACKS,
) -> AuditResult:
    """Audit a checkpoint, and its architecture with other first weights.

    Returns:
        The audit of the checkpoint with ``studies.initialization``. A network that can't be audited is a row
        with a reason.

    Raises:
        RiskauditError: as `audit`, of the checkpoint; or options out of range.
    """
    settings, run = settings or AuditSettings(), run or StudyRun()
    if seeds < 1:
        raise SettingsError(f"expected `seeds` of at least 1, found {seeds}")
    unknown = [name for name in names if name not in INITIALIZATIONS]
    if unknown:
        raise SettingsError(f"expected initializations {', '.join(INITIALIZATIONS)}, found {unknown[0]!r}")
    chosen = attack_settings(run.attacks, attacks, run.attack_steps)
    client = make_client(checkpoint, samples, settings)
    journal = run.journal(
        {
            "initialization": identity_of(client, chosen or AttackSettings(), [], False),
            "attacked": chosen is not None,
        }
    )
    with make_engine(run.workers) as engine:
        result = audit_client(client, engine, show_samples=run.show_samples, command=run.command)
        study = Initializations(chosen, tuple(dict.fromkeys(names)), seeds, result)
        return result.with_study(study.answer(client, engine, journal, run.progress))


@dataclass(frozen=True)
class Initializations(ModelComparison[InitializationStudy]):
    """The checkpoint and ``seeds`` fresh networks of each initialization; ``audited`` is the checkpoint's audit."""

    names: tuple[str, ...]
    seeds: int
    audited: AuditResult

    @override
    def models(self, client: Client) -> list[NetworkTrial]:
        rows = self.audited.samples if set(proxies_of(client)) <= client.settings.wanted() else None
        fresh = [
            NetworkTrial(f"{name} {number}", name, number, self.attacks)
            for name in self.names
            for number in range(self.seeds)
        ]
        return [NetworkTrial(CHECKPOINT, CHECKPOINT, None, self.attacks, rows), *fresh]

    @override
    def compare(self, client: Client, results: Sequence[Any], shared: dict[str, Any]) -> InitializationStudy:
        trials = [InitializationTrial.model_validate(network) for network in results]
        study = summarise(trials, client.settings.seed, **shared)
        return study.model_copy(update={"notes": [*study.notes, *_kept_note(client.source.checkpoint)]})


@dataclass(frozen=True)
class NetworkTrial(Trial[Client]):
    """One network on the client's samples; gives an `InitializationTrial` as plain data."""

    key: str
    name: str
    number: int | None
    attacks: AttackSettings | None
    rows: Sequence[SampleRow] | None = None

    @override
    def run(self, client: Client) -> dict[str, Any]:
        return self._measured(client).model_dump(mode="json")

    def _measured(self, client: Client) -> InitializationTrial:
        try:
            if self.rows is not None:
                risks = measured(self.rows, client, self.attacks)
            elif self.number is None:
                risks = measure(client, self.attacks)
            else:
                given = client.source
                model = copy.deepcopy(given.checkpoint.model)
                initialize(model, self.name, client.settings.seed, self.number)
                risks = measure(
                    make_client(replace(given.checkpoint, model=model), given.samples, client.settings), self.attacks
                )
        except RiskauditError as reason:
            return InitializationTrial(initialization=self.name, number=self.number, reason=clean(reason, 300))
        return InitializationTrial(
            initialization=self.name, number=self.number, samples=risks.samples, attack_notes=risks.attack_notes
        )


def _kept_note(checkpoint: Checkpoint) -> list[str]:
    unset = initialize(copy.deepcopy(checkpoint.model), "default", 0, 0)
    if not unset:
        return []
    return [
        f"PyTorch has no default for {listing(unset)}: where an initialization above doesn't name such a parameter, it "
        "keeps the checkpoint's value"
    ]


def summarise(
    trials: Sequence[InitializationTrial], seed: int = 0, *, confidence: float = CONFIDENCE, **shared: Any
) -> InitializationStudy:
    """Rank initializations by the median posterior_rmse over samples and seeds, the largest first.

    Trials with samples have the same ones in the same order; ``shared`` are the fields of `ModelsStudy`.
    """
    groups: dict[str, list[InitializationTrial]] = {}
    for trial in trials:
        groups.setdefault(trial.initialization, []).append(trial)
    values = {
        name: np.array(
            [[risk.posterior_rmse.reliable for risk in trial.samples] for trial in group if trial.samples], dtype=float
        )
        for name, group in groups.items()
        if any(trial.samples for trial in group)
    }
    compared = compare_medians(values, aside=(CHECKPOINT,), confidence=confidence, seed=seed)
    best = next((name for name in compared if name != CHECKPOINT), None)
    rows = []
    for rank, (name, median) in enumerate(compared.items(), 1):
        low, high = median.difference_low, median.difference_high
        apart = None if low is None or high is None or name == best else low > 0 or high < 0
        fields = asdict(median) | {"rank": rank, "told_apart": apart}
        rows.append(_row(name, groups[name]).model_copy(update={key: fields[key] for key in fields if key != "median"}))
    rows += [_row(name, groups[name]) for name in groups if name not in compared]
    notes = [
        "Kaiming, Xavier and orthogonal set parameters of two or more dimensions and biases to 0; uniform and normal "
        "set biases like weights; normalisation layers start with scale 1, shift 0 and fresh statistics in all of them",
        "a ranking by leakage only: it doesn't say how well a network trains from these weights",
    ]
    if shared["reference_noise"]:
        notes.append("the release is undefended: predictions and attacks are at the reference noise")
    if sum(trial.number is not None for trial in trials) and max(row.num_seeds for row in rows) < 3:
        notes.append("fewer than 3 seeds: how much fresh weights differ among themselves is hardly seen")
    if any(risk.posterior_rmse.status == "bracketed" for trial in trials for risk in trial.samples):
        notes.append("posterior errors are the middles of certified intervals, whose width the ranking leaves out")
    attack_notes = dict.fromkeys(note for trial in trials for note in trial.attack_notes)
    return InitializationStudy(
        **shared,
        num_seeds=max(len(group) for group in groups.values()),
        confidence=confidence,
        rows=rows,
        trials=list(trials),
        recommended=best,
        recommendation=recommendation(rows, confidence),
        notes=notes + list(attack_notes),
    )


def _row(name: str, trials: Sequence[InitializationTrial]) -> InitializationRow:
    risks = [risk for trial in trials for risk in trial.samples]
    failed = [risk for risk in risks if risk.status == "failed"]
    reasons = [trial.reason for trial in trials if trial.reason] + [risk.reason for risk in failed if risk.reason]
    posterior = quartiles(risk.posterior_rmse.reliable for risk in risks)
    initialization = INITIALIZATIONS.get(name)
    return InitializationRow(
        initialization=name,
        description="the weights of the checkpoint" if initialization is None else initialization.description,
        num_seeds=len(trials),
        num_failed_seeds=sum(not trial.samples for trial in trials),
        num_failed_samples=len(failed),
        largest_eigenvalue=quartiles(risk.largest_eigenvalue for risk in risks),
        trace=quartiles(risk.trace for risk in risks),
        expected_rmse=quartiles(
            np.inf if risk.expected_rmse.status == "singular" else risk.expected_rmse.reliable for risk in risks
        ),
        posterior_rmse=posterior,
        revealed_fraction=quartiles(risk.revealed_fraction.reliable for risk in risks),
        attack_rmse=quartiles(risk.attack_rmse for risk in risks),
        oracle_rmse=quartiles(risk.oracle_rmse for risk in risks),
        reasons=list(dict.fromkeys(reasons)) or ([] if posterior else ["no sample has a posterior error"]),
    )


def recommendation(rows: Sequence[InitializationRow], confidence: float) -> str:
    """One sentence on which initialization to choose, and from which others it can't be told apart."""
    ranked = [row for row in rows if row.rank is not None]
    fresh = [row for row in ranked if row.initialization != CHECKPOINT]
    if not fresh:
        return "No initialization could be audited, so none can be recommended."
    best = fresh[0]
    assert best.posterior_rmse is not None
    ends = "" if best.low is None or best.high is None else f" ({best.low:.3g} to {best.high:.3g})"
    text = f"{_title(best)} leaves an attacker the largest median error, {best.posterior_rmse.median:.3g}{ends}"
    others = fresh[1:]
    if not others:
        return f"{text}; nothing else could be audited beside it."
    if best.low is None:
        return f"{text}; too few samples to say whether that is more than chance."
    same = [row for row in others if not row.told_apart]
    level = f"{confidence:.0%}".replace("%", "\u00a0%")
    if not same:
        return f"Recommended: {text}, told apart from every other initialization at {level}."
    if len(same) == len(others):
        return f"No recommendation: {text}, but the intervals overlap: not told apart from any other at {level}."
    names = ", ".join(map(_title, same))
    return f"Recommended: {text}; the intervals overlap with {names}: not told apart from these at {level}."


def _title(row: InitializationRow) -> str:
    # Inside a sentence, without what tells the two apart.
    inside = {"uniform": "uniform", "normal": "normal", CHECKPOINT: "the checkpoint"}
    return (TITLES | inside).get(row.initialization, row.initialization)
