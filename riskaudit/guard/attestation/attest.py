"""`attest`: whether what is about to leave is what was declared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from riskaudit.audit.provenance import versions
from riskaudit.errors import SettingsError
from riskaudit.formatting import present_time
from riskaudit.guard.attestation.contract import contract_of, contract_tests, masked_test
from riskaudit.guard.attestation.declaration import Declaration
from riskaudit.guard.attestation.lint import lint
from riskaudit.guard.attestation.noise import (
    equality_test,
    pure_noise_test,
    residual_tests,
    size_test,
    small_entries_test,
    untested_noise,
)
from riskaudit.guard.attestation.norms import noisy_norm_test, norm_test, share_test
from riskaudit.guard.attestation.parts import Part, class_sums, has_mask, parts_of, structure_of
from riskaudit.guard.attestation.subject import Subject
from riskaudit.guard.attestation.untold import limits, remedies
from riskaudit.guard.attestation.vectors import read_vector
from riskaudit.policy import Policy
from riskaudit.release import Noise, ReleaseSpec
from riskaudit.results.attestation import Attestation, AttestationTest, outcome_of
from riskaudit.results.subject import Tool
from riskaudit.version import __version__

FALSE_ALARM = 1e-3
Test = Callable[[float], Sequence[AttestationTest]]


def attest(
    update: object,
    declared: str | ReleaseSpec,
    *,
    received: object = None,
    clean: object = None,
    arch: str | None = None,
    loss: str | None = None,
    batch_size: int | None = None,
    sensitivity: float | None = None,
    noise_multiplier: float | None = None,
    policy: Policy | str | Path | None = None,
    false_alarm: float = FALSE_ALARM,
    command: str | None = None,
) -> Attestation:
    """Hold an upload to what was declared of it: its norm, its noise, and that nothing else is in it.

    Args:
        update: what is about to leave: a file, or tensors by name (or in the order of the parameters).
        declared: the release, as `audit` takes it; its noise is per entry of what leaves.
        received: the model that the update is of, as a file, `Checkpoint`, module, or tensors by name: names, shapes
            and dtypes are compared with its trainable parameters.
        clean: the update before noise, as a file or tensors: with it the noise itself is tested.
        arch: architecture of ``received``, where its weights don't tell.
        loss: "cross-entropy" where the update is made with softmax cross-entropy on the last linear layer, whose
            gradient's sums over classes then are noise alone.
        batch_size: over how many samples the update is a mean, where ``declared`` doesn't say.
        sensitivity: that the noise was computed for, 2-norm.
        noise_multiplier: std of the noise over the sensitivity.
        policy: of the guard, or its file; is looked at for settings that contradict the declaration.
        false_alarm: probability, at most, that an upload which is as declared is refused.
        command: that is recorded in the result.

    Raises:
        RiskauditError: something that can't be read, or settings that make no sense.
    """
    if not 0 < false_alarm < 0.5:
        raise SettingsError(f"expected a number above 0 and below 0.5 for `false_alarm`, found {false_alarm}")
    if loss not in (None, "cross-entropy"):
        raise SettingsError(f"expected `loss` to be cross-entropy, found {loss!r}; leave it out for any other")
    declaration = Declaration.parse(
        declared, batch_size=batch_size, sensitivity=sensitivity, noise_multiplier=noise_multiplier, loss=loss
    )
    rules = Policy.from_file(policy) if isinstance(policy, str | Path) else policy
    contract = None if received is None else contract_of(received, arch)
    subject = Subject.of(read_vector(update, "update"), clean, contract, declaration)
    tests = contract_tests(subject.update, contract, declaration.spec)
    if subject.is_readable:
        tests = [*_tests(subject, false_alarm), *tests]
    else:
        tests = [untested_noise("norm and noise are of finite floating-point numbers, of which it has none"), *tests]
    return Attestation(
        tool=Tool(version=__version__),
        created_at=present_time(),
        command=command,
        versions=versions(),
        update=subject.update.info(),
        declared=declaration.info(),
        received=None if contract is None else contract.file,
        clean=None if subject.clean is None else subject.clean.info(),
        false_alarm=false_alarm,
        outcome=outcome_of(tests),
        tests=tests,
        findings=lint(declaration, tensors=subject.update.tensors if subject.is_readable else None, policy=rules),
        not_told=limits(subject),
        would_tell=remedies(subject, tests),
    )


def _tests(subject: Subject, false_alarm: float) -> list[AttestationTest]:
    """Of norm and noise; the false alarms of all of them together are at most what was asked for."""
    declaration, bound, noise = subject.declaration, subject.declaration.bound, subject.declaration.noise
    exact: list[AttestationTest] = []
    random: list[Test] = []
    chosen = _chosen(subject)
    if chosen is not None and chosen.empty is not None and bool(chosen.empty.any()):
        exact.append(masked_test(subject.update, chosen.empty))
    if noise is None:
        if bound is not None:
            exact.append(norm_test("norm", subject.update.flat(), bound, subject.tolerance))
        if declaration.misplaced is not None:
            exact.append(untested_noise("a clip after the noise leaves it without a known law"))
        elif subject.clean is not None:
            exact.append(equality_test(subject.update.flat(), subject.clean.flat(), subject.tolerance))
    elif subject.clean is not None:
        before = subject.clean.flat()
        if bound is not None:
            exact.append(norm_test("clean-norm", before, bound, subject.tolerance))
    if noise is not None:
        if chosen is None:
            exact.append(untested_noise("the mask's entries are known by the received model alone"))
        else:
            random += (
                _one_vector(subject, noise, chosen) if subject.clean is None else _residual(subject, noise, chosen)
            )
    if noise is not None and not random and chosen is not None:
        exact.append(untested_noise("no entry of it carries noise"))
    return [*exact, *(row for test in random for row in test(false_alarm / len(random)))]


def _chosen(subject: Subject) -> _Chosen | None:
    """Entries that carry noise and those that carry nothing else; None where a mask can't be located."""
    spec = subject.declaration.spec
    if not has_mask(spec):
        return _Chosen(None, None, None)
    if subject.contract is None or not subject.fits_contract():
        return None
    structure = structure_of(subject.contract, spec)
    return _Chosen(structure.noisy, structure.pure, structure.empty)


class _Chosen(NamedTuple):
    """Entries [P] that carry noise, that carry nothing else, and that carry nothing; None for all, none and none."""

    noisy: Tensor | None
    pure: Tensor | None
    empty: Tensor | None


def _residual(subject: Subject, noise: Noise, chosen: _Chosen) -> list[Test]:
    assert subject.clean is not None
    parts = parts_of(subject.update, noise, chosen.noisy, subject.clean)
    if not parts:
        return []
    before = subject.clean.flat()
    before = before if chosen.noisy is None else before[chosen.noisy]

    def share(rate: float) -> Sequence[AttestationTest]:
        test = share_test(parts[-1].values, before, noise, rate)
        if test is None:
            return []
        # Where no norm is declared, nothing is asked that the noise hides.
        hidden = test.status == "could_not_tell" and subject.declaration.bound is None
        return [test.model_copy(update={"status": "not_applicable"}) if hidden else test]

    return [lambda rate: residual_tests(parts, noise, rate), share]


def _one_vector(subject: Subject, noise: Noise, chosen: _Chosen) -> list[Test]:
    """Without the clean update: what can be told from the upload alone."""
    bound, pure = subject.declaration.bound, chosen.pure
    parts = parts_of(subject.update, noise, chosen.noisy)
    if not parts:
        return []
    tests: list[Test] = [
        lambda rate: [size_test(parts, noise, bound, rate)],
        lambda rate: [small_entries_test(parts, noise, bound, rate)],
    ]
    if bound is not None:
        tests.insert(0, lambda rate: [noisy_norm_test(parts[-1], bound, noise, rate)])
    if pure is not None and bool(pure.any()):
        alone = parts_of(subject.update, noise, pure)[-1]
        tests.append(lambda rate: [pure_noise_test("masked-entries", alone, noise, rate, above=True)])
    sums = _class_sums(subject, noise)
    if sums is not None:
        part = sums
        tests.append(lambda rate: [pure_noise_test("class-sums", part, noise, rate, above=False)])
    return tests


def _class_sums(subject: Subject, noise: Noise) -> Part | None:
    declaration, contract = subject.declaration, subject.contract
    # A sum of Laplace noise isn't Laplace noise.
    if declaration.loss is None or contract is None or noise.law != "gaussian" or not subject.fits_contract():
        return None
    return class_sums(subject.update, contract, declaration.spec)
