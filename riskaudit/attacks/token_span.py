"""``token-span``: texts token by token, by the spans of the first layers' gradients. No search over inputs.

Petrov, Dimitrov, Baader, Mueller and Vechev, "DAGER: Exact Gradient Inversion for Large Language Models", NeurIPS 2024.
Every token of the vocabulary is tried at every position: what enters the first projection there lies in the row span of
that projection's gradient iff the token stood there, but for chance (section 4.1; `riskaudit.attacks.spans` has the
mathematics, which the exact check of the same name shares). One text is told by that alone. Where several texts leave
together each position has several tokens: texts are put together by the span of the next layer's gradient, whose input
depends on the tokens before it, by extending prefixes (causal attention, section 4.2), or on all of them, by trying
every combination (section 4.3).

Exact while fewer tokens than coordinates leave together and nothing is added. Under noise the span is that of as many
leading directions as there are tokens, and the tokens nearest to it are taken: a guess, not claimed to be converged.
Not valid where entries were removed, or where weights changed between gradients that were added up.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import Attack, AttackNotApplicable, Observation, Reconstruction, register
from riskaudit.attacks.labels import with_labels
from riskaudit.attacks.linear_layers import LinearCall, linear_calls
from riskaudit.attacks.optimise.search import without_guess
from riskaudit.attacks.spans import MOST_INSIDE, OUTSIDE, every_token, first_input, row_basis, share_outside
from riskaudit.inputs.huggingface.sequences import PADDING
from riskaudit.release import Release
from riskaudit.results import Status


@dataclass(frozen=True, eq=False)
class Told:
    """What was told of one upload of n texts.

    Attributes:
        ids: tokens, [n, T], `PADDING` beyond each text's end.
        objective: largest share of a token's squared norm outside the span.
        is_exact: whether the spans leave no other choice.
    """

    ids: Tensor
    objective: float
    is_exact: bool


@register
@final
@dataclass(frozen=True)
class TokenSpanAttack(Attack):
    """Tokens that lie in the spans of the first layers' gradients. ``steps`` and ``restarts`` have no effect.

    Attributes:
        combinations: of tokens at the positions of a text that are tried at most, where several texts leave together.
    """

    name: ClassVar[str] = "token-span"
    title: ClassVar[str] = "Token span (DAGER)"
    source: ClassVar[str] = "Petrov et al., NeurIPS 2024"
    summary: ClassVar[str] = "Texts: every token that lies in the span of the first layers' gradients; exact."

    combinations: int = 4096
    steps: int = 1
    restarts: int = 1

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        began = time.perf_counter()
        if observation.texts is None:
            raise AttackNotApplicable("inputs aren't texts, whose tokens could be tried one by one")
        labelled = with_labels(observation)
        told = _Layers.of(observation).tell(observation, self.combinations)
        guess = without_guess(labelled, labelled.bound_prior()).reshape(len(observation), -1)
        for upload, each in enumerate(told):
            if each is not None:
                rows = observation.texts.vocabulary.to(guess)[each.ids.clamp_min(0)]
                guess[upload] = (rows * (each.ids != PADDING)[..., None]).flatten()
        status: tuple[Status, ...] = tuple(
            "failed" if each is None else "converged" if each.is_exact else "not_converged" for each in told
        )
        return Reconstruction(
            inputs=observation.images(guess),
            objective=guess.new_tensor([math.inf if each is None else each.objective for each in told]).double(),
            status=status,
            steps=torch.ones(len(observation), dtype=torch.long, device=guess.device),
            restarts=1,
            seconds=time.perf_counter() - began,
            targets=labelled.known_targets,
        )


@dataclass(frozen=True, eq=False)
class _Layers:
    """The layers whose gradients are read.

    Attributes:
        first: sees every position by itself.
        next: sees other positions too; None where none is sent, or a text has one token.
        is_causal: whether that is those before it only.
    """

    first: LinearCall
    next: LinearCall | None
    is_causal: bool

    @classmethod
    def of(cls, observation: Observation) -> _Layers:
        """The layers of a model.

        Raises:
            AttackNotApplicable: no projection of every position's token leaves.
        """
        release, length = observation.release, observation.input_shape[0]
        probes = torch.zeros(3, length, dtype=torch.long, device=release.device)
        # The first token is another one, then the last.
        probes[1, 0], probes[2, -1] = 1, 1
        calls = [call for call in linear_calls(release, probes)[0] if call.inputs.shape[:2] == probes.shape]
        if not calls or calls[0].weight is None:
            raise AttackNotApplicable("no projection of every position's token leaves")
        for call in calls[1:] if length > 1 else []:
            plain, other, after = call.inputs
            if call.weight is not None and not torch.equal(plain[-1], other[-1]):
                return cls(calls[0], call, torch.equal(plain[0], after[0]))
        return cls(calls[0], None, False)

    def tell(self, observation: Observation, combinations: int) -> list[Told | None]:
        """Of every upload; None where its tokens span all coordinates.

        Raises:
            AttackNotApplicable: that is so of all.
        """
        assert observation.texts is not None
        size, length = observation.upload_size, observation.input_shape[0]
        vocabulary = len(observation.texts.vocabulary)
        lengths = observation.texts.lengths.reshape(-1, size).tolist()
        bases = [
            _basis(self.first, observation, upload, sum(own) if observation.release.noise is not None else None)
            for upload, own in enumerate(lengths)
        ]
        outside = torch.cat(
            [
                torch.stack([share_outside(part, basis) for basis in bases])
                for part in every_token(observation.release, self.first.name, vocabulary, length)
            ],
            dim=1,
        )
        told: list[Told | None] = []
        for upload, (basis, own) in enumerate(zip(bases, lengths, strict=True)):
            observation.check_time()
            shares = outside[upload, :, : max(own)]
            # A layer norm before the layer keeps every token in a plane, which the span may fill.
            if len(basis) >= basis.shape[1] or bool(((shares <= OUTSIDE).double().mean(0) > MOST_INSIDE).any()):
                told.append(None)
            elif size == 1:
                told.append(_alone(shares, length))
            else:
                told.append(_Together(self, observation, upload, own, shares, combinations).tell())
        if all(each is None for each in told):
            raise AttackNotApplicable("the gradient of the first projection spans all tokens of the vocabulary")
        return told


def _basis(call: LinearCall, observation: Observation, upload: int, most: int | None) -> Tensor:
    assert call.weight is not None
    rows = observation.released[upload, call.weight].reshape(call.outputs.shape[-1], call.inputs.shape[-1])
    return row_basis(rows, most)


def _alone(shares: Tensor, length: int) -> Told:
    """One text, of shares outside [V, L]."""
    nearest = shares.min(0)
    ids = torch.full((1, length), PADDING, dtype=torch.long, device=shares.device)
    ids[0, : shares.shape[1]] = nearest.indices
    is_exact = bool(((shares <= OUTSIDE).sum(0) == 1).all())
    return Told(ids, float(nearest.values.max()), is_exact)


@dataclass(frozen=True, eq=False)
class _Together:
    """Several texts of one upload.

    Attributes:
        layers: that are read.
        observation: of all uploads.
        upload: number of this one.
        lengths: of its texts.
        shares: outside the first span, [V, L].
        combinations: tried at most.
    """

    layers: _Layers
    observation: Observation
    upload: int
    lengths: list[int]
    shares: Tensor
    combinations: int

    def tell(self) -> Told:
        """The texts, in any order among those of one length."""
        tokens = [self._at(place) for place in range(max(self.lengths))]
        found: list[list[int]] = []
        is_exact, worst = self.layers.next is not None, 0.0
        chosen = dict[int, list[list[int]]]()
        # Longer texts first: the beginning of one lies in the spans as well as a shorter one that is over there.
        for length in sorted(set(self.lengths), reverse=True):
            count = self.lengths.count(length)
            candidates, shares = self._texts(tokens[:length])
            order = sorted(range(len(candidates)), key=lambda place: shares[place])
            # Of causal models, of others attention to what follows makes another input of it.
            begun = [each[:length] for each in found] if self.layers.is_causal else []
            order.sort(key=lambda place: candidates[place] in begun)
            best = order[:count]
            inside = sum(share <= OUTSIDE for share in shares)
            is_exact &= inside == count + sum(each in candidates for each in begun)
            worst = max([worst, *(shares[place] for place in best)])
            best += best[:1] * (count - len(best))
            chosen[length] = [candidates[place] for place in best]
            found += chosen[length]
        ids = torch.full((len(self.lengths), self.observation.input_shape[0]), PADDING, dtype=torch.long)
        for slot, length in enumerate(self.lengths):
            ids[slot, :length] = torch.tensor(chosen[length].pop(0))
        return Told(ids.to(self.shares.device), worst, is_exact)

    def _at(self, place: int) -> list[int]:
        """Tokens that may have stood at a position: those in the span, or as many of the nearest as there are texts."""
        own = self.shares[:, place]
        order = own.argsort()[: max(1, int((own <= OUTSIDE).sum()))]
        most = sum(length > place for length in self.lengths)
        is_noisy = self.observation.release.noise is not None
        listed: list[int] = (own.argsort()[:most] if is_noisy else order).tolist()
        return listed

    def _texts(self, tokens: list[list[int]]) -> tuple[list[list[int]], list[float]]:
        """Texts that tokens at the positions can make, and how far outside the next layer's span each of them lies."""
        if self.layers.is_causal:
            kept, shares = [list[int]()], [0.0]
            for place, own in enumerate(tokens):
                longer = [[*prefix, token] for prefix in kept for token in own][: self.combinations]
                added = self._outside(longer)[:, place].tolist()
                fits = [number for number, share in enumerate(added) if share <= OUTSIDE]
                if not fits:
                    fits = sorted(range(len(added)), key=added.__getitem__)[: 2 * len(self.lengths)]
                kept, shares = [longer[number] for number in fits], [added[number] for number in fits]
            return kept, shares
        if math.prod(map(len, tokens)) > self.combinations:
            # Texts can't be put together in so many ways; their tokens are known all the same.
            mixed = [[own[number % len(own)] for own in tokens] for number in range(len(self.lengths))]
            return mixed, [1.0] * len(mixed)
        texts = [list(each) for each in product(*tokens)]
        return texts, self._outside(texts).amax(1).tolist()

    def _outside(self, texts: list[list[int]]) -> Tensor:
        """Shares outside the next layer's span of what enters it at every position of texts of one length, [K, L]."""
        call, release = self.layers.next, self.observation.release
        ids = torch.tensor(texts, device=release.device)
        if call is None:
            return self.shares.new_ones(ids.shape)
        most = sum(self.lengths) if release.noise is not None else None
        basis = _basis(call, self.observation, self.upload, most)
        if len(basis) >= basis.shape[1]:
            return self.shares.new_ones(ids.shape)
        return torch.cat([_shares(release, part, call, basis) for part in torch.split(ids, 256)])


def _shares(release: Release, ids: Tensor, call: LinearCall, basis: Tensor) -> Tensor:
    return share_outside(first_input(release, ids, call.name).reshape(*ids.shape, -1), basis)
