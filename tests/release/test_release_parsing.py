"""``--release``: what is accepted comes back the same, what is refused is pointed at."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from riskaudit.errors import ReleaseError
from riskaudit.release import STEPS, Clip, GaussianNoise, Gradient, LaplaceNoise, Mask, Prune, parse_steps
from riskaudit.release.steps import register


def spec(text: str) -> str:
    return ",".join(step.spec for step in parse_steps(text))


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("gradient", (Gradient(),)),
        ("clip:1", (Gradient(), Clip(1.0))),
        (" clip:1.5 , gaussian:0.01 ", (Gradient(), Clip(1.5), GaussianNoise(0.01))),
        ("gradient,prune:0.9,laplace:1e-3", (Gradient(), Prune(0.9), LaplaceNoise(0.001))),
        ("gaussian:2,mask:0.5", (Gradient(), GaussianNoise(2.0), Mask(0.5, 0))),
        ("mask:0:12", (Gradient(), Mask(0.0, 12))),
    ],
)
def test_accepted(text: str, steps: tuple[object, ...]) -> None:
    assert parse_steps(text) == steps


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", "release step 1 ('')", "expected one of gradient, clip:C"),
        ("clip:1,", "release step 2 ('')", "expected one of"),
        ("clp:1", "release step 1 ('clp:1')", "did you mean 'clip'?"),
        ("clip:1,blur:2", "release step 2 ('blur:2')", "expected one of"),
        ("clip", "release step 1 ('clip')", "expected clip:C, found 0 values"),
        ("clip:1:2", "release step 1 ('clip:1:2')", "found 2 values"),
        ("clip:0", "release step 1 ('clip:0')", "C > 0, found '0'"),
        ("clip:one", "release step 1 ('clip:one')", "C > 0, found 'one'"),
        ("clip:nan", "release step 1 ('clip:nan')", "C > 0, found 'nan'"),
        ("clip:inf", "release step 1 ('clip:inf')", "C > 0, found 'inf'"),
        ("gradient:1", "release step 1 ('gradient:1')", "without a value"),
        ("clip:1,gaussian:-0.1", "release step 2 ('gaussian:-0.1')", "STD > 0, found '-0.1'"),
        ("laplace:0", "release step 1 ('laplace:0')", "B > 0"),
        ("prune:1", "release step 1 ('prune:1')", "0 <= RATIO < 1"),
        ("mask:-0.1", "release step 1 ('mask:-0.1')", "0 <= RATIO < 1"),
        ("mask", "release step 1 ('mask')", "found 0 values"),
        ("mask:0.1:x", "release step 1 ('mask:0.1:x')", "whole number as SEED"),
        ("mask:0.1:1:2", "release step 1 ('mask:0.1:1:2')", "whole number as SEED"),
        ("mask:0.1:" + "9" * 19, "release step 1", "whole number as SEED"),
        ("mask:0.1:" + "9" * 5000, "release step 1", "whole number as SEED"),
        ("clip:1,gradient", "release step 2 ('gradient')", "as the first step only"),
        ("gradient,gradient", "release step 2 ('gradient')", "as the first step only"),
        ("gaussian:1,laplace:2", "release step 2 ('laplace:2.0')", "already carries noise from 'gaussian:1.0'"),
        ("gradient,gaussian:1,gaussian:1", "release step 3 ('gaussian:1.0')", "already carries noise"),
        ("gaussian:1,clip:2", "release step 2 ('clip:2.0')", "put it before the noise"),
        ("clip:1,gaussian:1,mask:0.5,prune:0.5", "release step 4 ('prune:0.5')", "put it before the noise"),
    ],
)
def test_refused(text: str, place: str, words: str) -> None:
    with pytest.raises(ReleaseError) as caught:
        parse_steps(text)
    assert str(caught.value).startswith(place)
    assert words in str(caught.value)


PIECES = st.sampled_from(
    [*STEPS, "clip:1", "prune:0.5", "mask:0.25:3", "gaussian:0.1", "laplace:0.2", ":", ",", " ", "1e400", "-1", "٣"]
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=6).map(",".join), st.lists(PIECES).map("".join)))
@example("mask:0.5:" + "1" * 5000)
@example("clip:1_000")
@example("\x00")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        once = spec(text)
    except ReleaseError:
        return
    assert spec(once) == once
    assert parse_steps(once) == parse_steps(text)


POSITIVE = st.floats(min_value=5e-324, max_value=1.7e308)
RATIO = st.floats(min_value=0, max_value=1, exclude_max=True)
QUIET = st.one_of(
    POSITIVE.map(Clip), RATIO.map(Prune), st.builds(Mask, RATIO, st.integers(min_value=0, max_value=2**63 - 1))
)


@given(st.lists(QUIET, max_size=4), st.one_of(st.none(), POSITIVE.map(GaussianNoise), POSITIVE.map(LaplaceNoise)))
def test_specs_lose_nothing(quiet: list[object], noise: object) -> None:
    steps = (Gradient(), *quiet, *([noise] if noise is not None else []))
    assert parse_steps(",".join(step.spec for step in steps)) == steps


def test_registering_twice_is_refused() -> None:
    with pytest.raises(ReleaseError, match="'clip' is registered twice"):
        register(Clip)
