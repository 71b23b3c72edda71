"""The attacker's prior as ``prior`` names it: two numbers, fitted to the audited data, or read from a file."""

from __future__ import annotations

from dataclasses import dataclass

from riskaudit.audit.settings import PRIOR_NAMES, AuditSettings
from riskaudit.errors import PriorError, SettingsError
from riskaudit.inputs import Samples
from riskaudit.inputs.huggingface.tokens import Tokens
from riskaudit.inputs.text import shape_text
from riskaudit.priors import (
    ClassPrior,
    GaussianPrior,
    IsotropicPrior,
    Prior,
    VocabularyPrior,
    fit_prior,
    load_prior,
)
from riskaudit.priors.fitting import odd_note, odd_samples, tight_note
from riskaudit.results import PriorInfo


@dataclass(frozen=True)
class ChosenPrior:
    """A prior with what the result says of it."""

    prior: Prior
    info: PriorInfo
    warnings: tuple[str, ...] = ()


def choose_prior(settings: AuditSettings, samples: Samples) -> ChosenPrior:
    """The prior of an audit.

    Raises:
        PriorError: the file can't be used, or the data can't provide the prior.
        SettingsError: the isotropic prior's numbers are out of range.
    """
    name = settings.prior_of(is_text=samples.tokens is not None)
    if samples.tokens is not None:
        return _of_texts(name, settings, samples, samples.tokens)
    if name == "vocabulary":
        raise SettingsError(
            f"`prior=vocabulary` is of texts, but {samples.name} holds none; use isotropic, data, class or a file"
        )
    if name == "isotropic":
        isotropic = IsotropicPrior.fit(samples.inputs, settings.prior_mean, settings.prior_std)
        odd = odd_samples(isotropic, samples.inputs, samples.targets, "leave out `prior_mean` and `prior_std`")
        notes = [*tight_note(isotropic, samples.inputs, samples.targets), *odd_note(samples.ids, odd)]
        return ChosenPrior(isotropic, isotropic.info(), tuple(notes))
    warnings = []
    if name in PRIOR_NAMES:
        prior = fit_prior(samples, name)
        warnings.append(
            f"the {name} prior was fitted to the audited samples themselves, without leaving any out, so it "
            "knows them better than an attacker would; `prior=FILE` takes one that riskaudit prior fit made of others"
        )
    else:
        prior = load_prior(name)
        _check_shape(prior, samples, name)
    advice = "fit the prior to data like the audited, in the same units, or use `prior=isotropic`"
    warnings += tight_note(prior, samples.inputs, samples.targets)
    warnings += odd_note(samples.ids, odd_samples(prior, samples.inputs, samples.targets, advice))
    info = prior.info()
    if isinstance(prior, ClassPrior):
        fallback = prior.fallback_classes(samples.targets)
        info = info.model_copy(update={"fallback_classes": fallback})
        if fallback:
            warnings.append(
                f"the prior knew too few images of {len(fallback)} of the audited classes "
                f"({', '.join(map(str, fallback))}): their samples get what it says of all classes together"
            )
    return ChosenPrior(prior, info, tuple(warnings))


def _of_texts(name: str, settings: AuditSettings, samples: Samples, tokens: Tokens) -> ChosenPrior:
    """Of embedded texts: the vocabulary's moments at every position, or two numbers of them."""
    if name not in ("vocabulary", "isotropic"):
        raise SettingsError(
            f"`prior={name}` takes inputs of one shape, but texts have as many positions as tokens; use vocabulary or "
            "isotropic"
        )
    fitted = VocabularyPrior.fit(tokens.vocabulary, tokens.model)
    if name == "vocabulary":
        return ChosenPrior(fitted, fitted.info())
    own = fitted.info()
    mean = own.mean if settings.prior_mean is None else settings.prior_mean
    prior = VocabularyPrior.alike(fitted, mean, own.std if settings.prior_std is None else settings.prior_std)
    return ChosenPrior(prior, prior.info().model_copy(update={"kind": "isotropic"}))


def _check_shape(prior: Prior, samples: Samples, file: str) -> None:
    expected = tuple(samples.inputs.shape[1:])
    if isinstance(prior, GaussianPrior | ClassPrior) and prior.input_shape != expected:
        raise PriorError(
            f"expected a prior for inputs of shape {shape_text(expected)}, as in {samples.name}, found one for "
            f"{shape_text(prior.input_shape)} in {file}; fit it to data like the audited"
        )
