"""Attacks on embedded texts: of several lengths, token by token, and by TAG's distance."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import cases
import pytest
import text_cases
import torch
from contracts.attack import flat_batch, generator, observe

from riskaudit.attacks import AttackNotApplicable, GaussNewton, Reconstruction, TokenSpanAttack, TransformerGradients
from riskaudit.attacks.tag import SquaredAndAbsoluteDistance
from riskaudit.audit import AuditSettings
from riskaudit.audit.client import Client, make_client
from riskaudit.inputs import Samples, load_checkpoint
from riskaudit.studies.attacking import Target, vocabulary_of

VOCABULARY = 60
ROWS = ([5, 6, 7, 8, 9], [10, 11, 12], [13, 6, 14, 8, 5], [15, 16, 17, 18])


@cache
def client(kind: str, release: str, width: int = 32, rows: tuple[int, ...] = (0, 1)) -> Client:
    folder = Path(mkdtemp(prefix="riskaudit-attacked-")) / kind
    text_cases.network_of(kind, VOCABULARY, width=width).save_pretrained(folder)
    text_cases.tokenizer_of(kind).save(str(folder / "tokenizer.json"))
    checkpoint = load_checkpoint(folder)
    assert checkpoint.text is not None
    tokens = checkpoint.text.of_numbers([ROWS[row] for row in rows], "drawn")
    ids = tuple(map(str, rows))
    samples = Samples(tokens.embedded(), torch.tensor([row % 3 for row in rows]), ids, tokens=tokens)
    return make_client(checkpoint, samples, AuditSettings(release=release, checks=False))


def told(client: Client, found: Reconstruction) -> list[list[int]]:
    """Nearest tokens of every text, without padding."""
    vocabulary = vocabulary_of(client)
    assert vocabulary is not None
    tokens = vocabulary.tokens(found.inputs).tolist()
    return [row[:length] for row, length in zip(tokens, client.samples.lengths, strict=False)]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_spans_tell_texts_of_several_lengths(kind: str) -> None:
    attacked = client(kind, "clip:0.1")
    found = TokenSpanAttack().run(Target.of(attacked, None, True).observe([0, 1]), generator())
    assert found.status == ("converged", "converged")
    assert told(attacked, found) == [ROWS[0], ROWS[1]]
    # What comes out are rows of the vocabulary, and nothing beyond a text's end.
    assert torch.equal(found.inputs, attacked.batch([0, 1]).inputs)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_spans_put_texts_together_that_leave_together(kind: str) -> None:
    """Two of one length that share a token, and one that is shorter."""
    attacked = client(kind, "mean:3", 32, (0, 2, 3))
    found = TokenSpanAttack().run(Target.of(attacked, None, True).observe([0, 1, 2]), generator())
    assert found.status == ("converged",)
    texts = told(attacked, found)
    assert sorted(texts[:2]) == sorted([ROWS[0], ROWS[2]])
    assert texts[2] == ROWS[3]


def test_spans_guess_under_noise_and_do_not_claim_to_know() -> None:
    attacked = client("bert", "gaussian:1e-6")
    found = TokenSpanAttack().run(Target.of(attacked, None, True).observe([0, 1]), generator())
    assert found.status == ("not_converged", "not_converged")
    assert told(attacked, found) == [ROWS[0], ROWS[1]]
    loud = client("bert", "gaussian:10")
    found = TokenSpanAttack().run(Target.of(loud, None, True).observe([0, 1]), generator())
    assert told(loud, found) != [ROWS[0], ROWS[1]]


def test_spans_that_hold_everything_tell_nothing() -> None:
    """Five tokens in four dimensions, and inputs that are no texts."""
    attacked = client("bert", "gradient", 4)
    with pytest.raises(AttackNotApplicable, match="spans all tokens"):
        TokenSpanAttack().run(Target.of(attacked, None, True).observe([0]), generator())
    with pytest.raises(AttackNotApplicable, match="aren't texts"):
        TokenSpanAttack().run(observe(cases.mlp((36, 16, 10)), flat_batch()), generator())


def test_spans_need_the_projection_to_leave() -> None:
    attacked = client("bert", "share:classifier*")
    with pytest.raises(AttackNotApplicable, match="no projection"):
        TokenSpanAttack().run(Target.of(attacked, None, True).observe([0]), generator())


@pytest.mark.slow
def test_gauss_newton_tells_every_token_of_padded_texts() -> None:
    """Beside a longer text a shorter one comes out as by itself."""
    attacked = client("bert", "gaussian:0.001", 8)
    target = Target.of(attacked, None, True)
    attack = GaussNewton(steps=15, restarts=1, smooth_steps=0)
    together = attack.run(target.observe([0, 1]), generator())
    assert told(attacked, together) == [ROWS[0], ROWS[1]]
    assert float(together.inputs[1, 3:].abs().max()) == 0
    alone = attack.run(target.observe([1]), generator())
    assert alone.inputs.shape[1] == 3
    torch.testing.assert_close(together.inputs[1, :3], alone.inputs[0], rtol=0, atol=1e-4)


def test_tags_distance_is_the_papers() -> None:
    attacked = client("gpt2", "gradient", 8)
    observation = Target.of(attacked, None, True).observe([0, 1])
    released = observation.released + torch.randn(
        observation.released.shape, generator=generator(), dtype=torch.float64
    )
    found = SquaredAndAbsoluteDistance(0.1).bind(observation)(released)
    shapes, first, expected = observation.release.sent.shapes, 0, torch.zeros(2, dtype=torch.float64)
    for number, shape in enumerate(shapes.values()):
        part = (released - observation.released)[:, first : first + shape.numel()]
        alpha = 0.1 * (len(shapes) - number) / len(shapes)
        expected += 0.5 * part.square().sum(1) + alpha * part.abs().sum(1)
        first += shape.numel()
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_tag_comes_nearer_the_longer_it_searches() -> None:
    attacked = client("gpt2", "gradient", 8)
    observation = Target.of(attacked, None, True).observe([0, 1])
    truth = attacked.batch([0, 1]).inputs
    few, many = (TransformerGradients(steps=steps).run(observation, generator()) for steps in (2, 120))
    assert bool((many.objective < 0.5 * few.objective).all())
    assert float((many.inputs - truth).norm()) < float((few.inputs - truth).norm())
    assert float(many.inputs[1, 3:].abs().max()) == 0
