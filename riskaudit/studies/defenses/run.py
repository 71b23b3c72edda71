"""``riskaudit study defenses``: which defence to switch on, and what it costs.

A defence is a release. Each is trained *with* from the checkpoint's weights, with several seeds (`simulated_training`):
its utility is the final training loss and the accuracy on test data. At several points of every training the network is
audited and attacked on the same samples, release and draws of the noise: the posterior error of who knows all other
samples of an upload and of who knows none, and the least error of the attacks, which all know the defence; where it
spoils single layers, as Soteria does, the attack that leaves them out is among them (Balunovic et al., ICLR 2022). No
attack is started at the truth.

Gradients grow and shrink in training while noise doesn't, so that every point is judged at the defence's noise and at
noise that stays in proportion to the gradient's norm, from the beginning of the training on; one spectrum serves both.
One trial is one training. What is found of the checkpoint itself, before the first step, is the same for every seed and
a trial of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn
from typing_extensions import override

from riskaudit.attacks import ATTACKS as REGISTERED
from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_client, audit_samples
from riskaudit.audit.client import Client, make_client
from riskaudit.audit.provenance import audited_data
from riskaudit.audit.recognition import doubt_of
from riskaudit.audit.transformed import transformed
from riskaudit.engine import Trial, make_engine
from riskaudit.errors import RiskauditError, SettingsError
from riskaudit.formatting import count
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.inputs.identifiers import hash_tensors
from riskaudit.inputs.text import clean
from riskaudit.release import ReleaseSpec, batch_norm_layers
from riskaudit.results import AuditResult, Estimate
from riskaudit.statistics.seeding import derived_seed
from riskaudit.studies.adaptive import with_adaptive
from riskaudit.studies.attacking import noise_levels
from riskaudit.studies.base import (
    Study,
    StudyRun,
    attack_at,
    attack_notes,
    errors_at_noise_times,
    identity_of,
    released_norm,
)
from riskaudit.studies.control import ControlTrial
from riskaudit.studies.defenses.front import defense_rows, equal_utility
from riskaudit.studies.defenses.recommendation import UNDEFENDED, recommend
from riskaudit.studies.defenses.record import DefendedSample, DefenseRun, DefensesStudy, TrainingPoint
from riskaudit.studies.rows import strongest
from riskaudit.studies.settings import AttackSettings, DefenseSettings
from riskaudit.studies.simulated_training import (
    DivergedError,
    Plan,
    Trainee,
    check_batch,
    check_uploads,
    check_weights,
    fitted,
    mean_loss,
    train,
)
from riskaudit.studies.training.run import accuracy

CONFIDENCE = 0.95
PROXIES = ("gradient_norm", "posterior_rmse", "revealed_fraction")


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Samples to train on, and to test on where there are any, as the model takes them."""

    train: Samples
    test: Samples | None = None


def defenses_study(
    checkpoint: Checkpoint | nn.Module,
    samples: Samples,
    data: TrainingData,
    settings: AuditSettings | None = None,
    run: StudyRun | None = None,
    *,
    options: DefenseSettings,
) -> AuditResult:
    """Train a checkpoint with each of several defences, and audit and attack it on the way.

    Args:
        checkpoint: whose weights all trainings begin with.
        samples: to audit.
        data: to train and to test on.
        settings: of the audits; what leaves is the defences' business, and ``release`` that of the audit beside them.
        run: how the study is run; attacks always are.
        options: the defences, and how to train.

    Returns:
        The audit of the checkpoint with ``studies.defenses``. A training that diverges is a row with a status.

    Raises:
        RiskauditError: as `audit`; a defence that can't be read or doesn't fit model, data or batch; options out of
            range.
    """
    settings, run = settings or AuditSettings(), run or StudyRun()
    if settings.batch_norm == "batch":
        raise SettingsError("expected `batch_norm=running`, with which every defence trains here, found batch")
    attacks = _attacks(options, run)
    client = make_client(checkpoint, samples, settings)
    data = TrainingData(
        fitted(client, data.train, "train"), None if data.test is None else fitted(client, data.test, "test")
    )
    plan = Plan(options.epochs, options.training_batch, options.learning_rate)
    check_batch(plan, data.train)
    study = Defenses(_with_undefended(options.defenses), data, plan, options.seeds, (), attacks)
    study = replace(study, points=study.chosen_points(options.points))
    for defense in study.defenses:
        study.check(client, defense)
    journal = run.journal(
        {
            "defenses": identity_of(client, attacks, [], False),
            "training": [_hash(data.train), None if data.test is None else _hash(data.test), asdict(study.plan)],
            "points": list(study.points),
        }
    )
    with make_engine(run.workers) as engine:
        result = audit_client(client, engine, show_samples=run.show_samples, command=run.command)
        return result.with_study(study.answer(client, engine, journal, run.progress))


@dataclass(frozen=True, eq=False)
class Defenses(Study[DefensesStudy]):
    """Trainings with every defence and seed.

    Attributes:
        defenses: releases as text, the first of them `UNDEFENDED`.
        data: to train and to test on.
        plan: how.
        seeds: trainings with each defence.
        points: steps after which networks are audited, ascending, the end among them.
        attacks: on the audited samples.
    """

    defenses: tuple[str, ...]
    data: TrainingData
    plan: Plan
    seeds: int
    points: tuple[int, ...]
    attacks: AttackSettings

    @property
    def num_steps(self) -> int:
        """Of a training."""
        return self.plan.num_steps(len(self.data.train))

    def chosen_points(self, points: Sequence[int]) -> tuple[int, ...]:
        """Those given and the end; the beginning, the middle and the end by default.

        Raises:
            SettingsError: one that lies beyond the end.
        """
        end = self.num_steps
        beyond = [point for point in points if not 0 <= point <= end]
        if beyond:
            raise SettingsError(
                f"expected `points` from 0 to {end}, the steps of {count(self.plan.epochs, 'epoch')} over "
                f"{count(len(self.data.train), 'sample')} in batches of {self.plan.batch_size}, found {beyond[0]}"
            )
        return tuple(sorted({*(points or (0, end // 2)), end}))

    def check(self, client: Client, defense: str) -> None:
        """Refuse a defence that can't be trained with or audited.

        Raises:
            RiskauditError: why not.
        """
        defended = defended_client(client, defense, client.checkpoint.model)
        check_uploads(self.plan, defended.release)
        spec = defended.release.spec
        if spec.transformation is not None:
            transformed(self.data.train.select([0]), spec.transformation)

    @override
    def trials(self, client: Client) -> list[Trial[Client]]:
        shared = (self.data, self.plan, self.points, self.attacks)
        starts = [StartTrial(f"{defense} start", defense, *shared) for defense in self.started]
        runs = [
            TrainingTrial(f"{defense} {number}", defense, *shared, number)
            for defense in self.defenses
            for number in range(self.seeds)
        ]
        return [ControlTrial(self.attacks.attacks()), *starts, *runs]

    @property
    def started(self) -> tuple[str, ...]:
        """Defences under which the checkpoint itself is audited."""
        return self.defenses if 0 in self.points else ()

    def _runs(self, results: Sequence[Any]) -> list[DefenseRun]:
        """The trainings from the trials' results, with the checkpoint as their first point."""
        count = 1 + len(self.started)
        points = [TrainingPoint.model_validate(result) for result in results[1:count]]
        starts = dict(zip(self.started, points, strict=True))
        return [_begun(DefenseRun.model_validate(result), starts) for result in results[count:]]

    @override
    def summarise(self, client: Client, results: Sequence[Any]) -> DefensesStudy:
        runs = self._runs(results)
        settings = client.settings
        noisy = {defense: ReleaseSpec.parse(defense).noise is not None for defense in self.defenses}
        rows = defense_rows(runs, noisy, settings.attacker, CONFIDENCE)
        doubted = doubt_of(client) is not None or audited_data(client).doubt is not None
        recommended, sentence = recommend(rows, client.target_rmse, doubted=doubted)
        return DefensesStudy(
            architecture=client.checkpoint.architecture,
            noise_std=settings.reference_noise,
            reference_noise=not all(noisy.values()),
            prior_rmse=client.chosen.info.std,
            attacks=list(self.attacks.chosen),
            control=results[0],
            epochs=self.plan.epochs,
            num_steps=self.num_steps,
            batch_size=self.plan.batch_size,
            learning_rate=self.plan.rate,
            num_training_samples=len(self.data.train),
            num_seeds=self.seeds,
            points=list(self.points),
            confidence=CONFIDENCE,
            target_rmse=client.target_rmse,
            tested=self.data.test is not None,
            rows=rows,
            equal_utility=equal_utility(rows, runs, settings.attacker, CONFIDENCE, settings.seed),
            runs=runs,
            recommended=recommended,
            recommendation=sentence,
            notes=[*self._notes(client, noisy), *dict.fromkeys(_attack_notes(runs))],
        )

    def _notes(self, client: Client, noisy: dict[str, bool]) -> list[str]:
        notes = [
            f"plain SGD from the checkpoint's weights: {count(self.num_steps, 'step')} at rate {self.plan.rate:g}, "
            f"each by the mean of the uploads of {count(self.plan.batch_size, 'sample')}; after local training at "
            "rate 1",
            "an error is each sample's least over the audited points of training, an attack's also over the attacks; "
            "an attacker who puts several uploads together may do better than with any of them alone",
        ]
        if not all(noisy.values()):
            reference = client.settings.reference_noise
            notes.append(
                f"defences without noise are predicted at the reference noise {reference:g} and attacked without any"
            )
        if self.seeds < 2:
            notes.append("one seed: there are no intervals, and no defences are compared at equal utility")
        if self.data.test is None:
            notes.append("no test data were given, so that there is no test accuracy")
        if batch_norm_layers(client.checkpoint.model):
            notes.append("batch norm trains with the checkpoint's running statistics, which stay as they are")
        if any(ReleaseSpec.parse(defense).transformation is not None for defense in self.defenses):
            notes.append("ATS draws one transformation per image for the whole training; errors are against its result")
        left_out = len(self.data.train) % self.plan.batch_size
        if left_out:
            notes.append(
                f"every epoch leaves out {count(left_out, 'sample')} beyond its last full batch, other ones each time"
            )
        return notes


@dataclass(frozen=True, eq=False)
class DefenseTrial(Trial[Client]):
    """Something done with one defence."""

    key: str
    defense: str
    data: TrainingData
    plan: Plan
    points: tuple[int, ...]
    attacks: AttackSettings

    def training(self, client: Client) -> Training:
        """The training from the client's checkpoint."""
        trainee = Trainee.of(client, ReleaseSpec.parse(self.defense), self.data.train)
        norm = released_norm(defended_client(client, self.defense, trainee.release.model))
        return Training(client, self.defense, trainee, self.data.test, self.attacks, norm)


@dataclass(frozen=True, eq=False)
class StartTrial(DefenseTrial):
    """The checkpoint itself with one defence; gives a `TrainingPoint` as plain data."""

    @override
    def run(self, client: Client) -> dict[str, Any]:
        try:
            point = self.training(client).point(0)
        except (DivergedError, RiskauditError) as reason:
            point = TrainingPoint(step=0, loss=None, reason=clean(reason, 300))
        return point.model_dump(mode="json")


@dataclass(frozen=True, eq=False)
class TrainingTrial(DefenseTrial):
    """One training with one defence; gives a `DefenseRun` without its first point as plain data.

    Attributes:
        number: of the seed.
    """

    number: int

    @override
    def run(self, client: Client) -> dict[str, Any]:
        run = DefenseRun(defense=self.defense, number=self.number, status="finished")
        points: list[TrainingPoint] = []
        try:
            training = self.training(client)
            trainee = training.trainee
            for step in train(trainee.release, trainee.samples, self.plan, self._seed(client)):
                if step > 0 and step in self.points:
                    # One after the other: a divergence leaves those before it.
                    points += [training.point(step)]
        except DivergedError as reason:
            run = run.model_copy(update={"status": "diverged", "reason": str(reason)})
        except RiskauditError as reason:
            run = run.model_copy(update={"status": "failed", "reason": clean(reason, 300)})
        return run.model_copy(update={"points": points}).model_dump(mode="json")

    def _seed(self, client: Client) -> int:
        return derived_seed(client.settings.seed, self.number)


@dataclass(frozen=True, eq=False)
class Training:
    """A training with a defence, looked at where it is.

    Attributes:
        client: of the checkpoint.
        defense: what leaves.
        trainee: the model that is trained.
        test: to test on, if any.
        attacks: on the audited samples.
        norm: of what the audited samples release before the first step, see `released_norm`.
    """

    client: Client
    defense: str
    trainee: Trainee
    test: Samples | None
    attacks: AttackSettings
    norm: float | None

    def point(self, step: int) -> TrainingPoint:
        """The network after so many steps; without samples, with a reason, where it can't be audited.

        Raises:
            DivergedError: its weights or its loss aren't finite.
        """
        model = self.trainee.release.model
        check_weights(model)
        loss = mean_loss(self.trainee.release, self.trainee.samples)
        point = TrainingPoint(step=step, loss=loss, accuracy=None if self.test is None else accuracy(model, self.test))
        try:
            return point.model_copy(update=self._audited(defended_client(self.client, self.defense, model)))
        except RiskauditError as reason:
            return point.model_copy(update={"reason": clean(reason, 300)})

    def _audited(self, client: Client) -> dict[str, Any]:
        """What a point has of the audit and the attacks."""
        audited, norm = audit_samples(client), released_norm(client)
        noise = client.noisy.noise
        assert noise is not None
        share = norm / self.norm if norm and self.norm else None
        relative: list[Estimate | None] = [None] * len(audited.rows)
        if share is not None:
            relative = errors_at_noise_times(client, audited, share)
        # What leaves without noise is attacked without it: who attacks a defence sees what it sends.
        levels = noise_levels(client.release, ())
        attacked = attack_at(levels, audited.rows, client, with_adaptive(client, self.attacks, *levels))
        best = {sample: found for (_, sample), found in strongest(attacked).items()}
        samples = [
            DefendedSample(
                sample_id=row.id,
                status=row.status,
                reason=row.reason,
                outsider_rmse=row.proxies["posterior_rmse"],
                informed_rmse=row.proxies.get("informed_posterior_rmse"),
                relative_rmse=other,
                attack_rmse=best[row.id][0] if row.id in best else None,
                attack=best[row.id][1].attack if row.id in best else None,
            )
            for row, other in zip(audited.rows, relative, strict=True)
        ]
        return {
            "noise_std": noise.std,
            "relative_noise_std": None if share is None else noise.std * share,
            "gradient_norm": norm,
            "samples": samples,
            "attack_notes": attack_notes(attacked, client),
        }


def defended_client(client: Client, defense: str, model: nn.Module) -> Client:
    """A client of the same samples that has this model and sends what a defence makes of it.

    Raises:
        RiskauditError: the defence can't be read, or doesn't fit.
    """
    spec = ReleaseSpec.parse(defense)
    settings = replace(
        client.settings,
        release=defense,
        model_defense=None,
        batch_norm="running",
        attacker=client.settings.attacker if spec.is_joint else "informed",
        proxies=PROXIES,
        calibration=None,
        checks=False,
        tolerances=(),
    )
    checkpoint = replace(client.checkpoint, model=model)
    return make_client(checkpoint, client.samples if client.originals is None else client.originals, settings)


def _begun(run: DefenseRun, starts: Mapping[str, TrainingPoint]) -> DefenseRun:
    """A run with its first point; one that came to its end and can't be audited everywhere says why."""
    points = [starts[run.defense], *run.points] if run.defense in starts else run.points
    unaudited = next((point for point in points if point.reason is not None), None)
    changes: dict[str, Any] = {"points": points}
    if run.status == "finished" and unaudited is not None:
        changes |= {"status": "unaudited", "reason": f"after {count(unaudited.step, 'step')}: {unaudited.reason}"}
    return run.model_copy(update=changes)


def _attacks(options: DefenseSettings, run: StudyRun) -> AttackSettings:
    oracles = [name for name in options.attack_names if name in REGISTERED and REGISTERED[name].oracle_start]
    if oracles:
        raise SettingsError(
            f"expected attacks that somebody could run, found {oracles[0]!r}, which is started at the truth; leave it "
            "out"
        )
    return AttackSettings(options.attack_names, run.attack_steps, options.restarts)


def _with_undefended(defenses: Sequence[str]) -> tuple[str, ...]:
    """Each defence once, as the user wrote it first, after no defence at all."""
    by_meaning = {str(ReleaseSpec.parse(text)): text for text in reversed([UNDEFENDED, *defenses])}
    return tuple(reversed(by_meaning.values()))


def _hash(samples: Samples) -> str:
    digest = hashlib.sha256()
    hash_tensors(digest, [("inputs", samples.inputs), ("targets", samples.targets)])
    return digest.hexdigest()


def _attack_notes(runs: Sequence[DefenseRun]) -> Iterator[str]:
    for run in runs:
        for point in run.points:
            for note in point.attack_notes:
                yield f"{run.defense}: {note}"
