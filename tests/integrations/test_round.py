"""A round of local training with batch norm and momentum, as frameworks exchange it: reviewed, and buffers covered."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from step_cases import LIMIT, PRIOR_STD, arrays, network

from riskaudit.errors import GuardError
from riskaudit.guard import Guard, Policy, Recording
from riskaudit.integrations.local_step import review_round

COUNT, ENOUGH, TOO_LITTLE = 8, 150.0, 1e-4
BUFFERS = ("1.running_mean", "1.running_var", "1.num_batches_tracked")


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return PRIOR_STD * torch.randn(COUNT, 6, generator=generator), torch.arange(COUNT) % 3


def trained(model: torch.nn.Module, noise_std: float, **policy) -> Recording:
    """Two epochs of shuffled mini-batches, and the noise that the guard is told of."""
    limits = Policy(**{"max_revealed": LIMIT, "buffers": "reset", **policy})
    guard = Guard(model.train(), "cross-entropy", limits, prior_std=PRIOR_STD, release=f"gaussian:{noise_std}")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recording = guard.record(optimizer)
    inputs, targets = samples()
    for _ in range(2):
        for part in torch.randperm(COUNT).split(4):
            optimizer.zero_grad()
            recording.loss(inputs[part], targets[part]).backward()
            optimizer.step()
    recording.add_noise()
    return recording


def exchanged(kind: str, noise_std: float, **policy):
    """Recording, what was received, what is to be sent."""
    model = network()
    received = arrays(model)
    recording = trained(model, noise_std, **policy)
    after = arrays(model)
    if kind == "difference":
        return recording, received, {name: after[name] - received[name] for name in after}
    if kind == "trainable":
        return recording, received, {name: value for name, value in after.items() if name not in BUFFERS}
    return recording, received, after


@pytest.mark.parametrize("kind", ["weights", "difference", "trainable"])
def test_a_round_within_the_policy_leaves_but_for_its_buffers(kind) -> None:
    recording, received, outgoing = exchanged(kind, ENOUGH)
    decision = review_round(recording, received, outgoing, difference=kind == "difference")
    assert decision.update is not None, decision.reasons
    assert decision.noise_std == 0
    assert list(decision.update) == list(outgoing)
    for name, value in outgoing.items():
        assert decision.update[name].dtype == value.dtype
        expected = value
        if name in BUFFERS:
            assert (value != (0 if kind == "difference" else received[name])).any()
            expected = np.zeros_like(value) if kind == "difference" else received[name]
        np.testing.assert_array_equal(decision.update[name], expected)
    assert any("1.running_mean" in reason for reason in decision.reasons) == (kind != "trainable")


@pytest.mark.parametrize("kind", ["weights", "difference"])
def test_a_round_over_the_limit_is_withheld_or_sanitised(kind) -> None:
    recording, received, outgoing = exchanged(kind, TOO_LITTLE)
    decision = review_round(recording, received, outgoing, difference=kind == "difference")
    assert decision.update is None
    assert "reveal more than" in decision.reasons[0]
    recording, received, outgoing = exchanged(kind, TOO_LITTLE, on_violation="sanitise")
    decision = review_round(recording, received, outgoing, difference=kind == "difference")
    assert decision.action == "sanitise", decision.reasons
    assert max(exposure.revealed.high for exposure in decision.exposures) <= LIMIT
    names = [name for name in outgoing if name not in BUFFERS]
    noise = np.concatenate([(decision.update[name] - outgoing[name]).ravel() for name in names])
    assert noise.std() == pytest.approx(decision.noise_std, rel=0.6)


def test_numbered_arrays_are_taken_in_the_models_order() -> None:
    recording, received, outgoing = exchanged("weights", ENOUGH)
    numbered = [{str(place): value for place, value in enumerate(one.values())} for one in (received, outgoing)]
    decision = review_round(recording, *numbered)
    assert decision.update is not None, decision.reasons
    assert list(decision.update) == list(numbered[1])
    np.testing.assert_array_equal(decision.update["0"], outgoing["0.weight"])


def test_buffers_that_would_leave_are_withheld_where_nobody_says_to_reset_them() -> None:
    recording, received, outgoing = exchanged("weights", ENOUGH, buffers="block")
    decision = review_round(recording, received, outgoing)
    assert decision.update is None
    assert "1.running_mean" in decision.reasons[0]


@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_a_training_that_began_elsewhere_is_refused(name) -> None:
    recording, received, outgoing = exchanged("weights", ENOUGH)
    received[name] = received[name] + 1
    with pytest.raises(GuardError, match="didn't begin at the weights"):
        review_round(recording, received, outgoing)


def test_weights_that_hold_something_else_are_withheld() -> None:
    recording, received, outgoing = exchanged("weights", ENOUGH, max_revealed=1.0)
    outgoing["0.weight"] = outgoing["0.weight"] + 100 * ENOUGH
    assert review_round(recording, received, outgoing).update is None


@pytest.mark.skipif(find_spec("flwr") is None, reason="flwr is not installed")
class TestFlower:
    """The mod with a whole round."""

    @pytest.fixture(autouse=True)
    def _run(self, monkeypatch) -> None:
        from flwr.supercore.task_identity import TaskIdentity

        for name in ("_run_id", "_task_id", "_node_id"):
            monkeypatch.setattr(TaskIdentity, name, 2)

    def reply(self, noise_std: float, handed: int = 1, **policy):
        from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict

        from riskaudit.integrations.flower import guard_mod, hand_over_round

        def call(message, context):
            model = network()
            recording = trained(model, noise_std, **policy)
            for _ in range(handed):
                hand_over_round(recording)
            records = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": COUNT})}
            return Message(RecordDict(records), reply_to=message)

        message = Message(
            RecordDict({"arrays": ArrayRecord(network().state_dict())}), dst_node_id=2, message_type="train"
        )
        context = Context(run_id=2, node_id=2, node_config={}, state=RecordDict(), run_config={})
        return guard_mod(message, context, call)

    def test_what_leaves_is_the_reviewed_round_with_the_buffers_that_came(self) -> None:
        reply = self.reply(ENOUGH)
        received = arrays(network())
        left = {name: value.numpy() for name, value in reply.content["arrays"].items()}
        assert list(left) == list(received)
        for name in BUFFERS:
            np.testing.assert_array_equal(left[name], received[name])
        assert (left["0.weight"] != received["0.weight"]).any()
        assert dict(reply.content["metrics"]) == {"num-examples": COUNT}

    def test_what_breaks_the_policy_or_was_handed_over_twice_is_withheld(self) -> None:
        assert self.reply(TOO_LITTLE).has_error()
        assert self.reply(ENOUGH, handed=2).has_error()
        assert self.reply(ENOUGH, buffers="block").has_error()

    def test_handing_over_without_the_mod_is_refused(self) -> None:
        from riskaudit.integrations.flower import hand_over_round

        with pytest.raises(GuardError, match="no guard_mod"):
            hand_over_round(trained(network(), ENOUGH))


@pytest.mark.skipif(find_spec("nvflare") is None, reason="nvflare is not installed")
class TestNvflare:
    """The seal and the filter with a whole round."""

    def sealed(self, noise_std: float, **policy):
        from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

        from riskaudit.integrations.nvflare import seal_round

        model = network()
        received = FLModel(params=arrays(model), params_type=ParamsType.FULL, current_round=3)
        recording = trained(model, noise_std, **policy)
        difference = {name: value - recording.start[name] for name, value in model.state_dict().items()}
        meta = {"NUM_STEPS_CURRENT_ROUND": COUNT}
        result = FLModel(params=difference, params_type="DIFF", current_round=3, meta=meta)
        return result, seal_round(result, received, recording)

    def filtered(self, result):
        from nvflare.apis.dxo import from_shareable
        from nvflare.apis.fl_context import FLContext
        from nvflare.app_common.utils.fl_model_utils import FLModelUtils

        from riskaudit.integrations.nvflare import RiskFilter

        shareable = FLModelUtils.to_shareable(result)
        data = shareable["DXO"]["data"]
        shareable["DXO"]["data"] = {name: value.numpy().copy() for name, value in data.items()}
        return from_shareable(RiskFilter().process(shareable, FLContext()))

    def test_a_sealed_round_passes_without_its_buffers(self) -> None:
        result, decision = self.sealed(ENOUGH)
        assert decision.update is not None, decision.reasons
        passed = self.filtered(result)
        assert set(passed.data) == set(arrays(network()))
        assert not any(passed.data[name].any() for name in BUFFERS)
        assert passed.data["0.weight"].any()
        assert passed.meta == {"NUM_STEPS_CURRENT_ROUND": COUNT}

    def test_a_round_that_is_only_warned_of_passes_without_its_buffers(self) -> None:
        result, decision = self.sealed(TOO_LITTLE, on_violation="warn")
        assert (decision.action, tuple(decision.reset)) == ("warn", BUFFERS)
        passed = self.filtered(result)
        assert passed.data["0.weight"].any()
        assert not any(passed.data[name].any() for name in BUFFERS)

    def test_a_round_that_breaks_the_policy_leaves_nothing(self) -> None:
        result, decision = self.sealed(TOO_LITTLE)
        assert decision.update is None
        assert (self.filtered(result).data, self.filtered(result).meta) == ({}, {})

    def test_places_to_download_from_are_withheld_and_the_version_is_named(self, caplog) -> None:
        from nvflare.apis.dxo import DXO, DataKind, from_shareable
        from nvflare.apis.fl_context import FLContext
        from nvflare.fuel.utils.fobs.decomposers.via_downloader import LazyDownloadRef

        from riskaudit.integrations.nvflare import TICKET, RiskFilter

        placeholder = LazyDownloadRef.__new__(LazyDownloadRef)
        ticket = {"digest": "", "expires": 1e12, "samples": 1}
        shareable = DXO(DataKind.WEIGHT_DIFF, {"0.weight": placeholder}, {TICKET: ticket}).to_shareable()
        assert from_shareable(RiskFilter().process(shareable, FLContext())).data == {}
        assert "NVFLARE 2.9 or newer" in caplog.text
