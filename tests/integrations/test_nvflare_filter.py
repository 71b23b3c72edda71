"""The seal and the filter alone: only a result that was reviewed leaves a site."""

from __future__ import annotations

import json
import math
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import received_cases
import torch
from step_cases import ENOUGH, STEP_SIZE, TOO_LITTLE, arrays, batch, guard_of, network, train

pytest.importorskip("nvflare", reason="nvflare is not installed")

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from riskaudit.errors import GuardError
from riskaudit.integrations.nvflare import TICKET, RiskFilter, discreet, may_train, seal

MARKER = "patient 4711"
STEPS = MetaKey.NUM_STEPS_CURRENT_ROUND


def sealed(noise_std=ENOUGH, kind="DIFF", guard=None, **policy):
    """A result after one local step, and the decision about it."""
    model = network()
    received = FLModel(params=arrays(model), params_type=ParamsType.FULL, current_round=3)
    train(model, noise_std)
    after = {name: value.clone() for name, value in model.state_dict().items()}
    if kind == "DIFF":
        after = {name: value - torch.from_numpy(received.params[name]) for name, value in after.items()}
    result = FLModel(params=after, params_type=kind, current_round=3, meta={STEPS: 1, "note": MARKER})
    return result, seal(result, received, guard or guard_of(model, noise_std, **policy), batch(), step_size=STEP_SIZE)


def sent(result: FLModel) -> Shareable:
    """As it reaches the filter: NVFLARE turns a script's tensors into arrays."""
    shareable = FLModelUtils.to_shareable(result)
    data = shareable["DXO"]["data"]
    shareable["DXO"]["data"] = {name: value.numpy().copy() for name, value in data.items()}
    return shareable


def filtered(shareable: Shareable, **settings) -> Shareable:
    return RiskFilter(**settings).process(shareable, FLContext())


def assert_withheld(shareable: Shareable) -> None:
    dxo = from_shareable(filtered(shareable))
    assert (dxo.data, dxo.meta) == ({}, {})
    assert MARKER not in str(filtered(shareable))


@pytest.mark.parametrize("kind", ["DIFF", "FULL"])
def test_a_reviewed_result_leaves_without_its_ticket(kind) -> None:
    result, decision = sealed(kind=kind)
    assert decision.action == "allow", decision.reasons
    assert decision.round == 3
    shareable = sent(result)
    passed = filtered(shareable)
    dxo = from_shareable(passed)
    assert dxo.data_kind == (DataKind.WEIGHT_DIFF if kind == "DIFF" else DataKind.WEIGHTS)
    assert dxo.meta == {STEPS: 1}
    assert passed.get_header(AppConstants.CURRENT_ROUND) == 3
    for name, value in from_shareable(shareable).data.items():
        np.testing.assert_array_equal(dxo.data[name], value)


@pytest.mark.parametrize("kind", ["DIFF", "FULL"])
def test_a_sanitised_result_takes_the_place_of_the_old(kind) -> None:
    torch.manual_seed(4)
    result, decision = sealed(TOO_LITTLE, kind=kind, on_violation="sanitise")
    assert decision.action == "sanitise", decision.reasons
    assert all(isinstance(value, torch.Tensor) for value in result.params.values())
    passed = from_shareable(filtered(sent(result))).data
    start = arrays(network()) if kind == "FULL" else dict.fromkeys(passed, 0.0)
    noise = np.concatenate([(passed[name] - start[name]).ravel() for name, _ in network().named_parameters()])
    assert noise.std() / STEP_SIZE == pytest.approx(decision.noise_std, rel=0.5)


def test_a_withheld_result_is_empty_even_without_the_filter() -> None:
    result, decision = sealed(TOO_LITTLE)
    assert decision.action == "block"
    assert (result.params, result.metrics, result.meta) == ({}, None, {})
    assert_withheld(sent(result))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "change",
    [
        lambda dxo: dxo["meta"].pop(TICKET),
        lambda dxo: dxo["meta"].update({TICKET: MARKER}),
        lambda dxo: dxo["meta"].update({TICKET: {}}),
        lambda dxo: dxo["meta"][TICKET].update(expires=time.time() - 1),
        lambda dxo: dxo["meta"][TICKET].update(expires=math.inf),
        lambda dxo: dxo["meta"][TICKET].update(expires=math.nan),
        lambda dxo: dxo["meta"][TICKET].update(expires=MARKER),
        lambda dxo: dxo["data"]["0.bias"].__setitem__(0, 1.0),
        lambda dxo: dxo["data"].pop("0.bias"),
        lambda dxo: dxo["data"].update(more=np.ones(2)),
        lambda dxo: dxo["data"].update(more=MARKER),
        lambda dxo: dxo["data"].update(more=np.array([MARKER], dtype=object)),
        lambda dxo: dxo["data"].update({"0.bias": dxo["data"]["0.bias"].astype(np.float64)}),
        lambda dxo: dxo["data"].update({"0.weight": dxo["data"]["0.weight"].T}),
        lambda dxo: dxo.update(kind=DataKind.WEIGHTS),
        lambda dxo: dxo.update(kind=DataKind.ANALYTIC),
        lambda dxo: dxo.update(kind=DataKind.COLLECTION),
        lambda dxo: dxo.update(data={}),
        lambda dxo: dxo.update(meta=MARKER),
        lambda dxo: dxo.clear(),
    ],
    ids=[
        "no ticket", "a text", "an empty ticket", "expired", "never expires", "no time", "a text as time", "a number",
        "an entry less", "an entry more", "a text more", "objects", "a dtype", "a shape", "other kind", "analytics",
        "a collection", "no data", "broken metadata", "nothing",
    ],
)  # fmt: skip
def test_whatever_does_not_match_its_ticket_is_withheld(change) -> None:
    result, _ = sealed()
    shareable = sent(result)
    change(shareable["DXO"])
    assert_withheld(shareable)


def test_what_is_no_dxo_is_withheld() -> None:
    shareable = Shareable()
    shareable["rows"] = MARKER
    assert_withheld(shareable)


def test_an_error_keeps_its_code_only() -> None:
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION, {"reason": MARKER})
    reply["rows"] = MARKER
    passed = filtered(reply)
    assert passed.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert MARKER not in str(passed)
    assert filtered(make_reply(MARKER)).get_return_code() == ReturnCode.EXECUTION_EXCEPTION


def test_metrics_and_metadata_are_restricted_to_allowed_numbers() -> None:
    found = {"accuracy": 0.5, "loss": math.nan, "row": 4711, "note": MARKER, "flag": True}
    metrics = DXO(DataKind.METRICS, dict(found), {STEPS: 2, "note": MARKER}).to_shareable()
    passed = from_shareable(filtered(metrics, metrics=["accuracy", "loss", "note", "flag"]))
    assert (passed.data, passed.meta) == ({"accuracy": 0.5}, {STEPS: 2})
    assert from_shareable(filtered(metrics)).data == {}

    result, _ = sealed()
    result.metrics = dict(found)
    passed = from_shareable(filtered(sent(result), metrics=["accuracy"]))
    assert passed.meta == {STEPS: 1, MetaKey.INITIAL_METRICS: {"accuracy": 0.5}}


@pytest.mark.parametrize("steps", [0, -3, 5, 1.0, True, 2**40])
def test_a_number_of_steps_that_is_none_is_withheld(steps) -> None:
    result, _ = sealed()
    result.meta[STEPS] = steps
    assert_withheld(sent(result))


def test_headers_and_the_order_of_names_carry_nothing() -> None:
    result, _ = sealed()
    shareable = sent(result)
    shareable.set_header(AppConstants.NUM_ROUNDS, 2**50 + 4711)
    shareable["DXO"]["data"] = dict(reversed(list(shareable["DXO"]["data"].items())))
    passed = filtered(shareable)
    assert passed.get_header(AppConstants.NUM_ROUNDS) is None
    assert list(from_shareable(passed).data) == sorted(network().state_dict())


@pytest.mark.parametrize("params", [None, {}, {"0.bias": MARKER}], ids=["none", "empty", "a text"])
def test_sealing_never_raises(params) -> None:
    model = network()
    result = FLModel(params={"x": 1}, meta={"note": MARKER})
    result.params = params
    decision = seal(
        result, FLModel(params=arrays(model)), guard_of(model, ENOUGH), batch(), step_size=STEP_SIZE
    )  # fmt: skip
    assert decision.action == "block"
    assert (result.params, result.meta) == ({}, {})
    assert MARKER not in str(decision.reasons)


def test_an_exception_loses_its_words() -> None:
    try:
        with discreet():
            raise ValueError(MARKER)
    except GuardError as error:
        shown = "".join(traceback.format_exception(error))
    assert MARKER not in shown.replace("raise ValueError(MARKER)", "")
    assert "ValueError at test_nvflare_filter.py" in shown


def test_the_examples_privacy_file_names_the_filter() -> None:
    example = Path(__file__).parents[2] / "examples" / "nvflare" / "privacy.json"
    (scope,) = json.loads(example.read_text())["scopes"]
    assert scope["task_result_filters"][0]["path"] == f"{RiskFilter.__module__}.{RiskFilter.__qualname__}"
    assert issubclass(RiskFilter, Filter)


def test_a_received_model_that_looks_changed_to_leak_may_not_be_trained_on() -> None:
    planted = received_cases.mlp()
    received_cases.plant_imprint(planted, planted.layers[0])
    guard = guard_of(received_cases.mlp(), ENOUGH)
    for model, action in ((planted, "block"), (received_cases.mlp(), "allow"), (network(), "block")):
        received = FLModel(params=arrays(model), params_type=ParamsType.FULL)
        assert may_train(received, guard, received_cases.inputs()).action == action
