"""How well single tokens of a text are told from others, by what leaves for each: exact differences, no derivative.

An attacker who knows all other tokens of a text, and all other texts of its upload, and tries every token v at position
t sees y = r + n with n normal of std sigma per released entry, and takes the token whose release is nearest. With
D_v = r(v at t) - r, the truth is nearer than v iff 2 n . D_v < ||D_v||^2 (docs/theory.md, section 10), so that

    P(v passes for the truth) = Q(||D_v|| / (2 sigma)),
    1 - sum_v Q(||D_v|| / (2 sigma)) <= success <= 1 - max_v Q(||D_v|| / (2 sigma)),

and success itself is P(max_v 2 n . D_v / ||D_v||^2 < 1), of a normal vector with covariance D D^T. Releases are made of
the tokens themselves, the word embedding's gradient among them, so that nothing is linearised.

Where not every token of the vocabulary can be tried, those are that a sketch of J calls nearest: ||J_t (e_v - e_t)||,
from products J^T u with normal u. Tokens that weren't tried can only be confused more: the upper end holds without
them, the lower one is 0 then.

Not valid for other noise than normal.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from scipy.special import betaincinv, ndtr
from torch import Tensor

from riskaudit.inputs.huggingface.tokens import Tokens
from riskaudit.inputs.texts import with_tokens
from riskaudit.jacobian import Jacobian
from riskaudit.linalg import Interval
from riskaudit.release import Batch
from riskaudit.statistics.recognition import critical_noise
from riskaudit.statistics.seeding import derived_seed

# Released numbers that the tokens tried at all positions of a text may take, and tokens per position at least.
WORK, FEWEST = 4 * 10**9, 16
# Released numbers that are made at once, that differences may take to be kept as they are, and in single precision.
CHUNK_ENTRIES, WHOLE_ENTRIES, SINGLE_ENTRIES = 2**24, 2**26, 2**29
# Columns of differences whose inner products are made together.
COLUMNS = 2**18
# Buckets of the sketch that stands for differences which are too many to be kept.
BUCKETS = 2**15
# Nearest tokens whose joint law is drawn from, at least and at most, the multiplications that decide, and draws.
FEWEST_DRAWN, MOST_DRAWN, DRAWN_WORK, DRAWS = 128, 512, 8 * 10**9, 4000
# Products by which tokens are ranked.
RANKING = 16
# Differences below this many roundings of the release are none.
NEGLIGIBLE = 1e4
# Streams of draws.
RANKING_STREAM, SUCCESS_STREAM, SKETCH_STREAM = 1 << 21, 1 << 22, 1 << 23


def num_candidates(vocabulary: int, length: int, num_entries: int) -> int:
    """Tokens that are tried at each position of a text of so many tokens, besides the truth."""
    return min(vocabulary - 1, max(FEWEST, WORK // (length * num_entries)))


@final
@dataclass(frozen=True, eq=False)
class Confusion:
    """What other tokens at one position of one text do to what leaves.

    Attributes:
        distances: ||D_v|| of the tokens that were tried, ascending, [K]; 0 where nothing changes.
        ratios: of every draw, max_v 2 n . D_v / ||D_v||^2 for n of std 1, over the nearest tokens, ascending [S].
        drawn: number of these.
        untried: number of tokens of the vocabulary that weren't tried.
        sketched: whether inner products are of sketches.
        failure: probability that either end is wrong.
    """

    distances: np.ndarray
    ratios: np.ndarray
    drawn: int
    untried: int
    sketched: bool
    failure: float

    @property
    def tried(self) -> int:
        """Number of tokens besides the truth that were tried."""
        return len(self.distances)

    def recovery(self, sigma: float) -> Interval:
        """Probability that the attacker takes the right token, at noise of std sigma.

        The value counts tokens whose joint law wasn't drawn from as if each passed for the truth independently, the
        lower end by the union bound, the upper one not at all.
        """
        if not self.tried:
            return Interval(1.0, 1.0 if not self.untried else 0.0, 1.0)
        passing = ndtr(-self.distances / (2 * sigma))
        union, rest = float(passing.sum()), float(passing[self.drawn :].sum())
        share, low, high = self._drawn(float(np.mean(self.ratios < 1 / sigma)))
        best = 1 - float(passing.max())
        high = best if self.sketched else min(best, high)
        low = max(0.0, 1 - union, 0.0 if self.sketched else low - rest)
        low = 0.0 if self.untried else min(low, high)
        none_passes = float(np.exp(np.log1p(-passing[self.drawn :]).sum()))
        value = min(high, max(low, share * none_passes, 1 - union))
        return Interval(value, low, high)

    def noise_for(self, limit: float) -> float | None:
        """Noise std from which on recovery is at most ``limit``; None where no noise suffices or it can't be told."""
        count = len(self.ratios)
        if not count or self.sketched:
            return None
        # Success falls with noise, and so does its upper end.
        most = bisect_right(range(count), limit, key=lambda number: self._drawn(number / count)[2]) - 1
        if most < 0:
            return None
        ratio = float(self.ratios[most])
        return None if ratio <= 0 else (0.0 if math.isinf(ratio) else 1 / ratio)

    def _drawn(self, share: float) -> tuple[float, float, float]:
        """A share of the draws, and its ends (Clopper and Pearson)."""
        count = len(self.ratios)
        hits = round(share * count)
        low = 0.0 if hits == 0 else float(betaincinv(hits, count - hits + 1, self.failure / 2))
        high = 1.0 if hits == count else float(betaincinv(hits + 1, count - hits, 1 - self.failure / 2))
        return share, low, high


@final
class TokenDifferences:
    """`Confusion` of every position of the texts of a batch.

    Args:
        jacobian: at the embedded texts, uploads of n each.
        tokens: of the same texts, [U n, T].
        indices: positions in the audited data, which seed draws.
        seed: of the audit.
        failure: probability per text that some end is wrong.
    """

    def __init__(self, jacobian: Jacobian, tokens: Tokens, indices: list[int], seed: int, failure: float) -> None:
        self.jacobian, self.release, self.batch = jacobian, jacobian.release, jacobian.batch
        self.tokens, self.indices, self.seed = tokens, indices, seed
        self.length, self.upload_size = self.batch.inputs.shape[1], self.batch.upload_size
        self.failure = failure / self.length
        self._lengths = tokens.lengths.tolist()

    @property
    def num_candidates(self) -> int:
        """Tokens that are tried at each position."""
        return num_candidates(len(self.tokens.vocabulary), self.length, self.release.num_entries)

    def private_positions(self, index: int) -> list[int]:
        """Positions of a text that don't hold the tokenizer's own tokens; all where that isn't known."""
        special = self.tokens.special
        own = range(self.num_positions(index))
        return [place for place in own if special is None or not bool(special[index, place])]

    def num_positions(self, index: int) -> int:
        """Tokens of a text."""
        return int(self._lengths[index])

    @cached_property
    def confusions(self) -> list[list[Confusion]]:
        """Of every text and position."""
        return [
            [self._confusion(index, place) for place in range(self.num_positions(index))]
            for index in range(len(self.batch))
        ]

    def _confusion(self, index: int, place: int) -> Confusion:
        upload, offset = divmod(index, self.upload_size)
        own, first = self.batch.select([upload]), upload * self.upload_size
        ids = self.tokens.ids[first : first + self.upload_size, : self.length]
        candidates = self._candidates(index, place)
        base = self._released(own, ids[None], own.targets[None])[0]
        size = max(1, CHUNK_ENTRIES // self.release.num_entries)
        total = len(candidates) * self.release.num_entries
        sketch = None if total <= SINGLE_ENTRIES else self._sketch(base)
        width = self.release.num_entries if sketch is None else BUCKETS
        kept = base.new_empty(
            len(candidates), width, dtype=torch.float32 if WHOLE_ENTRIES < total <= SINGLE_ENTRIES else base.dtype
        )
        norms = list[Tensor]()
        for number, part in enumerate(torch.split(candidates, size)):
            numbers, targets = with_tokens(self.tokens.task, ids[offset], own.targets[offset].cpu(), place, part)
            read = ids.expand(len(part), *ids.shape).clone()
            told = own.targets.expand(len(part), *own.targets.shape).clone()
            read[:, offset], told[:, offset] = numbers, targets.to(told)
            change = self._released(own, read, told) - base
            norms.append(change.norm(dim=1))
            kept[number * size : number * size + len(part)] = change if sketch is None else sketch(change)
        distances = torch.cat(norms).double()
        rounding = NEGLIGIBLE * torch.finfo(base.dtype).eps * float(base.norm())
        distances = torch.where(distances > rounding, distances, torch.zeros_like(distances))
        order = distances.argsort()
        drawn = min(len(order), max(FEWEST_DRAWN, min(MOST_DRAWN, math.isqrt(DRAWN_WORK // width))))
        products = _inner_products(kept, order[:drawn])
        distances = distances[order].cpu()
        generator = np.random.default_rng(derived_seed(self.seed, self.indices[index], SUCCESS_STREAM + place))
        return Confusion(
            distances=distances.numpy(),
            ratios=_ratios(products, distances[:drawn], generator),
            drawn=drawn,
            untried=len(self.tokens.vocabulary) - 1 - len(candidates),
            sketched=sketch is not None,
            failure=self.failure,
        )

    def _candidates(self, index: int, place: int) -> Tensor:
        """Tokens to be tried in the place of the true one, [K]."""
        true = self.tokens.true_token(index, place)
        others = torch.cat([torch.arange(true), torch.arange(true + 1, len(self.tokens.vocabulary))])
        if self.num_candidates == len(others):
            return others
        away = self.tokens.vocabulary[others].double() - self.tokens.vocabulary[true].double()
        upload, offset = divmod(index, self.upload_size)
        reached = away @ self._pulled[upload][:, offset, place].cpu().double().mT
        return others[reached.square().sum(1).argsort()[: self.num_candidates]]

    @cached_property
    def _pulled(self) -> list[Tensor]:
        """J^T u of every upload for a few normal u, [RANKING, n, T, E]."""
        pulled = [
            self.jacobian.pull_each(lambda upload, number=number: self._normal(upload, number))  # type: ignore[misc]
            for number in range(RANKING)
        ]
        stacked = torch.stack(pulled, 1)
        return [each.reshape(RANKING, self.upload_size, self.length, -1) for each in stacked]

    def _normal(self, upload: int, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(
            derived_seed(self.seed, self.indices[upload * self.upload_size], RANKING_STREAM + number)
        )
        drawn = torch.randn(self.release.num_entries, generator=generator, dtype=self.release.dtype)
        return drawn.to(self.release.device)

    def _released(self, own: Batch, ids: Tensor, targets: Tensor) -> Tensor:
        """What leaves for uploads of texts of these numbers [K, n, T], [K, P']."""
        count = len(ids)
        numbers = None if own.numbers is None else own.numbers * count
        read, told = ids.flatten(0, 1).to(own.inputs.device), targets.flatten(0, 1).to(own.targets.device)
        batch = Batch(read, told, self.upload_size, numbers)
        return self.release.mean(batch).detach()

    def _sketch(self, like: Tensor) -> Callable[[Tensor], Tensor]:
        """Sums of entries with random signs in buckets, [K, P'] to [K, `BUCKETS`]: inner products on average."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, 0, SKETCH_STREAM))
        count = self.release.num_entries
        buckets = torch.randint(BUCKETS, (count,), generator=generator).to(like.device)
        signs = (2 * torch.randint(2, (count,), generator=generator) - 1).to(like)
        return lambda rows: rows.new_zeros(len(rows), BUCKETS).index_add_(1, buckets, rows * signs)


def _inner_products(rows: Tensor, chosen: Tensor) -> Tensor:
    """D D^T of some rows of D [K, m], [k, k] float64 on the CPU, a part of the columns after the other."""
    products = rows.new_zeros(len(chosen), len(chosen), dtype=torch.float64)
    for part in torch.split(rows, COLUMNS, dim=1):
        held = part[chosen.to(part.device)].double()
        products += held @ held.mT
    return products.cpu()


def _ratios(products: Tensor, distances: Tensor, generator: np.random.Generator) -> np.ndarray:
    """max_v 2 n . D_v / ||D_v||^2 of draws of n, ascending [S], from D D^T, or a sketch's, [k, k] and ||D_v|| [k].

    It is the inverse of the noise at which a draw goes wrong, 0 where none is.
    """
    # A sketch's own lengths are off by a little, the true ones are known.
    scale = distances / products.diagonal().sqrt().clamp_min(1e-300)
    values, vectors = torch.linalg.eigh(products * scale * scale[:, None])
    differences = vectors * values.clamp_min(0).sqrt()
    critical = critical_noise(differences.numpy(), distances.square().numpy(), DRAWS, generator)
    with np.errstate(divide="ignore"):
        return np.sort(1 / critical)
