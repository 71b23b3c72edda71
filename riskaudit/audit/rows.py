"""One batch of samples to rows of the result."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from riskaudit.audit.calibration import Calibrator
from riskaudit.audit.checks import agree_alone
from riskaudit.audit.company import classmates_of, copies_of, is_class_number
from riskaudit.audit.credibility import examine, precise_differences
from riskaudit.audit.evidence import Evidence
from riskaudit.audit.positions import TextContext, with_positions
from riskaudit.audit.precision import single_jacobian
from riskaudit.audit.uploads import examine_uploads
from riskaudit.audit.width import width_doubts
from riskaudit.jacobian import AnyJacobianMaker, Jacobian, JacobianMaker, JointJacobianMaker
from riskaudit.jacobian.distinct import of_distinct_inputs
from riskaudit.priors import Prior
from riskaudit.proxies import Proxy, ProxyScores, proxies_for
from riskaudit.proxies.base import not_applicable
from riskaudit.release import Batch
from riskaudit.release.copies import first_copies
from riskaudit.results import Attacker, Estimate, SampleRow, SolverEvidence, Target, Thresholds
from riskaudit.results.verdicts import cautious, headline_of, tokens_of, verdict
from riskaudit.sensitivity import Clock, Concentration, Information, Linearisation, Plan, concentrations
from riskaudit.sensitivity.columns import SampleColumns, TableSensitivity
from riskaudit.sensitivity.linearisation import sample_generator
from riskaudit.sensitivity.success import success_of
from riskaudit.sensitivity.tokens import TokenDifferences
from riskaudit.tables import TableEncoding

# Beyond the streams of probes.
STEP_STREAM = 1 << 20


@dataclass(frozen=True)
class AuditContext:
    """What stays the same for all batches of an audit.

    Attributes:
        jacobian: of a release that carries noise, the reference noise where the client adds none.
        defended: whether the client adds noise.
        prior: the attacker's.
        attacker: whose numbers decide where several samples leave together.
        plan: solvers and their limits.
        thresholds: of verdicts.
        target_rmse: error that the noise recommended per sample should reach.
        tolerances: errors whose probability is asked for.
        seed: of every random draw.
        calibrator: of intervals, or None.
        disclosed: why nothing can be claimed of samples, by position in the data.
        single: makes the Jacobian in single precision, for products that may be; None for none.
        encoding: of a table, whose columns are looked at one by one; None for other inputs.
        text: what is asked of texts; None of other samples.
    """

    jacobian: AnyJacobianMaker
    defended: bool
    prior: Prior
    attacker: Attacker
    plan: Plan
    thresholds: Thresholds
    target_rmse: float
    tolerances: tuple[float, ...]
    seed: int
    calibrator: Calibrator | None = None
    disclosed: Mapping[int, str] = field(default_factory=dict)
    single: AnyJacobianMaker | None = None
    encoding: TableEncoding | None = None
    text: TextContext | None = None

    @property
    def is_joint(self) -> bool:
        """Whether several samples leave together."""
        return self.jacobian.release.coupling == "joint"

    @property
    def proxies(self) -> Mapping[str, Proxy]:
        """Those that have a meaning for the release."""
        return proxies_for(joint=self.is_joint, text=self.text is not None)

    @property
    def headline(self) -> str:
        """The proxy that verdicts go by."""
        return headline_of(self.attacker if self.is_joint else None)

    @property
    def tokens_headline(self) -> str:
        """The recovery of tokens that verdicts go by."""
        return tokens_of(self.attacker if self.is_joint else None)


@dataclass
class BatchRows:
    """What an audit says of a batch of samples.

    Attributes:
        rows: of the samples.
        information: what the samples' releases tell, of those that didn't fail, in their order; empty where unknown.
        reasons: why proxies are missing, by proxy.
        matvecs: products used.
        separate: number of samples that were worked out one by one, since their batch is another function than each
            alone.
        uneven: how unevenly coordinates are revealed, by position in the data.
    """

    rows: list[SampleRow] = field(default_factory=list)
    information: list[Information] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    matvecs: int = 0
    separate: int = 0
    uneven: dict[int, Concentration] = field(default_factory=dict)

    @property
    def information_by_row(self) -> list[Information | None]:
        """What each row's release tells; None where the row failed, or nothing is known."""
        known = iter(self.information)
        return [None if row.status == "failed" else next(known, None) for row in self.rows]

    def extend(self, part: BatchRows) -> None:
        """Add the samples of a later batch."""
        self.rows += part.rows
        self.information += part.information
        self.reasons |= part.reasons
        self.matvecs += part.matvecs
        self.separate += part.separate
        self.uneven |= part.uneven


@dataclass(frozen=True)
class AuditBatch:
    """Samples of the audited data that are audited together.

    Attributes:
        samples: inputs and targets.
        indices: their positions in the data.
        ids: their names.
        images: to show in the report, or None each.
        show_targets: whether targets that aren't class numbers may be written down too.
    """

    samples: Batch
    indices: list[int]
    ids: list[str]
    images: list[str | None]
    show_targets: bool = False

    @property
    def upload_size(self) -> int:
        """Samples of an upload."""
        return self.samples.upload_size

    def select(self, uploads: list[int]) -> AuditBatch:
        """Some of the uploads."""
        places = [upload * self.upload_size + offset for upload in uploads for offset in range(self.upload_size)]
        return AuditBatch(
            self.samples.select(uploads),
            [self.indices[place] for place in places],
            [self.ids[place] for place in places],
            [self.images[place] for place in places],
            self.show_targets,
        )


def audit_batch(context: AuditContext, batch: AuditBatch, clock: Clock) -> BatchRows:
    """Rows for some samples; those that can't be linearised fail alone."""
    firsts = first_copies(batch.samples) if context.is_joint else []
    if len({len(set(upload)) for upload in firsts}) > 1:
        return _by_distinct_inputs(context, batch, firsts, clock)
    jacobian = context.jacobian(batch.samples)
    if not agree_alone(jacobian):
        assert isinstance(context.jacobian, JacobianMaker)
        return audit_batch(replace(context, jacobian=replace(context.jacobian, apart=True)), batch, clock)
    losses = jacobian.losses()
    finite_losses = torch.isfinite(losses).reshape(-1, batch.upload_size).all(1)
    finite = (finite_losses & torch.isfinite(jacobian.norms)).tolist()
    if not all(finite):
        return _without_infinite(context, batch, finite, clock)
    evidence = _evidence(context, batch, jacobian)
    noise = jacobian.release.noise
    assert noise is not None
    try:
        distinct, owners = of_distinct_inputs(jacobian)
        single = None if context.single is None else single_jacobian(context.single, distinct)
        indices = batch.indices[:: batch.upload_size]
        at = Linearisation(
            distinct,
            indices,
            context.prior,
            context.plan,
            context.seed,
            clock,
            single=single,
            tokens=_token_differences(context, batch, jacobian) if distinct is jacobian else None,
        )
        scores = {name: _score(proxy, at).for_samples(len(at)) for name, proxy in context.proxies.items()}
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        if batch.samples.num_uploads > 1:
            return _one_by_one(context, batch, clock)
        return BatchRows(
            [failed_row(context, batch, place, f"no eigenvalues: {error}") for place in range(len(batch.indices))]
        )
    decisive = at.informed if context.attacker == "informed" else at
    # Asked for only where the headline is, since it may take many products.
    information = None
    if context.headline in context.plan.proxies:
        information = at.informed_information if context.attacker == "informed" else at.information
    information = None if information is None else [information[owner] for owner in owners]
    shown = [] if information is None else concentrations(decisive)
    uneven = {index: shown[owner] for index, owner in zip(batch.indices, owners, strict=True) if shown}
    columns: Sequence[SampleColumns] = ()
    if context.encoding is not None:
        columns = TableSensitivity(context.encoding, jacobian, at, owners, batch.indices).of_samples()
        if information is not None:
            # Noise is recommended for what hides every column.
            complete = all(each.complete for each in columns)
            information = [own.information(each) for own, each in zip(columns, information, strict=True)]
            information = information if complete else None
    rows = [
        _row(context, (at, decisive), scores, (position, owner), batch, loss, information, uneven, columns)
        for position, (loss, owner) in enumerate(zip(losses.tolist(), owners, strict=True))
    ]
    if context.text is not None and at.tokens is not None:
        rows = with_positions(context.text, at, rows)
    doubts = [
        context.disclosed.get(index) or each.doubt(noise.fisher_std, *_claimed(row))
        for index, each, row in zip(batch.indices, evidence, rows, strict=True)
    ]
    size, highs = batch.upload_size, [_most_revealed(context, row) for row in rows]
    claimed = [max(highs[first : first + size]) for first in range(0, len(highs), size)]
    of_width = width_doubts(jacobian, at, owners, claimed)
    doubts = [doubt or of_width[place // size] or None for place, doubt in enumerate(doubts)]
    return BatchRows(
        [
            row if doubt is None else failed_row(context, batch, position, doubt)
            for position, (row, doubt) in enumerate(zip(rows, doubts, strict=True))
        ],
        [each for each, doubt in zip(information or [], doubts, strict=bool(information)) if doubt is None],
        {name: score.reason for name, score in scores.items() if score.reason is not None},
        at.matvecs,
        len(losses) if jacobian.separate else 0,
        uneven,
    )


def _token_differences(context: AuditContext, batch: AuditBatch, jacobian: Jacobian) -> TokenDifferences | None:
    """What other tokens do to what leaves; None where samples are no texts, or it isn't asked for."""
    if context.text is None or "token_recovery" not in context.plan.proxies:
        return None
    tokens = context.text.tokens.select(batch.indices)
    return TokenDifferences(jacobian, tokens, batch.indices, context.seed, context.plan.failure)


def _without_infinite(context: AuditContext, batch: AuditBatch, finite: list[bool], clock: Clock) -> BatchRows:
    """The samples whose loss and gradient are finite in a batch of their own, and failed rows of the others."""
    reason, training = "the loss or the gradient is not finite", context.jacobian.release.spec.training
    if training is not None:
        reason = (
            f"the loss, or what local training with lr={training.lr:g} makes of the weights, is not finite; lower lr"
        )
    rows = [failed_row(context, batch, place, reason) for place in range(len(batch.indices))]
    uploads = [upload for upload, is_finite in enumerate(finite) if is_finite]
    if not uploads:
        return BatchRows(rows)
    audited = audit_batch(context, batch.select(uploads), clock)
    places = [upload * batch.upload_size + offset for upload in uploads for offset in range(batch.upload_size)]
    for place, row in zip(places, audited.rows, strict=True):
        rows[place] = row
    return replace(audited, rows=rows)


def _by_distinct_inputs(context: AuditContext, batch: AuditBatch, firsts: list[list[int]], clock: Clock) -> BatchRows:
    """Uploads with as many distinct inputs each together, since those of a linearisation have one shape."""
    sizes = [len(set(upload)) for upload in firsts]
    parts = [[upload for upload, own in enumerate(sizes) if own == size] for size in sorted(set(sizes))]
    total = BatchRows()
    for part in parts:
        total.extend(audit_batch(context, batch.select(part), clock))
    order = [
        upload * batch.upload_size + offset for part in parts for upload in part for offset in range(len(firsts[0]))
    ]
    places = sorted(range(len(order)), key=order.__getitem__)
    information = total.information_by_row
    return replace(
        total,
        rows=[total.rows[place] for place in places],
        information=[each for place in places if (each := information[place]) is not None],
    )


def _evidence(context: AuditContext, batch: AuditBatch, jacobian: Jacobian) -> list[Evidence]:
    """What values of the release say about its derivative, per sample, the same whatever batch a sample is in."""
    flat = batch.samples.inputs.flatten(1)
    drawn = [
        torch.randn(flat.shape[1], generator=sample_generator(context.seed, index, STEP_STREAM), dtype=torch.float64)
        for index in batch.indices
    ]
    prior = context.prior.bind(batch.samples.targets, flat, batch.samples.lengths)
    vectors, maker = torch.stack(drawn).to(flat), context.jacobian
    if isinstance(maker, JointJacobianMaker):
        of_uploads = examine_uploads(maker, batch.samples, prior, vectors, jacobian)
        return [each for each in of_uploads for _ in range(batch.upload_size)]
    assert isinstance(maker, JacobianMaker)
    evidence = examine(maker, batch.samples, prior, vectors, apart=jacobian.separate, jacobian=jacobian)
    if flat.dtype == torch.float64:
        return evidence
    tiny = precise_differences(maker, batch.samples)
    return [own if one is None else replace(own, tiny=(one,)) for own, one in zip(evidence, tiny, strict=True)]


def _claimed(row: SampleRow) -> tuple[float | None, float | None]:
    """The least posterior error and the largest revealed fraction that a row claims, if it claims any."""
    return row.proxies["posterior_rmse"].ends[0], row.proxies["revealed_fraction"].ends[1]


def _most_revealed(context: AuditContext, row: SampleRow) -> float:
    """The upper end of what a row says is revealed to the attacker to whom it reveals most; 1 where it doesn't say."""
    ends = [row.proxies[name].ends[1] for name in ("revealed_fraction", context.headline)]
    return max((end for end in ends if end is not None), default=1.0)


def _score(proxy: Proxy, at: Linearisation) -> ProxyScores:
    if proxy.id not in at.plan.proxies:
        return not_applicable(at, "not among the proxies asked for")
    return proxy.score(at)


def _one_by_one(context: AuditContext, batch: AuditBatch, clock: Clock) -> BatchRows:
    """The same batch, an upload at a time, so that a bad one doesn't take the others along."""
    total = BatchRows()
    for upload in range(batch.samples.num_uploads):
        total.extend(audit_batch(context, batch.select([upload]), clock))
    return total


def failed_row(context: AuditContext, batch: AuditBatch, place: int, reason: str) -> SampleRow:
    """A sample without any number."""
    return SampleRow(
        id=batch.ids[place],
        target=_target(batch, place),
        upload=batch.indices[place] // batch.upload_size if context.is_joint else None,
        classmates=classmates_of(batch.samples, place) if context.is_joint else None,
        copies=copies_of(batch.samples, place) if context.is_joint else 1,
        loss=None,
        status="failed",
        reason=reason,
        proxies={name: Estimate(value=None, status="failed") for name in context.proxies},
        verdict="not_assessed",
    )


def _row(
    context: AuditContext, at: tuple[Linearisation, Linearisation], scores: dict[str, ProxyScores],
    places: tuple[int, int], batch: AuditBatch, loss: float, information: Sequence[Information] | None,
    uneven: Mapping[int, Concentration], columns: Sequence[SampleColumns],
) -> SampleRow:  # fmt: skip
    """One sample's; ``at`` holds the linearisation, and that of the attacker who decides.

    ``places`` are its positions in the batch, and of its input among those that the linearisation takes for different.
    """
    (whole, decisive), (place, owner) = at, places
    concentration = uneven[batch.indices[place]].factor if batch.indices[place] in uneven else 1.0
    noise_std = None
    # The noise is asked for the mean over all coordinates.
    if information is not None and concentration == 1:
        noise_std = information[place].noise_for(context.target_rmse)
    proxies = {name: score.estimates[owner] for name, score in scores.items()}
    headline = proxies[context.headline]
    solvers = {"largest_eigenvalue": _largest(whole, owner)} if whole.plan.proxies - {"gradient_norm"} else {}
    # Like the noise, asked for only where the headline is.
    wanted = context.headline in context.plan.proxies
    success, predicted = success_of(decisive, owner, context.tolerances) if wanted else ([], None)
    calibrated: dict[str, Estimate] = {}
    if context.calibrator is not None:
        calibrated = context.calibrator.intervals(proxies, float(whole.sample_prior.variance[owner]))
        if decisive is whole:  # attacks of a calibration know no other sample of an upload
            success = context.calibrator.success(success, lambda tolerances: success_of(whole, owner, tolerances)[0])
    risks = columns[place].risks(whole.sigma) if columns else {}
    known = cautious(
        headline, calibrated.get(context.headline), concentration, risks.values(), proxies.get(context.tokens_headline)
    )
    solvers |= {name: score.evidence[owner] for name, score in scores.items() if score.evidence is not None}
    trace = _trace(whole, owner) if wanted else None
    if trace is not None:
        solvers["trace"] = trace
    return SampleRow(
        id=batch.ids[place],
        target=_target(batch, place),
        upload=batch.indices[place] // batch.upload_size if context.is_joint else None,
        classmates=classmates_of(batch.samples, place) if context.is_joint else None,
        copies=copies_of(batch.samples, place) if context.is_joint else 1,
        loss=loss,
        status=headline.status,
        reason=scores[context.headline].reason or next(filter(None, (risk.reason for risk in risks.values())), None),
        proxies=proxies,
        noise_std_for_target=noise_std,
        verdict=verdict(known, context.thresholds, context.defended),
        solvers=solvers,
        success_probability=success,
        predicted_rmse=predicted,
        calibrated=calibrated,
        concentration=concentration,
        image_png=batch.images[place],
        columns=risks,
    )


def _largest(at: Linearisation, place: int) -> SolverEvidence:
    """Of the upload's H."""
    largest, upload = at.largest, place // at.upload_size
    low, high = largest.low, largest.high
    assert low is not None
    assert high is not None
    upper = float(high[upload])
    return SolverEvidence(
        method=at.plan.solver,
        status=largest.status[upload],
        value=float(largest.value[upload]),
        low=float(low[upload]),
        high=upper if np.isfinite(upper) else None,
        residual=float(largest.residual[upload]) if bool(torch.isfinite(largest.residual[upload])) else None,
        matvecs=int(largest.matvecs[upload]),
        dtype=at.products_dtypes[upload],
    )


def _trace(at: Linearisation, place: int) -> SolverEvidence | None:
    """tr H of the upload, where the posterior's numbers left it behind."""
    if at.spectrum is not None:
        value = float(at.spectrum.values[place // at.upload_size].sum())
        return SolverEvidence(method="dense", status="exact", value=value)
    trace = None if at.information is None else at.information[place].trace
    if trace is None:
        return None
    middle, high = (end if np.isfinite(end) else None for end in (trace.value, trace.high))
    return SolverEvidence(method="lanczos", status="bracketed", value=middle, low=trace.low, high=high)


def _target(batch: AuditBatch, place: int) -> Target | None:
    """A class number; anything else may be private data, an autoencoder's the very input, and takes showing."""
    target = batch.samples.targets[place]
    if is_class_number(target):
        return int(target)
    if not batch.show_targets:
        return None
    return float(target) if target.ndim == 0 else [float(value) for value in target.flatten()]


def target_kind(target: Tensor) -> str:
    """One sample's target in words, without its values."""
    if is_class_number(target):
        return "class numbers"
    shape = "x".join(str(size) for size in target.shape) or "single number"
    return f"{str(target.dtype).removeprefix('torch.')}, {shape}"


def image_png(image: Tensor) -> str | None:
    """An image [C, H, W] of 1 or 3 channels in [0, 1] as base64 PNG."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        return None
    stream = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2)).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
