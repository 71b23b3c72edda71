"""A run's inputs, read again and checked, as every worker and the merge need them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch

from riskaudit.audit.calibration import make_calibrator
from riskaudit.audit.client import Client, make_client
from riskaudit.audit.provenance import versions
from riskaudit.audit.settings import AuditSettings
from riskaudit.audit.shards import AuditPlan
from riskaudit.audit.targets import carrying_targets
from riskaudit.errors import RunError
from riskaudit.inputs import Samples
from riskaudit.inputs.identifiers import hash_tensors
from riskaudit.runs.manifest import RunManifest
from riskaudit.sensitivity import Plan


@dataclass(frozen=True, eq=False)
class OpenedCheckpoint:
    """A checkpoint of a run with its samples, ready to work on.

    Attributes:
        client: what is audited.
        plan: how, as it was decided when the run was created.
    """

    client: Client
    plan: AuditPlan

    @cached_property
    def carried(self) -> list[bool]:
        """Whether each sample's target carries its input."""
        return carrying_targets(self.client.samples.inputs, self.client.samples.targets)


def open_checkpoint(manifest: RunManifest, number: int, limits: AuditSettings | None = None) -> OpenedCheckpoint:
    """Read and check the inputs of one of a run's checkpoints.

    Args:
        manifest: of the run.
        number: of the checkpoint.
        limits: settings whose limits, by which noise is recommended, count instead of the run's; no row depends on
            them.

    Raises:
        RunError: other versions or inputs than the run was created with.
        RiskauditError: inputs that can't be read.
    """
    manifest.check_versions(versions())
    manifest.check_files(number)
    checkpoint = manifest.checkpoints[number]
    settings = manifest.audit_settings()
    if limits is not None:
        settings = replace(settings, max_revealed=limits.max_revealed, min_rmse=limits.min_rmse)
    model, samples = manifest.source_options().load_from(checkpoint.path, settings.loss)
    if hash_of_samples(samples) != checkpoint.data_sha256:
        raise RunError(
            f"{samples.name} doesn't hold the samples that this run was created with; put them back, or create the run "
            "anew"
        )
    client = make_client(model, samples, settings)
    calibrator = None if settings.calibration is None else make_calibrator(settings.calibration, client)
    plan = AuditPlan(None, plan_from(checkpoint.plan), calibrator, manifest.show_samples, started=0.0)
    return OpenedCheckpoint(client, plan)


def hash_of_samples(samples: Samples) -> str:
    """Hex SHA-256 of all inputs, targets, ids and class names."""
    digest = hashlib.sha256()
    hash_tensors(digest, [("inputs", samples.inputs), ("targets", samples.targets)])
    digest.update("\0".join([*samples.ids, "", *(samples.class_names or ())]).encode("utf-8", "replace"))
    return digest.hexdigest()


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Solvers and their limits as plain JSON."""
    values = asdict(plan)
    values["proxies"] = sorted(plan.proxies)
    values["of_samples"] = None if plan.of_samples is None else plan_to_json(plan.of_samples)
    return values


def plan_from(values: Mapping[str, Any]) -> Plan:
    """The reverse."""
    inner = values["of_samples"]
    changed = {
        "proxies": frozenset(values["proxies"]),
        "thresholds": tuple(values["thresholds"]),
        "of_samples": None if inner is None else plan_from(inner),
    }
    return Plan(**{**values, **changed})


@contextmanager
def computing_as(threads: int) -> Iterator[None]:
    """With as many threads as all workers of a run, since sums depend on how they are split."""
    before, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_default_dtype(dtype)
