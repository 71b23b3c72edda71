"""What was declared of an upload, as far as a test can hold it to that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from riskaudit.errors import ReleaseError, SettingsError
from riskaudit.release import Noise, ReleaseSpec
from riskaudit.release.noise import SCALES
from riskaudit.release.steps.clip import Clip
from riskaudit.results.attestation import DeclarationInfo


@dataclass(frozen=True)
class Declaration:
    """The release that an upload is said to be of, and what was said of its privacy besides.

    Attributes:
        text: of the release, as it was given or written out.
        spec: the release; of one that clips after its noise, the steps without the noise.
        batch_size: samples over which the upload is a mean, where the release doesn't say.
        sensitivity: that the noise was computed for: 2-norm by which one sample changes the upload.
        noise_multiplier: std of the noise over the sensitivity, as accountants take it.
        misplaced: noise that a clip follows, so that its law on the upload is unknown.
        outer_bound: of that clip, which bounds what leaves, noise included.
        loss: that the upload is a gradient of, where that is declared.
    """

    text: str
    spec: ReleaseSpec
    batch_size: int | None = None
    sensitivity: float | None = None
    noise_multiplier: float | None = None
    misplaced: Noise | None = None
    outer_bound: float | None = None
    loss: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "sensitivity", "noise_multiplier"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"expected a finite number above 0 for `{name}`, found {value}")

    @classmethod
    def parse(
        cls,
        text: str | ReleaseSpec,
        *,
        batch_size: int | None = None,
        sensitivity: float | None = None,
        noise_multiplier: float | None = None,
        loss: str | None = None,
    ) -> Self:
        """Read a release such as ``"clip:1,gaussian:0.01"``, with clips after the noise too.

        Raises:
            ReleaseError: it can't be read.
            SettingsError: a number that isn't positive.
        """
        given = (text, None, None) if isinstance(text, ReleaseSpec) else _parsed(text)
        spec, misplaced, outer_bound = given
        return cls(str(text), spec, batch_size, sensitivity, noise_multiplier, misplaced, outer_bound, loss)

    @property
    def noise(self) -> Noise | None:
        """On every entry of what leaves; None without, or where its law isn't known."""
        return self.spec.noise

    @property
    def bound(self) -> float | None:
        """Largest 2-norm of what leaves before noise: means, masks and pruning make no vector longer."""
        return self.outer_bound if self.misplaced is not None else _bound(self.spec)

    @property
    def num_samples(self) -> int | None:
        """Over how many samples the upload is a mean; None where nobody says."""
        mean = self.spec.mean
        return self.batch_size if mean is None or mean.samples is None else mean.samples

    @property
    def num_parts(self) -> int | None:
        """Over how many clipped vectors the upload is a mean."""
        clipped_upload = self.spec.training is not None or self._clips_uploads()
        num_samples = 1 if clipped_upload else self.num_samples
        return None if num_samples is None else num_samples * self.spec.num_clients

    def info(self) -> DeclarationInfo:
        """For the result."""
        return DeclarationInfo(
            release=self.text,
            clip_norm=self.bound,
            noise_law=None if self.noise is None else self.noise.law,
            noise_std=None if self.noise is None else self.noise.std,
            num_samples=self.num_samples,
            sensitivity=self.sensitivity,
            noise_multiplier=self.noise_multiplier,
            loss=self.loss,
        )

    def _clips_uploads(self) -> bool:
        """Whether the tightest clip is of an upload, after a mean over samples."""
        mean = self.spec.mean
        if mean is None or self.bound is None:
            return False
        before = self.spec.steps[: self.spec.steps.index(mean)]
        return not any(isinstance(step, Clip) for step in before)


def _bound(spec: ReleaseSpec) -> float | None:
    return min((step.bound for step in spec.all_steps if isinstance(step, Clip)), default=None)


def _parsed(text: str) -> tuple[ReleaseSpec, Noise | None, float | None]:
    """A release; of one with a clip after its noise, the release without it, the noise, and the bound of that clip."""
    try:
        return ReleaseSpec.parse(text), None, None
    except ReleaseError:
        parts = [part.strip() for part in text.split(",")]
        first = next((index for index, part in enumerate(parts) if _is_noise(part)), None)
        if first is None or not _is_clip_after(parts[first + 1 :]):
            raise
        noise, after = ReleaseSpec.parse(parts[first]).noise, ReleaseSpec.parse(",".join(parts[first + 1 :]))
        return ReleaseSpec.parse(",".join([*parts[:first], *parts[first + 1 :]])), noise, _bound(after)


def _is_noise(part: str) -> bool:
    return part.partition(":")[0] in SCALES


def _is_clip_after(parts: Sequence[str]) -> bool:
    names = [part.partition(":")[0] for part in parts]
    return Clip.name in names and not {"mean", "secagg", *SCALES} & set(names)
