"""What an attestation couldn't tell: what would, and what no test of one upload can."""

from __future__ import annotations

from collections.abc import Sequence

from riskaudit.guard.attestation.parts import has_mask, keeps_class_sums
from riskaudit.guard.attestation.subject import Subject
from riskaudit.results.attestation import AttestationTest, outcome_of_claim


def remedies(subject: Subject, tests: Sequence[AttestationTest]) -> list[str]:
    """What to hand over so that norm and noise can be told, the surest first; empty where they were.

    Args:
        subject: that was attested.
        tests: of it.
    """
    undecided = [claim for claim in ("norm", "noise") if outcome_of_claim(tests, claim) == "could_not_tell"]
    noise, bound = subject.declaration.noise, subject.declaration.bound
    if not undecided or noise is None or not subject.is_readable:
        return []
    if has_mask(subject.declaration.spec) and not subject.fits_contract():
        return ["`received`, the model that was received, which shows what the mask keeps"]
    if subject.clean is not None:
        return ["a larger `false_alarm`, since the noise is on few entries or the update is small"]
    given = ["`clean`, the update as it was right before its noise was added"]
    if "noise" not in undecided:
        return given
    if noise.law == "gaussian" and keeps_class_sums(subject.declaration.spec):
        given += _for_class_sums(subject)
    if bound is None:
        given.append("the clip norm in `declared` (clip:C), where the update was clipped and the noise is large")
    return given


def _for_class_sums(subject: Subject) -> list[str]:
    """What the test of sums over classes lacks."""
    contract = subject.contract
    lacking = ["`received`"] if contract is None else []
    lacking += ["`arch`"] if contract is not None and contract.model is None else []
    lacking += ["`loss=cross-entropy`"] if subject.declaration.loss is None else []
    if not lacking or (contract is not None and not subject.fits_contract()):
        return []
    words = " and ".join(lacking)
    return [
        f"{words}, where the update is made with cross-entropy on a last fully connected layer, whose sums over "
        "classes are noise alone"
    ]


def limits(subject: Subject) -> list[str]:
    """What no test of one upload can tell, in the words of what would."""
    declaration, spec = subject.declaration, subject.declaration.spec
    told = ["whether other uploads carry the same noise again; the guard remembers what left"]
    if spec.sample_steps and declaration.bound is not None and declaration.num_parts != 1:
        told.append("whether every sample was clipped before the mean; the guard recomputes it from the batch")
    if subject.contract is None:
        told.append("whether a tensor is in it that may not leave, since no received model was given (`received`)")
    elif subject.contract.doubt is not None:
        told.append(subject.contract.doubt)
    if declaration.noise is not None and subject.clean is None:
        told.append(
            "whether the noise is independent from entry to entry, and whether a tensor whose own entries are large "
            "beside it has any; the update before noise shows it (`clean`)"
        )
    if declaration.bound is None:
        told.append("whether the norm is as declared, since no clip is (clip:C)")
    if subject.update.name and subject.update.sha256 is None:
        told.append("what the serialised file holds besides the tensors; attest the file that is sent")
    return told
