"""A training run of the study's own: a checkpoint trained by what leaves, kept after some of its steps.

Every step goes by the release that is audited, as `riskaudit.studies.simulated_training` has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file, save_file
from torch import nn

from riskaudit.audit import AuditSettings
from riskaudit.audit.client import Client, make_client
from riskaudit.copying import copy_model
from riskaudit.errors import SettingsError
from riskaudit.files import sha256_of_file
from riskaudit.formatting import count
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.results import AuditResult
from riskaudit.statistics.seeding import derived_seed
from riskaudit.studies.base import ATTACKS, StudyRun
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
from riskaudit.studies.training.run import training_study

# Balunovic et al., ICLR 2022, figures 2 and 6.
STEPS = (0, 1, 5, 10, 20, 50, 100, 500, 1000)


@dataclass(frozen=True)
class Stored:
    """Reads weights of a run into the model that they are of."""

    checkpoint: Checkpoint

    def __call__(self, path: Path) -> Checkpoint:
        """The checkpoint with the weights of a file."""
        model = copy_model(self.checkpoint.model)
        model.load_state_dict(load_file(path))
        return replace(self.checkpoint, model=model, name=path.name, sha256=sha256_of_file(path))


def own_training_study(
    checkpoint: Checkpoint | nn.Module,
    samples: Samples,
    train_on: Samples,
    settings: AuditSettings | None = None,
    run: StudyRun | None = None,
    *,
    steps: Sequence[int] = STEPS,
    batch_size: int = 32,
    rate: float = 0.1,
    attacks: Sequence[str] = ATTACKS,
) -> AuditResult:
    """Train a checkpoint by what leaves, and audit it after some of the steps.

    Args:
        checkpoint: whose weights the training begins with.
        samples: to audit.
        train_on: samples to train on, over and over until the last step.
        settings: of the audits and, with their release, of the training.
        run: how the study is run.
        steps: after which the network is audited, 0 the checkpoint itself.
        batch_size: samples of a step.
        rate: of plain SGD.
        attacks: where the run attacks; those made for the defence join them.

    Returns:
        As `training_study` of these checkpoints. A training that diverges ends there, which a note says.

    Raises:
        RiskauditError: as `training_study`; training samples that don't fit, or too few for a batch.
    """
    settings, chosen = settings or AuditSettings(), sorted(set(steps))
    if not chosen or chosen[0] < 0:
        raise SettingsError("expected `points` of at least 0, in steps of the training")
    client = make_client(checkpoint, samples, settings)
    train_on = fitted(client, train_on, "train")
    plan = Plan(1, batch_size, rate)
    check_batch(plan, train_on)
    check_uploads(plan, client.release)
    plan = replace(plan, epochs=max(1, -(-chosen[-1] // plan.num_steps(len(train_on)))))
    with TemporaryDirectory() as folder:
        files, notes = checkpoints_of(client, train_on, plan, chosen, Path(folder))
        load = Stored(client.checkpoint)
        return training_study(files, samples, settings, run, load=load, attacks=attacks, notes=notes)


def checkpoints_of(
    client: Client, train_on: Samples, plan: Plan, steps: Sequence[int], folder: Path
) -> tuple[list[Path], list[str]]:
    """Train a copy of a client's model; a file of weights per step, and what is to be said of the run."""
    trainee, files = Trainee.of(client, client.release.spec, train_on), list[Path]()
    model, last = trainee.release.model, max(steps)
    notes = [
        f"trained here from the checkpoint's weights on {count(len(train_on), 'sample')}: plain SGD at rate "
        f"{plan.rate:g}, each step by the mean of the uploads of {count(plan.batch_size, 'sample')}; after local "
        "training at rate 1"
    ]
    made = 0
    try:
        for made in train(trainee.release, trainee.samples, plan, derived_seed(client.settings.seed, 0)):
            if made in steps:
                check_weights(model)
                mean_loss(trainee.release, trainee.samples)
                files.append(folder / f"step-{made}.safetensors")
                weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
                save_file(weights, files[-1])
            if made == last:
                break
    except DivergedError as reason:
        notes.append(f"the training diverged after {count(made, 'step')}: {reason}")
    return files, notes
