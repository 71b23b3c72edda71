"""Models of settings: what they take, and the one sentence about what they refuse."""

from __future__ import annotations

import math
import pickle
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from riskaudit.errors import SettingsError
from riskaudit.policy import Policy
from riskaudit.results import Settings as Recorded
from riskaudit.settings import CHECKED, Count, Positive, Probability, Settings, Share, fields_of, option


@dataclass(frozen=True, config=CHECKED)
class Example(Settings):
    """One field of every kind."""

    noise: Positive = option(0.5, "Noise.", "Release", record="noise_std")
    share: Share | None = option(None, "Share.")
    level: Probability = option(0.9, "Level.")
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = option(0.9, "Confidence.")
    steps: Count | None = option(None, "Steps.")
    names: Annotated[tuple[str, ...], Field(min_length=1)] = option(("a",), "Names.")
    limits: tuple[Positive, ...] = option((0.1,), "Limits.")
    dtype: Literal["float32", "float64"] = option("float64", "Type.")
    python_only: bool = False


REFUSED = {
    "not above": ({"noise": 0.0}, "expected `noise` above 0, found 0"),
    "not between": ({"share": 1.5}, "expected `share` between 0 and 1, found 1.5"),
    "an end": ({"level": 1.0}, "expected `level` between 0 and 1, found 1"),
    "two bounds": ({"confidence": 0.4}, "expected `confidence` of at least 0.5 and below 1, found 0.4"),
    "too few": ({"steps": 0}, "expected `steps` of at least 1, found 0"),
    "nan": ({"noise": math.nan}, "expected a finite number above 0 for `noise`, found nan"),
    "word": ({"noise": "much"}, "expected a number above 0 for `noise`, found 'much'"),
    "truth value": ({"noise": True}, "expected a number above 0 for `noise`, found True"),
    "half a step": ({"steps": 1.5}, "expected a whole number of at least 1 for `steps`, found 1.5"),
    "nothing": ({"names": ()}, "expected at least one of `names`, found none"),
    "in a tuple": ({"limits": (0.1, -1.0)}, "expected `limits` above 0, found -1"),
    "choice": ({"dtype": "int8"}, "expected `dtype` to be one of float32, float64, found 'int8'"),
    "unknown": ({"colour": 1}, "found 'colour'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_sentence(case) -> None:
    values, sentence = REFUSED[case]
    with pytest.raises(SettingsError) as caught:
        Example(**values)
    assert str(caught.value).endswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.tensor(0.5), np.bool_(True), 0.5j], ids=repr)
def test_what_can_only_be_made_a_number_is_none(value) -> None:
    with pytest.raises(SettingsError, match="for `noise`, found"):
        Example(noise=value)


def test_numbers_of_other_libraries_and_lists() -> None:
    settings = Example(noise=np.float32(0.25), steps=np.int64(3), limits=[np.float64(0.1), 1])
    assert (settings.noise, settings.steps, settings.limits) == (0.25, 3, (0.1, 1.0))
    assert [type(value) for value in (settings.noise, settings.steps)] == [float, int]


def test_settings_are_plain_values() -> None:
    settings = Example(noise=0.25)
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert hash(Example(noise=0.25)) == hash(settings)
    with pytest.raises(AttributeError):
        settings.noise = 1.0


def test_a_field_says_what_it_is() -> None:
    assert fields_of(Example)["noise"].description == "Noise."
    assert Example.given()["noise"]["panel"] == "Release"
    assert "python_only" not in Example.given()
    assert Example(noise=0.25).record() == {"noise_std": 0.25}


def test_what_later_versions_record_is_kept_where_it_is_plain() -> None:
    values = {"seed": 1, "device": "cpu", "dtype": "float64", "solver": "dense", "inverse": "dense"}
    strange = {"table": {"a": 1}, "row": [1], "nothing": math.nan}
    settings = Recorded(**values, horizon=3, **strange)
    assert settings.model_dump()["horizon"] == 3
    assert not set(strange) & set(settings.model_dump())


def test_text_for_a_list_is_refused_as_such() -> None:
    with pytest.raises(SettingsError, match="a list for forbid_checks"):
        Policy(max_revealed=0.2, forbid_checks="labels")
