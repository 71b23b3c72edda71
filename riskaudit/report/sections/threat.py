"""Section 2: who the attacker is, what they know, and what this audit does not cover."""

from __future__ import annotations

from dataclasses import dataclass

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Bullets, Callout, Cell, DefinitionList, Section, Table
from riskaudit.formatting import count, given, number, sentence, short, target_text
from riskaudit.release.training import LOCAL
from riskaudit.report.sections.schemes import Scheme, attackers_table, uploads_table
from riskaudit.results import PriorInfo
from riskaudit.results.facts import Facts
from riskaudit.studies.verify.section import AttackStudy, read_attack_study

_OUT_OF_SCOPE = (
    "An attacker who changes the model or its weights to make uploads tell more.",
    "Several uploads of the same sample: what each gives away adds up.",
    "An attacker with better prior knowledge than stated above. Real images are neither independent pixels nor "
    "Gaussian, so an isotropic prior is weaker than real knowledge of images, any Gaussian one may be, and the true "
    "risk can be higher.",
    "Other questions than reconstruction, such as whether a person was in the data (membership) or which traits they "
    "have (attributes).",
)
_FIRST_ORDER = "Effects beyond first order: the numbers linearise the release at {each}."
_SEVERAL_STEPS = "Several local steps between uploads: only the release named here was audited."
_RUNNING_STATISTICS = (
    "Running statistics of batch norm that are sent beside the weights: they hold the mean and the variance of the "
    "batches as they are. Keep them back, or have them reviewed."
)


def threat_section(facts: Facts) -> Section:
    """The threat-model card."""
    model, release = facts.result.threat_model, facts.result.release
    study = read_attack_study(facts)
    study = study if study is not None and study.record.attacks else None
    diagnostic = model.evaluation == "diagnostic"
    reason = f" {sentence(model.reason)}" if model.reason else ""
    label = (
        "Diagnostic: the audited release differs from what a client computes."
        if diagnostic
        else "Deployment: the audited release is what a client computes."
    )
    blocks: list[Block] = [
        Callout(title=label + reason, tone="medium" if diagnostic else "plain"),
        _knowledge(facts, study),
        DefinitionList(
            (
                ("The attacker", _attacker_words(facts)),
                ("What leaves the client", f"{short(release.spec, 80)}: {', '.join(release.steps)}."),
                *Scheme(facts).cards(),
                ("Noise", _noise_words(facts)),
                ("Samples are audited", _coupling_words(facts)),
            )
        ),
    ]
    if facts.is_joint:
        blocks += [attackers_table(facts), uploads_table(facts)]
    first_order = _FIRST_ORDER.format(each="each upload" if facts.is_joint else "each sample")
    scope = [*_OUT_OF_SCOPE, f"{first_order} {_checked(study)}"]
    scope += [] if LOCAL in release.steps else [_SEVERAL_STEPS]
    scope += [_RUNNING_STATISTICS] if release.batch_norm == "batch" else []
    blocks.append(Bullets(tuple(scope), lead="Out of scope. This audit says nothing about:"))
    return Section("threat-model", "Threat model", tuple(blocks))


def _attacker_words(facts: Facts) -> str:
    if not facts.is_joint:
        return "sees one upload of one client and tries to recover the private input behind it."
    clients = Scheme(facts).num_clients
    whose = "one client" if clients == 1 else f"{count(clients, 'client')} together"
    return f"sees one upload of {whose} and tries to recover the private inputs behind it."


def _coupling_words(facts: Facts) -> str:
    if not facts.is_joint:
        return "one by one: the release of one sample does not depend on the others."
    scheme = Scheme(facts)
    return (
        f"together, {count(scheme.upload_size, 'sample')} to an upload ({count(len(scheme.uploads), 'upload')}): an "
        "upload is one function of all its samples, and each sample's numbers are those of its part."
    )


def _checked(study: AttackStudy | None) -> str:
    """Whether anything holds the first order against reality."""
    if study is None:
        return "No attack was run to check them."
    if study.record.control.status == "failed":
        return "The attacks of section 6 are broken, so nothing checks them."
    return "Section 6 holds them against attacks on the release itself."


def _noise_words(facts: Facts) -> str:
    release = facts.result.release
    if release.defended and release.noise:
        law = release.noise.law
        extra = (
            " The numbers rest on second moments. Laplace noise carries twice the Fisher information of Gaussian noise "
            "of the same standard deviation, so treat intervals with care."
            if law == "laplace"
            else ""
        )
        return f"{law}, standard deviation {given(release.noise.std)} on every released entry.{extra}"
    if facts.noise_std:
        return (
            f"none. Samples are ranked at a reference noise of standard deviation {given(facts.noise_std)} "
            "per entry, which the client does not add."
        )
    return "none."


@dataclass(frozen=True)
class _Known:
    """One thing that the predictions take as known or not, and whether the attacks of section 6 know it."""

    name: str
    known: bool
    attacked: bool | None
    meaning: str
    detail: str = ""

    @property
    def difference(self) -> str:
        if self.attacked is None or self.attacked == self.known:
            return ""
        return f"attacks of section 6: {'yes' if self.attacked else 'no'}"


_KNOWLEDGE_COLUMNS: tables.Columns[_Known] = (
    tables.text("Knowledge", lambda row: row.name),
    tables.column("Known", lambda row: Cell("yes" if row.known else "no", detail=row.difference), numeric=False),
    tables.column("Meaning", lambda row: Cell(row.meaning, detail=row.detail), numeric=False),
)


def _prior_kind(prior: PriorInfo) -> str:
    """The kind in words; one that this version doesn't know stays as it is."""
    return {
        "isotropic": "isotropic (independent pixels)",
        "data": "data (one Gaussian with the correlations of images)",
        "class": "class (a Gaussian with correlations per class, the label being known)",
        "vocabulary": "vocabulary (at every position, mean and covariance of what its tokens are embedded as)",
    }.get(prior.kind, short(prior.kind))


def _prior_origin(prior: PriorInfo) -> str:
    if prior.num_images is None:
        return ""
    source = f" of {short(prior.source)}" if prior.source else ""
    what = "token" if prior.kind == "vocabulary" else "sample"
    return f"; fitted to {count(prior.num_images, what)}{source}"


def _fallback_words(facts: Facts) -> str:
    names, fallback = facts.result.data.class_names, facts.result.prior.fallback_classes
    if not fallback:
        return ""
    return (
        f"too few samples of {count(len(fallback), 'class', 'classes')} for a prior of their own "
        f"({', '.join(target_text(target, names) for target in fallback)}): all classes together instead"
    )


def _knowledge(facts: Facts, study: AttackStudy | None) -> Table:
    model, prior = facts.result.threat_model, facts.result.prior
    attacks = study.record.knowledge if study is not None else None
    rows = [
        _Known("Model weights", model.weights_known, None, "the server sends them out, so it has them"),
        _Known(
            "Labels",
            model.labels_known,
            attacks.labels_known if attacks else None,
            f"often readable from the {'upload' if facts.is_joint else 'gradient'} of the last layer",
        ),
        _rest_of_batch(facts, attacks.rest_of_batch_known if attacks else None),
    ]
    if LOCAL in facts.result.release.steps:
        meaning = "learning rate, optimizer, mini-batches and their order; whoever runs the federation sets them"
        rows.append(_Known("Settings of the training", True, None, meaning))
    if attacks is not None:
        statistics, span = attacks.batch_norm_statistics_known, attacks.input_range_known
        others = "; those of the batch don't" if facts.result.release.batch_norm == "batch" else ""
        rows += [
            _Known(
                "Batch-norm statistics", statistics, None, f"running means and variances come with the model{others}"
            ),
            _Known("Range of the inputs", span, None, "used by the attacks only; no prediction rests on it"),
        ]
    knowledge = (
        f"{_prior_kind(prior)}: mean {number(prior.mean)}, standard deviation {number(prior.std)} per coordinate, "
        f"in data units{_prior_origin(prior)}"
    )
    rows.append(_Known("Prior on the input", True, None, knowledge, _fallback_words(facts)))
    return tables.table("knowledge", "What the attacker is taken to know", rows, _KNOWLEDGE_COLUMNS)


def _rest_of_batch(facts: Facts, attacked: bool | None) -> _Known:
    known = facts.result.threat_model.rest_of_batch_known
    if not facts.is_joint:
        return _Known("Rest of the batch", known, attacked, "worst case: all other gradients can be subtracted")
    meaning = (
        "worst case: their part in the upload can be worked out; the numbers of an attacker without them stand beside"
        if known
        else "the numbers of an attacker who knows them stand beside, and are riskier"
    )
    return _Known("Other samples of the upload", known, attacked, meaning)
