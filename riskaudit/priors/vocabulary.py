"""What an attacker expects of embedded texts: at every position any token of the vocabulary, each as likely.

Mean m and covariance S of the vocabulary's embedding rows [V, E] are those of every position, and positions are
independent of each other (docs/theory.md, section 9): C = I kron S, L = I kron S^(1/2). Beyond a text's end there is
nothing to expect: mean and root are zero there, so that an attacker is taken to know how long a text is, and traces
count real positions only. Not valid beyond second moments: an embedded token is one of V points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.errors import PriorError
from riskaudit.priors.base import Apply, BoundPrior, Prior
from riskaudit.priors.gaussian import GaussianPrior, Origin, described
from riskaudit.results import PriorInfo

# Least variance in any direction, relative to the mean variance: less is rounding, and would make the inverse root so.
SMALLEST_VARIANCE = 1e-9
_ROWS = 8192


@final
@dataclass(frozen=True, eq=False)
class VocabularyPrior(Prior):
    """The same Gaussian at every position.

    Attributes:
        token: of one embedded token, [E].
    """

    token: GaussianPrior

    kind: ClassVar[str] = "vocabulary"

    @classmethod
    def fit(cls, vocabulary: Tensor, source: str | None = None) -> VocabularyPrior:
        """Moments of the rows of an embedding [V, E].

        Raises:
            PriorError: fewer than two different rows.
        """
        count, width = vocabulary.shape
        mean = torch.zeros(width, dtype=torch.float64)
        for rows in torch.split(vocabulary, _ROWS):
            mean += rows.double().sum(0)
        mean /= count
        covariance = torch.zeros(width, width, dtype=torch.float64)
        for rows in torch.split(vocabulary, _ROWS):
            centred = rows.double() - mean
            covariance += centred.mT @ centred
        covariance /= count
        spread = float(covariance.trace()) / width
        if not spread > 0:
            raise PriorError("expected an embedding with different rows to fit a prior to, found one row only")
        values, vectors = torch.linalg.eigh(covariance)
        floor = SMALLEST_VARIANCE * spread
        remainder = max(float(values[0]), floor)
        above = values > remainder
        return cls(
            GaussianPrior(
                mean=mean,
                components=vectors[:, above].contiguous(),
                variances=values[above] - remainder,
                remainder=remainder,
                input_shape=(width,),
                origin=Origin(source, None, count),
            )
        )

    @classmethod
    def alike(cls, fitted: VocabularyPrior, mean: float, std: float) -> VocabularyPrior:
        """One mean and one standard deviation for all coordinates of a token."""
        width = fitted.token.dimension
        empty = torch.zeros(width, 0, dtype=torch.float64)
        shape, origin = fitted.token.input_shape, fitted.token.origin
        means = torch.full((width,), mean, dtype=torch.float64)
        return cls(GaussianPrior(means, empty, empty.new_empty(0), std * std, shape, origin))

    @override
    def bind(self, targets: Tensor, like: Tensor, lengths: Tensor | None = None) -> BoundPrior:
        return _bound(self.token, len(targets), like, lengths)

    @override
    def info(self) -> PriorInfo:
        return described(self.kind, float(self.token.mean.mean()), self.token.variance, self.token.origin)


def _bound(token: GaussianPrior, count: int, like: Tensor, lengths: Tensor | None) -> BoundPrior:
    """At B samples of ``like``'s shape [B, T E], whose texts have so many tokens [B] (all T if not given)."""
    width = token.dimension
    positions = like.shape[1] // width
    components, anchor = token.components.to(like), like.new_empty(0, like.shape[1])
    real = None
    if lengths is not None and bool((lengths < positions).any()):
        places = torch.arange(positions, device=like.device)
        real = (places < lengths.to(like.device)[:, None]).to(like)[..., None]

    def applied(power: float) -> Apply:
        rest: float = token.remainder**power
        gain = ((token.variances + token.remainder) ** power - rest).to(components)

        def apply(vector: Tensor) -> Tensor:
            rows = vector.reshape(len(vector), positions, width)
            rows = rest * rows + ((rows @ components) * gain) @ components.mT
            return (rows if real is None else rows * real).reshape(vector.shape)

        return apply

    def select(indices: list[int]) -> BoundPrior:
        return _bound(token, len(indices), anchor, None if lengths is None else lengths[indices])

    def leading(index: int, most: int) -> tuple[list[float], Tensor]:
        """Every eigenvector of one token's covariance at every position."""
        length = positions if lengths is None else int(lengths[index])
        values, vectors = token.leading(-(-most // length), like)
        (*own, last), held = values, [*vectors]
        pairs = [(value, row, place) for value, row in zip(own, held, strict=False) for place in range(length)][:most]
        rows = vectors.new_zeros(len(pairs), positions * width)
        for number, (_, row, place) in enumerate(pairs):
            rows[number, place * width : (place + 1) * width] = row
        # No direction that is left out has more than the last one that was taken, or than the next.
        rest = pairs[-1][0] if len(pairs) < len(held) * length and pairs else last
        return [*(value for value, _, _ in pairs), rest], rows

    mean = token.mean.to(like).expand(count, positions, width)
    mean = mean if real is None else mean * real
    share = torch.ones(count, dtype=torch.float64, device=like.device)
    if real is not None:
        share = real.double().mean((1, 2))
    return BoundPrior(
        mean=mean.reshape(count, positions * width),
        root=applied(0.5),
        inverse_root=applied(-0.5),
        variance=token.variance * share,
        largest=torch.full((count,), token.largest, dtype=torch.float64, device=like.device),
        select=select,
        leading=leading,
    )
