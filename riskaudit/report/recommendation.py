"""The release that would protect: the audited pipeline with as much noise as its samples need, and how to audit it."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, replace
from functools import cached_property

from riskaudit.errors import ReleaseError
from riskaudit.formatting import ascii_number
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.noise import Noise
from riskaudit.results.facts import Facts


@dataclass(frozen=True)
class Recommendation:
    """What an audit's numbers recommend; None where they recommend nothing."""

    facts: Facts

    @cached_property
    def _limit(self) -> float:
        """The revealed fraction to stay within: the policy's limits, else the verdict "high"."""
        set_by_policy = self.facts.result.policy.limits if self.facts.result.policy else {}
        limits = [set_by_policy[name] for name in ("max_revealed",) if name in set_by_policy]
        if "min_rmse" in set_by_policy:
            limits.append(1 - (set_by_policy["min_rmse"] / self.facts.result.prior.std) ** 2)
        return min(limits, default=self.facts.result.settings.thresholds.high)

    @cached_property
    def std(self) -> str | None:
        """Noise std that brings every sample with a known need to the target and within the limit, rounded up."""
        within = [need.std for need in self.facts.result.noise_needed if need.max_revealed <= self._limit * (1 + 1e-9)]
        if self.facts.result.noise_needed and not within:
            return None  # no noise of this kind meets the limit
        need = max([*self.facts.noise_needed, min(within, default=0.0)], default=0.0)
        return ascii_number(need) if need > 0 else None

    @cached_property
    def release(self) -> str | None:
        """The audited pipeline with the recommended noise in place of its own, where it can be read."""
        if self.std is None:
            return None
        try:
            audited = ReleaseSpec.parse(self.facts.result.release.spec)
        except ReleaseError:  # of another version, or of a file that nobody need have written honestly
            return None
        return str(replace(audited, noise=Noise("gaussian", float(self.std)))).removeprefix("gradient,")

    @cached_property
    def _command_words(self) -> list[str]:
        """The command of this audit; that of a scan where it isn't known or no shell would read it."""
        if self.facts.result.command is not None:
            with contextlib.suppress(ValueError):
                return shlex.split(self.facts.result.command)
        return ["riskaudit", "scan", self.facts.result.checkpoint.name, "--data", self.facts.result.data.name]

    @cached_property
    def option(self) -> tuple[str, str] | None:
        """What asks for the recommended release: verify takes a noise level beside the release."""
        release, noise_std = self.release, self.std
        if release is None or noise_std is None:
            return None
        return ("--noise-std", noise_std) if "verify" in self._command_words[1:2] else ("--release", release)

    @cached_property
    def command(self) -> str | None:
        """The command of this audit with the recommended release, and no other noise."""
        option = self.option
        if option is None:
            return None
        # Studies of the release as it was don't belong into the audit of another.
        words = _without_option(_without_option(self._command_words, option[0]), "--add-to")
        return shlex.join([*words, *option])


def _without_option(words: list[str], option: str) -> list[str]:
    return [
        word
        for place, word in enumerate(words)
        if not (word == option or word.startswith(f"{option}=") or (place > 0 and words[place - 1] == option))
    ]
