"""``--release``: what is accepted comes back the same, what is refused is pointed at."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from riskaudit.errors import ReleaseError
from riskaudit.release import Noise
from riskaudit.release.grammar import ReleaseSpec, usages
from riskaudit.release.noise import SCALES
from riskaudit.release.steps import STEPS, register
from riskaudit.release.steps.clip import Clip
from riskaudit.release.steps.mask import Mask
from riskaudit.release.steps.prune import Prune


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("gradient", ReleaseSpec()),
        ("clip:1", ReleaseSpec((Clip(1.0),))),
        (" clip:1.5 , gaussian:0.01 ", ReleaseSpec((Clip(1.5),), Noise("gaussian", 0.01))),
        ("gradient,prune:0.9,laplace:1e-3", ReleaseSpec((Prune(0.9),), Noise("laplace", 0.001))),
        ("gaussian:2,mask:0.5", ReleaseSpec((), Noise("gaussian", 2.0), (Mask(0.5, 0),))),
        ("mask:0:12", ReleaseSpec((Mask(0.0, 12),))),
    ],
)
def test_accepted(text: str, spec: ReleaseSpec) -> None:
    assert ReleaseSpec.parse(text) == spec


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
        ("gradient:1", "release step 1 ('gradient:1')", "expected gradient, found 1 values"),
        ("clip:1,gaussian:-0.1", "release step 2 ('gaussian:-0.1')", "STD > 0, found '-0.1'"),
        ("laplace:0", "release step 1 ('laplace:0')", "B > 0"),
        ("prune:1", "release step 1 ('prune:1')", "0 <= RATIO < 1"),
        ("mask:-0.1", "release step 1 ('mask:-0.1')", "0 <= RATIO < 1"),
        ("mask", "release step 1 ('mask')", "found 0 values"),
        ("mask:0.1:x", "release step 1 ('mask:0.1:x')", "whole number as SEED"),
        ("mask:0.1:1:2", "release step 1 ('mask:0.1:1:2')", "found 3 values"),
        ("mask:0.1:" + "9" * 19, "release step 1", "whole number as SEED"),
        ("mask:0.1:" + "9" * 5000, "release step 1", "whole number as SEED"),
        ("clip:1,gradient", "release step 2 ('gradient')", "as the first step only"),
        ("gradient,gradient", "release step 2 ('gradient')", "as the first step only"),
        ("gaussian:1,laplace:2", "release step 2 ('laplace:2')", "already carries noise from 'gaussian:1.0'"),
        ("gradient,gaussian:1,gaussian:1", "release step 3 ('gaussian:1')", "already carries noise"),
        ("gaussian:1,clip:2", "release step 2 ('clip:2')", "put it before the noise"),
        ("clip:1,gaussian:1,mask:0.5,prune:0.5", "release step 4 ('prune:0.5')", "put it before the noise"),
    ],
)
def test_refused(text: str, place: str, words: str) -> None:
    with pytest.raises(ReleaseError) as caught:
        ReleaseSpec.parse(text)
    assert str(caught.value).startswith(place)
    assert words in str(caught.value)


PIECES = st.sampled_from(
    [
        "gradient",
        *STEPS,
        *SCALES,
        "clip:1",
        "prune:0.5",
        "mask:0.25:3",
        "gaussian:0.1",
        "laplace:0.2",
        ":",
        ",",
        " ",
        "1e400",
        "-1",
        "٣",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=6).map(",".join), st.lists(PIECES).map("".join)))
@example("mask:0.5:" + "1" * 5000)
@example("clip:1_000")
@example("\x00")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        spec = ReleaseSpec.parse(text)
    except ReleaseError:
        return
    assert ReleaseSpec.parse(str(spec)) == spec
    assert str(ReleaseSpec.parse(str(spec))) == str(spec)


POSITIVE = st.floats(min_value=5e-324, max_value=1.7e308)
RATIO = st.floats(min_value=0, max_value=1, exclude_max=True)
MASK = st.builds(Mask, RATIO, st.integers(min_value=0, max_value=2**63 - 1))
QUIET = st.one_of(POSITIVE.map(Clip), RATIO.map(Prune), MASK)


NOISE = st.builds(Noise, st.sampled_from(sorted(SCALES)), POSITIVE)


@given(st.lists(QUIET, max_size=4), st.one_of(st.none(), NOISE), st.one_of(st.none(), MASK))
def test_text_loses_nothing(quiet: list[object], noise: Noise | None, after: Mask | None) -> None:
    spec = ReleaseSpec(tuple(quiet), noise, (after,) if noise is not None and after is not None else ())
    assert ReleaseSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("after", [Clip(1.0), Prune(0.5)], ids=str)
def test_a_step_that_would_change_the_noise_is_refused(after: object) -> None:
    with pytest.raises(ReleaseError, match="put it before the noise"):
        ReleaseSpec((), Noise("gaussian", 1.0), (after,))


def test_steps_after_no_noise_are_refused() -> None:
    with pytest.raises(ReleaseError, match="give them as steps"):
        ReleaseSpec((), None, (Mask(0.5),))


def test_noise_is_replaced_at_the_end() -> None:
    spec = ReleaseSpec.parse("clip:1,laplace:1,mask:0.5")
    assert str(spec.with_noise(Noise("gaussian", 0.5))) == "gradient,clip:1.0,mask:0.5:0,gaussian:0.5"
    assert str(spec.with_noise(None)) == "gradient,clip:1.0,mask:0.5:0"


def test_names_are_in_the_order_of_the_text() -> None:
    assert ReleaseSpec.parse("clip:1,laplace:1,mask:0.5").names == ["gradient", "clip", "laplace", "mask"]


def test_usages_name_everything() -> None:
    assert {usage.partition(":")[0] for usage in usages()} == {"gradient", *STEPS, *SCALES}
    assert usages()["mask:RATIO[:SEED]"]


def test_grammar_and_reports_load_without_torch() -> None:
    code = "import sys, riskaudit.report, riskaudit.release.grammar; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_registering_twice_is_refused() -> None:
    with pytest.raises(ReleaseError, match="'clip' is registered twice"):
        register(Clip)
