"""Recovery of tokens against an attacker that is run: every token tried by plain autograd, the nearest taken."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import text_cases
import text_oracles
import torch
from scipy.stats import norm

from riskaudit.audit.client import Client, make_client
from riskaudit.audit.settings import AuditSettings
from riskaudit.inputs import Samples, load_checkpoint
from riskaudit.inputs.arrays import Numbered
from riskaudit.inputs.texts import NO_TARGET, prepare
from riskaudit.jacobian import jacobian_maker
from riskaudit.sensitivity import tokens as module
from riskaudit.sensitivity.tokens import Confusion, TokenDifferences

VOCABULARY, LENGTH, DRAWS = 40, 5, 3000
CASES = {
    "bert": ("bert", "SequenceClassification"),
    "gpt2": ("gpt2", "SequenceClassification"),
    "causal": ("gpt2", "CausalLM"),
    "masked": ("bert", "MaskedLM"),
}


@lru_cache
def client_of(case: str) -> Client:
    kind, task = CASES[case]
    checkpoint = load_checkpoint(text_cases.saved(kind, task, VOCABULARY))
    assert checkpoint.text is not None
    rows = torch.randint(5, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(2)).tolist()
    tokens = checkpoint.text.of_numbers(rows, "drawn")
    labels = None
    if task == "SequenceClassification":
        labels = Numbered(torch.tensor([0, 2]))
    prepared = prepare(checkpoint.text, tokens, labels, None, "drawn")
    samples = Samples(prepared.tokens.embedded(), prepared.targets, ("0", "1"), tokens=prepared.tokens)
    return make_client(checkpoint, samples, AuditSettings(release="gaussian:0.01", checks=False))


def differences(case: str) -> TokenDifferences:
    client = client_of(case)
    batch = client.upload_batch([0, 1])
    jacobian = jacobian_maker(client.release, batch)(batch)
    return TokenDifferences(jacobian, client.samples.tokens, [0, 1], 0, 1e-3)


@lru_cache
def released(case: str, place: int) -> tuple[int, np.ndarray]:
    """The true token, and what leaves with every token of the vocabulary at a position of the first text, [V, P]."""
    kind, task = CASES[case]
    tokens, target = client_of(case).samples.tokens, client_of(case).samples.targets[0]
    network = text_oracles.doubled(text_cases.network_of(kind, VOCABULARY, task))
    true, rows = tokens.true_token(0, place), []
    for token in range(VOCABULARY):
        ids, wanted = tokens.ids[0].clone(), target.clone()
        if case == "masked" and target[place] != NO_TARGET:
            wanted[place] = token
        else:
            ids[place] = token
        if case == "causal" and place > 0:
            wanted[place - 1] = token
        rows.append(text_oracles.token_gradient(network, ids, wanted))
    return true, torch.stack(rows).numpy()


def attacked(case: str, place: int, sigma: float) -> float:
    """How often the release that is nearest to a noisy one is the true token's."""
    true, rows = released(case, place)
    away = rows - rows[true]
    rng, right = np.random.default_rng(0), 0
    squares = np.square(away).sum(1)
    for _ in range(DRAWS // 500):
        noise = sigma * rng.standard_normal((500, rows.shape[1]))
        right += int((np.argmin(squares - 2 * noise @ away.T, axis=1) == true).sum())
    return right / DRAWS


def place_of(case: str) -> int:
    if case != "masked":
        return 2
    return int((client_of(case).samples.targets[0] != NO_TARGET).nonzero()[0])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", CASES)
def test_recovery_is_what_the_attacker_reaches(case: str) -> None:
    place = place_of(case)
    confusion = differences(case).confusions[0][place]
    true, rows = released(case, place)
    distances = np.sort(np.delete(np.linalg.norm(rows - rows[true], axis=1), true))
    assert confusion.untried == 0
    assert confusion.distances == pytest.approx(distances, rel=1e-7)
    for factor in (0.1, 0.3, 0.6, 1.5):
        sigma = factor * float(np.median(distances))
        found = confusion.recovery(sigma)
        assert found.low <= found.value <= found.high
        # The union bound is the lower end or below it.
        assert found.low >= 1 - norm.sf(distances / (2 * sigma)).sum() - 1e-9
        success = attacked(case, place, sigma)
        assert found.value == pytest.approx(success, abs=0.04)
        assert found.low - 0.04 <= success <= found.high + 0.04


def test_tokens_beyond_those_drawn_from_count_as_independent(monkeypatch) -> None:
    """Which foretells less than the attacker reaches, but more than to take the union bound of all of them off."""
    monkeypatch.setattr(module, "FEWEST_DRAWN", 4)
    monkeypatch.setattr(module, "MOST_DRAWN", 4)
    place = place_of("bert")
    few = differences("bert").confusions[0][place]
    assert few.drawn == 4 < few.tried
    for factor in (0.3, 0.6, 1.0, 1.5):
        sigma = factor * float(np.median(few.distances))
        found, success = few.recovery(sigma), attacked("bert", place, sigma)
        assert found.low - 0.04 <= success <= found.high + 0.04
        share = float(np.mean(few.ratios < 1 / sigma))
        passing = norm.sf(few.distances[4:] / (2 * sigma))
        assert max(0.0, share - passing.sum()) < found.value < success + 0.04
        assert found.value == pytest.approx(share * np.prod(1 - passing), rel=1e-9)


def test_noise_hides_a_token() -> None:
    confusion = differences("bert").confusions[0][2]
    for limit in (0.5, 0.1):
        std = confusion.noise_for(limit)
        assert std is not None
        assert confusion.recovery(1.0001 * std).high <= limit + 1e-9
        assert attacked("bert", 2, std) <= limit
        assert confusion.recovery(std / 2).value > limit / 2


def test_tokens_that_were_not_tried_leave_no_lower_end(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = differences("gpt2").confusions[0][2]
    monkeypatch.setattr(module, "WORK", 0)
    monkeypatch.setattr(module, "FEWEST", 6)
    few = differences("gpt2").confusions[0][2]
    assert (few.tried, few.untried) == (6, VOCABULARY - 7)
    sigma = float(np.median(whole.distances)) / 3
    assert few.recovery(sigma).low == 0.0
    assert few.recovery(sigma).high >= whole.recovery(sigma).value - 0.02
    # The nearest are among the nearest few.
    assert few.distances[0] <= np.sort(whole.distances)[3] * (1 + 1e-9)


@pytest.mark.slow
def test_a_sketch_says_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = differences("bert").confusions[0][2]
    monkeypatch.setattr(module, "WHOLE_ENTRIES", 0)
    single = differences("bert").confusions[0][2]
    assert not single.sketched
    assert single.ratios == pytest.approx(whole.ratios, rel=1e-4)
    monkeypatch.setattr(module, "SINGLE_ENTRIES", 0)
    sketched = differences("bert").confusions[0][2]
    assert sketched.sketched
    assert sketched.distances == pytest.approx(whole.distances, rel=1e-9)
    sigma = float(np.median(whole.distances)) / 2
    assert sketched.recovery(sigma).value == pytest.approx(whole.recovery(sigma).value, abs=0.05)
    assert sketched.recovery(sigma).high == pytest.approx(1 - norm.sf(whole.distances[0] / (2 * sigma)))
    # What a sketch foretells is no noise to recommend.
    assert whole.noise_for(0.5) is not None
    assert sketched.noise_for(0.5) is None


def test_what_changes_nothing_is_never_told() -> None:
    still = Confusion(np.array([0.0, 1.0]), np.sort(np.where(np.arange(100) % 2, np.inf, -np.inf)), 2, 0, False, 1e-3)
    found = still.recovery(1e-6)
    assert found.value == pytest.approx(0.5)
    assert found.high <= 0.5
    assert still.noise_for(0.1) is None


def test_tokens_that_change_nothing_are_chosen_among_by_lot() -> None:
    distances = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    ratios = module._ratios(torch.diag(distances.square()), distances, np.random.default_rng(0))
    found = Confusion(distances.numpy(), ratios, len(distances), 0, False, 1e-3).recovery(1e-6)
    # The true token and three others are equally likely.
    assert found.low <= 0.25 <= found.high
    assert found.value == pytest.approx(0.25, abs=0.03)
