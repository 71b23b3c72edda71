"""``ats:POLICY[:SEED]``: the client trains on transformed images T(x) instead of x (ATS). Loads without torch.

Gao et al., CVPR 2021. A policy ``i-j-k`` applies entries i, j, k of their library in this order, after a random crop
and a random flip; ``a+b`` draws one of two policies for every image. What leaves is a function of T(x), which is all
that an attacker can hope for; errors are against T(x), and beside them against x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self, TypeAlias, final

from riskaudit.errors import ReleaseError
from riskaudit.formatting import count
from riskaudit.release.arguments import read_seed

ATS = "ats"
Operation: TypeAlias = Literal["translate-x", "translate-y", "sharpness", "brightness"]


@dataclass(frozen=True)
class Entry:
    """One entry of the library.

    Attributes:
        operation: of an image; its direction is drawn for each image.
        magnitude: a share of the image's size for translations, else how far the factor is from 1.
    """

    operation: Operation
    magnitude: float


def _step(index: int, most: float) -> float:
    """One of ten magnitudes between 0 and the largest."""
    return most * index / 9


# Those entries of the authors' 50 that the published policies consist of. The probabilities beside them in their list
# have no effect in their code, which applies every entry of a policy to every image; so does this one.
LIBRARY: dict[int, Entry] = {
    3: Entry("translate-x", _step(9, 150 / 331)),
    4: Entry("sharpness", _step(1, 0.5)),
    7: Entry("translate-y", _step(2, 150 / 331)),
    13: Entry("brightness", _step(5, 0.5)),
    15: Entry("brightness", _step(9, 0.5)),
    21: Entry("translate-x", _step(5, 150 / 331)),
}


@final
@dataclass(frozen=True)
class Transformation:
    """A choice of policies, one of which is drawn for each image.

    Attributes:
        policies: numbers of entries in the order in which they are applied, one tuple for each policy.
        seed: of all draws.
    """

    policies: tuple[tuple[int, ...], ...]
    seed: int = 0

    @classmethod
    def parse(cls, values: list[str]) -> Self:
        """Read what follows the name.

        Raises:
            ReleaseError: no policy of known entries, or no seed.
        """
        if len(values) not in (1, 2):
            found = count(len(values), "value")
            raise ReleaseError(
                f"expected {ATS}:POLICY[:SEED], found {found} after the name; write it like {ATS}:7-4-15"
            )
        policies = tuple(_policy(text) for text in values[0].split("+"))
        seed = read_seed(values[1]) if len(values) == 2 else 0
        if seed is None:
            raise ReleaseError(
                f"expected {ATS}:POLICY[:SEED] with a whole number as SEED, found {values[1]!r}; leave it out for 0"
            )
        return cls(policies, seed)

    @property
    def policy(self) -> str:
        """As ``ats`` takes it, without the seed."""
        return "+".join("-".join(map(str, entries)) for entries in self.policies)

    def __str__(self) -> str:
        return f"{ATS}:{self.policy}:{self.seed}"


def usages() -> dict[str, str]:
    """How it is written in ``release``, and what it does."""
    known = ", ".join(map(str, LIBRARY))
    return {f"{ATS}:POLICY[:SEED]": f"train on transformed images (first): i-j-k of entries {known}; a+b draws one"}


def _policy(text: str) -> tuple[int, ...]:
    numbers = tuple(-1 if (number := read_seed(part)) is None else number for part in text.split("-"))
    if not set(numbers) <= set(LIBRARY):
        raise ReleaseError(
            f"expected a policy such as 7-4-15 of the entries {', '.join(map(str, LIBRARY))}, found {text!r}; make one "
            "of these, or let riskaudit ats search name one"
        )
    return numbers
