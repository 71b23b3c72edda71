"""What a reader of the audit should be told besides the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from riskaudit.audit.client import Client
from riskaudit.audit.settings import AuditSettings
from riskaudit.audit.targets import target_notes
from riskaudit.audit.texts import text_model
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.inputs.architectures.precode import GaussianDraw, gaussian_draws
from riskaudit.inputs.checkpoints import STORED_STATISTICS
from riskaudit.inputs.duplicates import duplicate_labels, num_compared
from riskaudit.release import Release, batch_norm_layers
from riskaudit.release.joint import JointRelease
from riskaudit.release.local_training import LocalTrainingRelease
from riskaudit.release.shares import TOLERANCE
from riskaudit.results import SampleRow, ThreatModel, Thresholds
from riskaudit.results.verdicts import HEADLINE, headline_of
from riskaudit.sensitivity import Concentration, reached_note

# One prior for all coordinates says little about columns whose spreads differ by more.
MAX_SCALE_RATIO = 10
# Samples that are copies of one another are named up to so many, else counted.
MAX_NAMED = 12
# Samples on which unused parameters are looked for.
TRIED = 4


def threat_model(client: Client) -> ThreatModel:
    """The attacker, and whether the audited release is what a client computes."""
    layers, informed = batch_norm_layers(client.checkpoint.model), client.settings.attacker == "informed"
    known = not client.is_joint or informed
    if not layers or client.mixes_samples:
        return ThreatModel(rest_of_batch_known=known)
    return ThreatModel(
        rest_of_batch_known=known,
        evaluation="diagnostic",
        reason=f"{len(layers)} batch-norm layers (first: {layers[0]}) use their running statistics here; "
        "a client in training computes statistics from its batch, which couples the batch's samples",
    )


def warnings_of(
    checkpoint: Checkpoint, samples: Samples, settings: AuditSettings, release: Release, rows: Sequence[SampleRow]
) -> list[str]:
    """Sentences for the result's ``warnings``."""
    is_joint = release.coupling == "joint"
    # With the statistics of the batch the stored ones play no part.
    unused = isinstance(release, JointRelease) and release.mixes_samples
    notes = [note for note in checkpoint.notes if not (unused and note.endswith(STORED_STATISTICS))]
    warnings = [*samples.notes, *notes, *_scale_warning(samples), *target_notes(samples.targets)]
    warnings += _model_notes(checkpoint.model, release, samples)
    if isinstance(release, LocalTrainingRelease):
        warnings += release.training.size_notes(release.samples_per_client(len(samples)))
    if checkpoint.assumed is not None:
        warnings.append(
            f"the architecture {checkpoint.architecture} was recognised from the weights, which don't show all of it "
            f"(assumed: {checkpoint.assumed}); `arch` names it"
        )
    noise = release.noise
    if noise is not None and noise.law == "laplace":
        warnings.append(
            f"Laplace noise: the posterior uses Gaussian noise of the same Fisher information (std {noise.fisher_std:g}"
            f" per entry, less than the noise's own {noise.std:g}), which favours the attacker"
        )
    if settings.dtype == "float32" and (noise.fisher_std if noise else settings.reference_noise) < 1e-2:
        warnings.append("float32 rounding can matter at this little noise; `dtype=mixed` measures it")
    failed = sum(row.status == "failed" for row in rows)
    if failed:
        warnings.append(f"{failed} of {len(rows)} samples could not be audited; their rows say why")
    headline = headline_of(settings.attacker if is_joint else None)
    bracketed = sum(row.proxies[headline].status == "bracketed" for row in rows)
    if bracketed:
        warnings.append(
            f"the revealed fraction of {bracketed} of {len(rows)} samples is an interval; verdicts and limits use its "
            "upper end (`precision` narrows it, `solver=dense` is exact)"
        )
    unassessed = sum(not row.proxies[headline].assessed for row in rows) - failed
    if unassessed:
        more = "; more `budget` may tell" if settings.budget is not None else ""
        warnings.append(f"{unassessed} of {len(rows)} samples have no revealed fraction: not assessed, not safe{more}")
    if is_joint and settings.calibration is not None and settings.attacker == "informed":
        warnings.append(
            "the calibration is of attacks that know no other sample of an upload: it gives intervals to the "
            "outsider's numbers alone, and verdicts, limits and success probabilities go by the informed attacker's, "
            "which are as predicted (`attacker=outsider` lets them go by the calibrated ones)"
        )
    return [*warnings, *_duplicate_warning(samples, rows if is_joint else [])]


def _model_notes(model: nn.Module, release: Release, samples: Samples) -> list[str]:
    """What of the model doesn't act as in training, or isn't sent."""
    notes = []
    dropout = [name for name, layer in model.named_modules() if _drops(layer)]
    if dropout:
        notes.append(
            f"{len(dropout)} dropout layers (first: {dropout[0] or 'the model'}) are audited as absent; in training "
            "they are redrawn for every batch"
        )
    notes += [_draw_note(layer) for layer in gaussian_draws(model)]
    sizes = [(value.numel(), value.requires_grad) for value in model.parameters()]
    total, sent = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
    text = text_model(model)
    # Tokens reach the word embedding, of which J sees nothing.
    reached = set() if text is None else {id(value) for value in text.word_embedding.parameters()}
    apart = {name for name, value in release.model.named_parameters() if id(value) in reached}
    apart |= {name for name, value in model.named_parameters() if id(value) in reached}
    unused = sum(release.parameters[name].numel() for name in _unused(release, samples) - apart)
    if sent - unused < total:
        others = [*(["frozen"] if sent < total else []), *([f"unused ({unused:,} without gradient)"] if unused else [])]
        notes.append(f"{sent - unused:,} of {total:,} parameters are sent: the others are {' or '.join(others)}")
    return notes


def _draw_note(layer: GaussianDraw) -> str:
    """That a bottleneck's noise isn't drawn as in training."""
    taken = (
        f"takes {1 + len(layer.others)} draws of its noise, each for all samples (numbers {layer.draw} to "
        f"{layer.others[-1]}), and of every number the riskiest draw's stands (`over_draws` has the spread): in "
        "training it is redrawn in every pass, and another draw may be riskier still"
        if layer.others
        else f"takes one draw of its noise for all samples (number {layer.draw}), which in training is redrawn in "
        "every pass: every number is conditional on it (`model_defense` takes another, or several)"
    )
    return (
        f"the variational bottleneck {taken}; its divergence is part of the audited loss with a weight of "
        f"{layer.weight:g}"
    )


def _unused(release: Release, samples: Samples) -> set[str]:
    """Names of trainable parameters that no gradient of the first samples reaches."""
    unused = set(release.parameters)
    # Batch norm with the statistics of the batch takes no sample alone.
    size = 2 if isinstance(release, JointRelease) and release.mixes_samples else 1
    for place in range(min(len(samples) + 1 - size, TRIED)):
        inputs = samples.inputs[place : place + size].to(device=release.device, dtype=release.dtype)
        targets = samples.targets[place : place + size].to(release.device)
        parameters = {name: value.detach().clone().requires_grad_() for name, value in release.parameters.items()}
        with torch.enable_grad():
            loss = release.loss(release.run(parameters, inputs), targets)
        gradients = torch.autograd.grad(loss.sum(), list(parameters.values()), allow_unused=True)
        unused -= {name for name, one in zip(parameters, gradients, strict=True) if one is not None}
        if not unused:
            break
    return unused


def _drops(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0


def unaudited_note(num_unaudited: int, total: int) -> list[str]:
    """That a result is of a run that isn't complete."""
    if not num_unaudited:
        return []
    return [
        f"{num_unaudited} of {total} samples were not audited, since the run isn't complete: not assessed, not safe, "
        "and no noise is recommended"
    ]


def separate_note(separate: int, total: int) -> list[str]:
    """That a batch is another function than its samples, where it is."""
    if not separate:
        return []
    return [
        f"the loss or gradient of a sample depends on the other samples of its batch, so {separate} of {total} samples "
        "were audited one at a time: the numbers are of releases of single samples, not of a batch's mean gradient"
    ]


def concentration_notes(
    rows: Sequence[SampleRow], uneven: Mapping[int, Concentration], thresholds: Thresholds, headline: str = HEADLINE
) -> list[str]:
    """That a mean over coordinates hides some that are revealed whole.

    Args:
        rows: of all samples.
        uneven: by position in the data.
        thresholds: what counts as low, and of a coordinate as high.
        headline: id of the revealed fraction that verdicts go by.
    """
    whole, means = list[float](), list[tuple[Concentration, float]]()
    for place, row in enumerate(rows if uneven else ()):
        if place not in uneven or not row.proxies[headline].assessed:
            continue
        one, upper = uneven[place], _upper(row, headline)
        is_low = (row.verdict == "low" or row.concentration > 1) and upper < thresholds.medium
        if is_low and one.largest is not None and one.largest > thresholds.high:
            whole.append(one.largest)
        means.append((one, min(1.0, one.factor * upper)))
    words = "verdicts and limits go by that mean, while revealed fractions are means over all"
    notes = reached_note(means, len(rows), words)
    if whole:
        notes.append(
            f"in {len(whole)} of {len(rows)} samples whose revealed fraction is low single coordinates are revealed by "
            f"up to {max(whole):.2g} of their variance: the revealed fraction is a mean over all coordinates"
        )
    return notes


def _upper(row: SampleRow, headline: str) -> float:
    estimate = row.proxies[headline]
    end = estimate.value if estimate.high is None else estimate.high
    return 1.0 if end is None else end


def loss_note(shares: Tensor | None, name: str) -> list[str]:
    """That a loss over a batch isn't the mean of its samples' losses, where it isn't.

    Args:
        shares: of the samples in the batch's loss, [B]; None where they have none.
        name: of the loss.
    """
    if shares is None:
        what = "isn't made of its samples' losses by constant factors"
    elif float((shares * len(shares) - 1).abs().max()) > TOLERANCE:
        least, most = float(shares.min()) * len(shares), float(shares.max()) * len(shares)
        what = f"weights its samples {least:.3g} to {most:.3g} times as much as their mean does"
    else:
        return []
    return [
        f"over a batch the loss {name} {what}: the numbers are of releases of single samples, not of their parts in "
        "a batch's gradient (the guard reviews those, where there are such parts)"
    ]


def _scale_warning(samples: Samples) -> list[str]:
    """Tables of columns in different units don't fit one prior for all coordinates."""
    if samples.inputs.ndim != 2 or len(samples) < 2:
        return []
    spread = samples.inputs.std(dim=0)
    spread = spread[spread > 0]
    if len(spread) < 2 or float(spread.max() / spread.min()) < MAX_SCALE_RATIO:
        return []
    return [
        f"the columns' standard deviations differ by a factor of {float(spread.max() / spread.min()):.3g}, but the "
        "prior and every error treat all input coordinates alike; bring the columns to one scale before the audit"
    ]


def _duplicate_warning(samples: Samples, rows: Sequence[SampleRow]) -> list[str]:
    """Copies reveal more of their one input than each row says once they share a batch, and weigh on every average.

    Args:
        samples: all of them.
        rows: theirs, where several samples leave together.
    """
    groups: dict[int, list[str]] = {}
    for identifier, label in zip(samples.ids, duplicate_labels(samples.inputs, samples.ids), strict=True):
        groups.setdefault(label, []).append(identifier)
    copies = [each for each in groups.values() if len(each) > 1]
    count, compared = sum(map(len, copies)), num_compared(samples.inputs)
    only = f"only the first {compared} of {len(samples)} samples were compared for views and near-copies"
    if not copies:
        return [f"{only}; no other two are equal"] if compared < len(samples) else []
    which = "; ".join(" = ".join(each) for each in copies) if count <= MAX_NAMED else f"{len(copies)} groups"
    consequence = (
        _copies_in_uploads(copies, rows)
        if rows
        else "in one batch they reveal more than their rows say, since rows are of single samples"
    )
    text = (
        f"{count} of {len(samples)} samples are copies or views of another one ({which}): {consequence}, and averages "
        "count them all"
    )
    return [f"{text}; {only}" if compared < len(samples) else text]


def _copies_in_uploads(copies: Sequence[Sequence[str]], rows: Sequence[SampleRow]) -> str:
    """What copies do to the numbers of uploads, where equal inputs are one unknown, and views of one are several."""
    wanted = {sample for group in copies for sample in group}
    row_of = {row.id: row for row in rows if row.id in wanted}
    together, views = 0, 0
    for group in copies:
        members = [row_of[sample] for sample in group if sample in row_of]
        shared = Counter(row.upload for row in members)
        if len(shared) == len(members):
            continue
        together += 1
        views += any(row.copies < shared[row.upload] for row in members)
    if not together:
        return "none of them share an upload, and what their uploads reveal adds up"
    text = (
        f"{together} of {len(copies)} groups share an upload, whose equal inputs count as one, by attackers who are "
        "taken to know which they are: each has the numbers of all its copies together"
    )
    if not views:
        return text
    return (
        f"{text}; {views} of them hold views or near-copies, which count as independent samples, so that to whoever "
        "guesses that they are of one input they reveal more than their rows say, k of them up to as much as one at a "
        "k-th of the noise: leave them out"
    )
