"""``--release``: what is accepted comes back the same, what is refused is pointed at."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from riskaudit.errors import ReleaseError
from riskaudit.release import Noise
from riskaudit.release.aggregation import Mean, SecureAggregation
from riskaudit.release.grammar import ReleaseSpec, usages
from riskaudit.release.noise import SCALES
from riskaudit.release.steps import STEPS, Step, register
from riskaudit.release.steps.clip import Clip
from riskaudit.release.steps.dropout import Dropout
from riskaudit.release.steps.mask import Mask
from riskaudit.release.steps.prune import Prune
from riskaudit.release.steps.share import Share
from riskaudit.release.training import LocalTraining


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("gradient", ReleaseSpec()),
        ("clip:1", ReleaseSpec((Clip(1.0),))),
        (" clip:1.5 , gaussian:0.01 ", ReleaseSpec((Clip(1.5),), Noise("gaussian", 0.01))),
        ("gradient,prune:0.9,laplace:1e-3", ReleaseSpec((Prune(0.9),), Noise("laplace", 0.001))),
        ("gaussian:2,mask:0.5", ReleaseSpec((), Noise("gaussian", 2.0), (Mask(0.5, 0),))),
        ("mask:0:12", ReleaseSpec((Mask(0.0, 12),))),
        ("mean:8", ReleaseSpec((Mean(8),))),
        ("clip:1,mean:all,clip:2", ReleaseSpec((Clip(1.0), Mean(None), Clip(2.0)))),
        (
            "mean:2,dropout:0.5,secagg:3,gaussian:1,share:head.*+fc.bias",
            ReleaseSpec(
                (Mean(2), Dropout(0.5), SecureAggregation(3)), Noise("gaussian", 1.0), (Share("head.*+fc.bias"),)
            ),
        ),
        ("local:lr=0.1:batch=8:epochs=2", ReleaseSpec(training=LocalTraining(2, 8, 0.1))),
        (
            "local:epochs=1:batch=all:lr=1e-3:optimizer=adam:weight_decay=0.1:shuffle=4,prune:0.5,secagg:2",
            ReleaseSpec(
                (Prune(0.5), SecureAggregation(2)),
                training=LocalTraining(1, None, 1e-3, 0.0, 0.1, "adam", 4),
            ),
        ),
        (
            "local:epochs=1:batch=4:lr=0.1:momentum=0.9:optimizer=sgd",
            ReleaseSpec(training=LocalTraining(1, 4, 0.1, 0.9)),
        ),
    ],
)
def test_accepted(text: str, spec: ReleaseSpec) -> None:
    assert ReleaseSpec.parse(text) == spec


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", "release step 1 ('')", "expected one of gradient, local:epochs=E:batch=B:lr=L"),
        ("clip:1,", "release step 2 ('')", "expected one of"),
        ("clp:1", "release step 1 ('clp:1')", "did you mean 'clip'?"),
        ("clip:1,blur:2", "release step 2 ('blur:2')", "expected one of"),
        ("clip", "release step 1 ('clip')", "expected clip:C, found 0 values"),
        ("clip:1:2", "release step 1 ('clip:1:2')", "found 2 values"),
        ("clip:0", "release step 1 ('clip:0')", "C > 0, found '0'; write it like clip:0.1"),
        ("foo:1", "release step 1 ('foo:1')", "; choose one of them"),
        ("clip:one", "release step 1 ('clip:one')", "C > 0, found 'one'"),
        ("clip:nan", "release step 1 ('clip:nan')", "C > 0, found 'nan'"),
        ("clip:inf", "release step 1 ('clip:inf')", "C > 0, found 'inf'"),
        (
            "gradient:1",
            "release step 1 ('gradient:1')",
            "expected gradient, found 1 value after the name; write it like gradient",
        ),
        ("clip:1,gaussian:-0.1", "release step 2 ('gaussian:-0.1')", "STD > 0, found '-0.1'"),
        ("laplace:0", "release step 1 ('laplace:0')", "B > 0"),
        ("prune:1", "release step 1 ('prune:1')", "0 <= RATIO < 1, found '1'; write it like prune:0.5"),
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
        ("mean", "release step 1 ('mean')", "expected mean:N, found 0 values"),
        ("mean:2:2", "release step 1", "found 2 values"),
        ("mean:0", "release step 1", "a whole number above 0 as N (or all), found '0'"),
        ("mean:-1", "release step 1", "found '-1'"),
        ("mean:1.5", "release step 1", "found '1.5'"),
        ("mean:" + "9" * 5000, "release step 1", "a whole number above 0"),
        ("mena:2", "release step 1", "did you mean 'mean'?"),
        ("mean:2,clip:1,mean:2", "release step 3 ('mean:2')", "one mean, before secure aggregation"),
        ("mean:2,secagg:2,mean:2", "release step 3 ('mean:2')", "one mean, before secure aggregation"),
        ("gaussian:1,mean:2", "release step 2 ('mean:2')", "put it before the noise"),
        ("mean:2,secagg:1", "release step 2 ('secagg:1')", "two clients at least as K"),
        ("mean:2,secagg:all", "release step 2", "a whole number above 0 as K, found 'all'"),
        ("mean:2,secagg:2,secagg:2", "release step 3 ('secagg:2')", "secure aggregation once"),
        ("secagg:2", "release step 1 ('secagg:2')", "expected the clients' uploads before it"),
        ("clip:1,secagg:2", "release step 2 ('secagg:2')", "expected the clients' uploads before it"),
        ("mean:2,gaussian:1,secagg:2", "release step 3 ('secagg:2')", "put it before the noise"),
        ("dropout:0.5", "release step 1 ('dropout:0.5')", "put it after mean:N or local training"),
        ("dropout:0.5,mean:2", "release step 1 ('dropout:0.5')", "put it after mean:N or local training"),
        ("mean:2,dropout:1", "release step 2 ('dropout:1')", "0 <= P < 1"),
        ("mean:2,gaussian:1,dropout:0.5", "release step 3", "put it before the noise"),
        ("share:", "release step 1 ('share:')", "PATTERN that isn't empty"),
        ("share", "release step 1 ('share')", "found 0 values"),
        ("local", "release step 1 ('local')", "found no epochs and no batch and no lr; add it"),
        ("local:epochs=1:lr=1", "release step 1", "found no batch; add it"),
        ("local:epochs=1:batch=2:lr=1:speed=3", "release step 1", "a key of epochs, batch, lr"),
        ("local:epoch=1", "release step 1", "did you mean 'epochs'?"),
        ("local:epochs", "release step 1", "expected key=value"),
        ("local:epochs=1:epochs=1", "release step 1", "expected epochs once"),
        ("local:epochs=1:batch=2:lr=1e400", "release step 1", "lr with a number above 0, found '1e400'"),
        (
            "local:optimizer=adamw",
            "release step 1",
            "sgd or adam, found 'adamw'; write optimizer=adam or sgd",
        ),
        ("local:epochs=1:batch=2:lr=1:shuffle=x", "release step 1", "a whole number as SEED, found 'x'"),
        ("clip:1,local:epochs=1:batch=2:lr=1", "release step 2", "as the first step only"),
        ("local:epochs=1:batch=2:lr=1,gradient", "release step 2 ('gradient')", "as the first step only"),
        ("local:epochs=1:batch=2:lr=1,mean:2", "release step 2 ('mean:2')", "leave the mean out"),
        ("clip:1,gaussian:1,mask:0.5,prune:0.5", "release step 4 ('prune:0.5')", "put it before the noise"),
    ],
)
def test_refused(text: str, place: str, words: str) -> None:
    with pytest.raises(ReleaseError) as caught:
        ReleaseSpec.parse(text)
    assert str(caught.value).startswith(place)
    assert words in str(caught.value)
    # What was expected or stands in the way, and what to do.
    assert "; " in str(caught.value).removeprefix(f"release step 1 ({text!r}): ")


@pytest.mark.parametrize("usage", usages())
def test_what_refusals_advise_is_accepted(usage: str) -> None:
    name = usage.partition(":")[0]
    with pytest.raises(ReleaseError) as caught:
        ReleaseSpec.parse(f"{name}::x=:::")
    advised = re.search(r"; write it like (\S+)$", str(caught.value))
    assert advised
    first = "mean:2," if name in ("secagg", "dropout") else ""
    assert ReleaseSpec.parse(first + advised[1])


PIECES = st.sampled_from(
    [
        "gradient",
        "local",
        "mean",
        "secagg",
        *STEPS,
        *SCALES,
        "clip:1",
        "prune:0.5",
        "mask:0.25:3",
        "mean:2",
        "mean:all",
        "secagg:2",
        "share:*",
        "dropout:0.5",
        "local:epochs=1:batch=2:lr=0.1",
        "local:epochs=2:batch=all:lr=1:momentum=0.5:shuffle=1",
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


COUNT = st.integers(min_value=1, max_value=2**63 - 1)
PATTERN = st.text(st.characters(exclude_characters=":, ", exclude_categories=("C", "Z")), min_size=1, max_size=9)
SHARE = PATTERN.map(Share)
TRAINING = st.one_of(
    st.builds(LocalTraining, COUNT, st.one_of(st.none(), COUNT), POSITIVE, RATIO, POSITIVE, st.just("sgd")),
    st.builds(
        LocalTraining, COUNT, COUNT, POSITIVE, st.just(0.0), POSITIVE, st.just("adam"), st.one_of(st.none(), COUNT)
    ),
)
UPLOAD = st.one_of(QUIET, SHARE, RATIO.map(Dropout))


NOISE = st.builds(Noise, st.sampled_from(sorted(SCALES)), POSITIVE)


@given(st.lists(QUIET, max_size=4), st.one_of(st.none(), NOISE), st.one_of(st.none(), MASK))
def test_text_loses_nothing(quiet: list[object], noise: Noise | None, after: Mask | None) -> None:
    spec = ReleaseSpec(tuple(quiet), noise, (after,) if noise is not None and after is not None else ())
    assert ReleaseSpec.parse(str(spec)) == spec


@given(
    st.one_of(TRAINING, st.tuples(st.lists(st.one_of(QUIET, SHARE), max_size=2), st.one_of(st.none(), COUNT))),
    st.lists(UPLOAD, max_size=3),
    st.one_of(st.none(), st.integers(min_value=2, max_value=2**63 - 1)),
    st.lists(UPLOAD, max_size=2),
    st.one_of(st.none(), NOISE),
)
def test_text_of_uploads_loses_nothing(
    first: LocalTraining | tuple[list[Step], int | None],
    client: list[Step],
    clients: int | None,
    server: list[Step],
    noise: Noise | None,
) -> None:
    before = [] if isinstance(first, LocalTraining) else [*first[0], Mean(first[1])]
    aggregation = [] if clients is None else [SecureAggregation(clients)]
    training = first if isinstance(first, LocalTraining) else None
    spec = ReleaseSpec((*before, *client, *aggregation, *server), noise, training=training)
    assert ReleaseSpec.parse(str(spec)) == spec
    assert spec.is_joint
    assert spec.sample_steps == tuple(before[:-1])
    stages = (spec.client_steps, spec.server_steps)
    assert stages == ((tuple(client), tuple(server)) if clients is not None else ((*client, *server), ()))
    assert spec.num_clients == (clients or 1)
    assert str(spec).split(",")[0].partition(":")[0] == spec.names[0]


@pytest.mark.parametrize("after", [Clip(1.0), Prune(0.5), Dropout(0.5)], ids=str)
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
    assert {usage.partition(":")[0] for usage in usages()} == {
        "ats", "gradient", "local", "mean", "secagg", *STEPS, *SCALES,
    }  # fmt: skip
    assert usages()["mask:RATIO[:SEED]"]


def test_grammar_and_reports_load_without_torch() -> None:
    code = "import sys, riskaudit.report, riskaudit.release.grammar; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_registering_twice_is_refused() -> None:
    with pytest.raises(ReleaseError, match="'clip' is registered twice"):
        register(Clip)


@pytest.mark.parametrize(
    "text",
    [
        "gaussian:0_01", "gaussian:٠.٥", "clip:1_0,gaussian:1", "prune:0_5", "mask:0.5:1_0", "mean:1_0",
        "local:epochs=1_0:batch=4:lr=0.1", "local:epochs=٢:batch=4:lr=0.1", "local:epochs=1:batch=4:lr=1_0",
        "local:epochs=1:batch=4:lr=0.1:momentum=0_9", "secagg:1_0,mean:4", "ats:7-4-1_5",
    ],
)  # fmt: skip
def test_numbers_are_read_as_everybody_reads_them(text: str) -> None:
    """Python takes 0_01 for 1: a hundred times the noise that was meant."""
    with pytest.raises(ReleaseError, match="found"):
        ReleaseSpec.parse(text)
