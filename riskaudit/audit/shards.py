"""An audit in parts: trials of some samples each, the same whatever engine runs them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from typing_extensions import override

from riskaudit.audit.calibration import Calibrator, make_calibrator
from riskaudit.audit.checks import is_out_of_memory
from riskaudit.audit.client import Client
from riskaudit.audit.draws import at_other_draws, other_draws, over_draws
from riskaudit.audit.plan import UploadShape, choose_plan, free_memory, samples_at_once
from riskaudit.audit.positions import TextContext
from riskaudit.audit.precision import full_single_precision
from riskaudit.audit.progress import BatchProgress, expected_passes
from riskaudit.audit.rows import AuditBatch, AuditContext, BatchRows, audit_batch, image_png
from riskaudit.audit.targets import CARRIED, carrying_targets
from riskaudit.audit.texts import of_one_length
from riskaudit.audit.worse import with_worse
from riskaudit.engine import Trial, tell_share
from riskaudit.errors import ArchitectureError, SettingsError
from riskaudit.jacobian import obstacle_of
from riskaudit.linalg import watching_products
from riskaudit.release.adapted import without_spoiled
from riskaudit.sensitivity import Clock, Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditPlan:
    """What all shards of an audit share besides the client.

    Attributes:
        noise_std: of the release, as `Client.at_noise` takes it.
        solvers: and their limits; their width is the size of a shard.
        calibrator: of intervals, or None.
        show_samples: put private images and targets into the rows.
        started: on the monotonic clock, when the time began that the settings may limit.
    """

    noise_std: float | None
    solvers: Plan
    calibrator: Calibrator | None
    show_samples: bool
    started: float

    def context(self, client: Client, disclosed: Mapping[int, str]) -> AuditContext:
        """What audits batches of a client that has this plan's noise."""
        settings = client.settings
        return AuditContext(
            jacobian=client.jacobian(client.noisy),
            defended=client.release.noise is not None,
            prior=client.chosen.prior,
            attacker=settings.attacker,
            plan=self.solvers,
            thresholds=settings.thresholds(),
            target_rmse=client.target_rmse,
            tolerances=settings.tolerances,
            seed=settings.seed,
            calibrator=self.calibrator,
            disclosed=disclosed,
            single=client.single,
            encoding=client.samples.encoding,
            text=self._text_context(client),
        )

    def _text_context(self, client: Client) -> TextContext | None:
        """What is asked of texts."""
        tokens, settings, reader = client.samples.tokens, client.settings, client.checkpoint.text
        if tokens is None:
            return None
        limits = sorted({limit for limit in settings.revealed_limits(client.chosen.info.std) if 0 < limit < 1})
        word = reader.word if self.show_samples and reader is not None else None
        return TextContext(tokens, tuple(limits), word)


def plan_audit(
    client: Client, noise_std: float | None, workers: int, show_samples: bool, started: float | None = None
) -> AuditPlan:
    """Decide once for all shards how a client at some noise is audited; ``started`` as `AuditPlan` has it, or now.

    Raises:
        SettingsError: a calibration that doesn't fit, or what several workers can't do.
    """
    settings, device = client.settings, client.device
    if workers > 1 and settings.budget is not None:
        raise SettingsError(
            "with a budget of time results would depend on the workers; leave out `budget`, or use `workers=1`"
        )
    at_noise = client.at_noise(noise_std)
    calibrator = None if settings.calibration is None else make_calibrator(settings.calibration, at_noise)
    width = samples_at_once(settings.batch_size, client.sample_bytes, device, client.upload_size)
    needed = workers * width * client.sample_bytes
    if workers > 1 and needed > free_memory(device):
        raise SettingsError(
            f"{workers} workers with {width} samples each need about {needed / 1e9:.3g} GB of memory, more than is "
            "free; use fewer `workers` or a smaller `batch_size`"
        )
    solvers = choose_plan(
        settings,
        client.upload_size * client.samples.inputs[0].numel(),
        client.release.num_entries,
        len(client.samples),
        width,
        device,
        _upload_shape(client) if client.is_joint else None,
    )
    return AuditPlan(noise_std, solvers, calibrator, show_samples, time.monotonic() if started is None else started)


def _upload_shape(client: Client) -> UploadShape:
    training = client.release.spec.training
    if training is None:
        return UploadShape(client.upload_size, separable=not client.mixes_samples)
    return UploadShape(client.upload_size, training.epochs)


def audit_shards(client: Client, plan: AuditPlan) -> list[AuditShard]:
    """All samples of a client in the order of the data, as many uploads at once as the plan says."""
    samples, width = client.samples, plan.solvers.width * client.upload_size
    carried = carrying_targets(samples.inputs, samples.targets)
    return [
        AuditShard(plan, first, tuple(carried[first : first + width]), len(samples))
        for first in range(0, len(samples), width)
    ]


@dataclass(frozen=True)
class AuditShard(Trial[Client]):
    """The audit of some samples that follow each other.

    Attributes:
        plan: of the audit.
        first: position of the first sample in the data.
        carried: whether each sample's target carries its input.
        num_samples: of the whole data.
    """

    plan: AuditPlan
    first: int
    carried: tuple[bool, ...]
    num_samples: int

    @property
    @override
    def key(self) -> str:  # type: ignore[override]
        return f"audit {self.plan.noise_std!r} {self.first}"

    @property
    @override
    def size(self) -> int:  # type: ignore[override]
        return len(self.carried)

    @property
    def indices(self) -> list[int]:
        """Positions of the samples in the data."""
        return list(range(self.first, self.first + self.size))

    @override
    def run(self, client: Client) -> BatchRows:
        """The samples' rows.

        Raises:
            ArchitectureError: the model's gradient can't be differentiated on these samples.
            SettingsError: out of memory.
        """
        try:
            with full_single_precision(), self._told(client):
                return self._rows(client)
        except (MemoryError, RuntimeError) as error:
            obstacle = obstacle_of(error)
            if obstacle is not None:
                raise ArchitectureError(obstacle) from error
            if not is_out_of_memory(error):
                raise
            raise SettingsError(
                f"out of memory with {self.size} samples at once; lower `batch_size`, or choose `solver=lanczos`"
            ) from error

    def _told(self, client: Client) -> AbstractContextManager[None]:
        """Within it the engine is told of products, as a share of those that the shard is foreseen to make."""
        shape = _upload_shape(client) if client.is_joint else None
        dimension = client.upload_size * client.samples.inputs[0].numel()
        expected = expected_passes(self.plan.solvers, dimension, self.size // client.upload_size, shape)
        if expected is None:
            return nullcontext()
        release = client.at_noise(self.plan.noise_std).noisy
        audits = (1 + len(other_draws(release))) * (1 if without_spoiled(release) is None else 2)
        return watching_products(BatchProgress(audits * expected, tell_share))

    def _rows(self, client: Client) -> BatchRows:
        parts = self.batches(client)
        if len(parts) == 1:
            return self._of_batch(client, parts[0])
        rows = BatchRows()
        for part in parts:
            rows.extend(self._of_batch(client, part))
        return rows

    def _of_batch(self, client: Client, batch: AuditBatch) -> BatchRows:
        context, budget = self.context(client), client.settings.budget
        others = at_other_draws(context.jacobian.release)
        if not others:
            return self._of_draw(context, batch, budget)
        singles = [None] * len(others) if context.single is None else at_other_draws(context.single.release)
        contexts = [context]
        for release, single in zip(others, singles, strict=True):
            maker = None if context.single is None or single is None else context.single.of(single)
            contexts.append(replace(context, jacobian=context.jacobian.of(release), single=maker))
        return over_draws(context, [self._of_draw(each, batch, budget, len(contexts)) for each in contexts])

    def _of_draw(self, context: AuditContext, batch: AuditBatch, budget: float | None, parts: int = 1) -> BatchRows:
        """The rows at one draw of what is random in the model; ``parts`` audits share the time."""
        adapted = without_spoiled(context.jacobian.release)
        if adapted is None:
            return _batch_rows(context, batch, self._clock(budget, parts))
        other = replace(context, jacobian=context.jacobian.of(adapted))
        if context.single is not None:
            single = without_spoiled(context.single.release)
            assert single is not None
            other = replace(other, single=context.single.of(single))
        rows = _batch_rows(context, batch, self._clock(budget, 2 * parts))
        return with_worse(context, rows, _batch_rows(other, batch, self._clock(budget, 2 * parts)))

    def context(self, client: Client) -> AuditContext:
        """What audits the samples."""
        disclosed = {index: CARRIED for index, carries in zip(self.indices, self.carried, strict=True) if carries}
        return self.plan.context(client.at_noise(self.plan.noise_std), disclosed)

    def batches(self, client: Client) -> list[AuditBatch]:
        """The samples, texts of different lengths apart."""
        samples, show, size = client.samples, self.plan.show_samples, client.upload_size
        uploads = list(range(self.first // size, (self.first + self.size) // size))
        parts = []
        for group in of_one_length(samples, [client.uploads[upload].positions for upload in uploads]):
            numbers = [uploads[place] for place in group]
            indices = [upload * size + offset for upload in numbers for offset in range(size)]
            images = [image_png(samples.inputs[index]) if show else None for index in indices]
            batch = client.upload_batch(numbers)
            parts.append(AuditBatch(batch, indices, [samples.ids[index] for index in indices], images, show))
        return parts

    def _clock(self, budget: float | None, parts: int = 1) -> Clock:
        """Every sample gets the same share of the time that is left, or for one of several audits a part of it."""
        if budget is None:
            return Clock()
        left = budget - (time.monotonic() - self.plan.started)
        return Clock(max(0.0, left) * self.size / (self.num_samples - self.first) / parts)


def _batch_rows(context: AuditContext, batch: AuditBatch, clock: Clock) -> BatchRows:
    """By the chosen Jacobian, or where it can't run what the first samples didn't reach, by plain autograd."""
    try:
        return audit_batch(context, batch, clock)
    except (NotImplementedError, RuntimeError) as error:
        if is_out_of_memory(error) or context.jacobian.kind not in ("generic", "unrolled"):
            raise
        log.warning("some samples take a path that can't be differentiated together; doing them one by one")
        plain = replace(context.jacobian, plain=True)
        return audit_batch(replace(context, jacobian=plain, single=None), batch, clock)
