"""Options of an audit are checked when they are given, each message naming its option."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from riskaudit.audit import AuditSettings
from riskaudit.errors import ReleaseError, SettingsError

ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


def accepted(**options) -> bool:
    try:
        AuditSettings(**options)
    except SettingsError:
        return False
    return True


@pytest.mark.parametrize("name", ["reference_noise", "target_rmse", "prior_std", "budget"])
@given(value=ANY_FLOAT)
def test_what_must_be_above_zero(name, value) -> None:
    assert accepted(**{name: value}) == (math.isfinite(value) and value > 0)


@pytest.mark.parametrize("name", ["solver_tolerance", "confidence"])
@given(value=ANY_FLOAT)
def test_what_must_be_between_zero_and_one(name, value) -> None:
    assert accepted(**{name: value}) == (0 < value < 1)


@given(value=ANY_FLOAT)
def test_precision(value) -> None:
    assert accepted(precision=value) == (0 < value <= 1)


@given(high=ANY_FLOAT, medium=ANY_FLOAT)
def test_thresholds(high, medium) -> None:
    assert accepted(high=high, medium=medium) == (0 <= medium <= high <= 1)


@pytest.mark.parametrize("name", ["batch_size", "max_matvecs"])
@given(value=st.integers())
def test_counts(name, value) -> None:
    assert accepted(**{name: value}) == (value >= 1)


@given(value=st.integers())
def test_seed(value) -> None:
    assert accepted(seed=value) == (0 <= value < 2**63)


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [("solver", "dens", "lanczos"), ("inverse", "lu", "neumann"), ("dtype", "bfloat16", "float64")],
)
def test_unknown_names_list_the_known(name, value, known) -> None:
    with pytest.raises(SettingsError, match=f"`{name}` .*{known}.*'{value}'"):
        AuditSettings(**{name: value})


@pytest.mark.parametrize("solver", ["lanczos", "power"])
def test_the_dense_inverse_needs_the_dense_solver(solver) -> None:
    with pytest.raises(SettingsError, match="`solver=dense` as well"):
        AuditSettings(solver=solver, inverse="dense")


@pytest.mark.parametrize("device", ["tpu", "meta", "cuda:x", "", "cpu0"])
def test_unknown_device(device) -> None:
    with pytest.raises(SettingsError, match="auto, cpu, cuda or cuda:NUMBER"):
        AuditSettings(device=device).torch_device()


def test_device() -> None:
    assert AuditSettings(device="cpu").torch_device() == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert AuditSettings().torch_device().type == expected
    with pytest.raises(SettingsError, match="use `device=cpu`"):
        AuditSettings(device="cuda:99").torch_device()


def test_dtype() -> None:
    assert AuditSettings(dtype="float32").torch_dtype() is torch.float32


def test_a_release_that_cannot_be_read_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ReleaseError, match="did you mean 'clip'"):
        AuditSettings(release="clp:1")
