"""The Flower mod alone: whatever an app does, only what was reviewed is in the reply."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import received_cases
import torch
from step_cases import ENOUGH, STEP_SIZE, TOO_LITTLE, arrays, batch, guard_of, network, train

pytest.importorskip("flwr", reason="flwr is not installed")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from riskaudit.errors import GuardError
from riskaudit.guard import AuditLog
from riskaudit.integrations.flower import MOD_FAILED_PRECONDITION, WITHHELD, GuardMod, guard_mod, hand_over

MARKER = "patient 4711"


@pytest.fixture(autouse=True)
def _run(monkeypatch) -> None:
    """A message belongs to a run and a task, which Flower's processes know."""
    from flwr.supercore.task_identity import TaskIdentity

    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 2)


def context_of() -> Context:
    return Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})


def message_of(message_type: str = "train") -> Message:
    content = RecordDict({"arrays": ArrayRecord(network().state_dict()), "config": ConfigRecord({"server-round": 1})})
    return Message(content, dst_node_id=2, message_type=message_type)


def reply_of(message, model, **more) -> Message:
    records = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": 4})}
    return Message(RecordDict({**records, **more}), reply_to=message)


def app_of(noise_std=ENOUGH, change=lambda reply: reply, handed=1, log=None, **policy):
    """A training function that does its step, and what the test wants done to its reply."""

    def call(message, context):
        model = network()
        for _ in range(handed):
            hand_over(guard_of(model, noise_std, log, **policy), batch(), step_size=STEP_SIZE)
        train(model, noise_std)
        return change(reply_of(message, model))

    return call


def assert_withheld(reply, message) -> None:
    assert reply.has_error()
    assert not reply.has_content()
    assert (reply.error.code, reply.error.reason) == (MOD_FAILED_PRECONDITION, WITHHELD)
    assert reply.metadata.reply_to_message_id == message.metadata.message_id


def test_the_code_is_flowers_own() -> None:
    from flwr.common.constant import ErrorCode

    assert ErrorCode.MOD_FAILED_PRECONDITION == MOD_FAILED_PRECONDITION


def test_an_update_within_the_policy_leaves_with_the_number_of_examples() -> None:
    sent = {}

    def kept(reply):
        sent.update({key: value.numpy() for key, value in reply.content["arrays"].items()})
        return reply

    reply = guard_mod(message_of(), context_of(), app_of(change=kept))
    assert reply.has_content(), reply.error
    for name, value in reply.content["arrays"].items():
        np.testing.assert_array_equal(value.numpy(), sent[name])
    assert dict(reply.content["metrics"]) == {"num-examples": 4}


def test_a_sanitised_update_leaves_changed(tmp_path) -> None:
    log = tmp_path / "guard.jsonl"
    message = message_of()
    reply = guard_mod(message, context_of(), app_of(TOO_LITTLE, on_violation="sanitise", log=log))
    assert reply.has_content(), reply.error
    (entry,) = AuditLog(log).entries()
    assert entry["decision"] == "sanitise"
    received = arrays(network())
    step = {name: received[name] - value.numpy() for name, value in reply.content["arrays"].items()}
    noise = np.concatenate([step[name].ravel() for name, _ in network().named_parameters()]) / STEP_SIZE
    assert noise.std() == pytest.approx(entry["noise_std"], rel=0.5)


def raising(error):
    def call(message, context):
        raise error

    return call


@pytest.mark.parametrize(
    "call",
    [
        app_of(TOO_LITTLE),
        app_of(handed=0),
        app_of(handed=2),
        raising(ValueError(MARKER)),
        raising(GuardError("words of the guard")),
        lambda message, context: Message(Error(0, MARKER), reply_to=message),
        lambda message, context: None,
        app_of(change=lambda reply: reply.content.array_records.clear() or reply),
        app_of(change=lambda reply: reply.content.__setitem__("more", ArrayRecord([np.ones(3)])) or reply),
        app_of(change=lambda reply: reply.content["arrays"].__setitem__("0.bias", Array(np.ones(4))) or reply),
    ],
    ids=[
        "over the limit", "no hand-over", "two hand-overs", "an exception", "the guard's own error", "an error reply",
        "no reply", "no arrays", "more arrays", "other shapes",
    ],
)  # fmt: skip
def test_everything_else_is_one_and_the_same_error(call, caplog) -> None:
    message = message_of()
    with caplog.at_level(logging.DEBUG):
        assert_withheld(guard_mod(message, context_of(), call), message)
    assert MARKER not in caplog.text
    assert "withheld" in caplog.text


def test_metrics_and_configurations_are_restricted_to_allowed_numbers() -> None:
    def more(reply):
        reply.content["metrics"] = MetricRecord({"num-examples": 4, "loss": 0.5, "bad": math.nan, "row": 4711})
        reply.content["lists"] = MetricRecord({"num-examples": [1, 2]})
        reply.content["note"] = ConfigRecord({"text": MARKER, "num-examples": MARKER, "flag": True})
        reply.content["fitres.status"] = ConfigRecord({"code": 0, "message": MARKER})
        reply.content["fitres.metrics"] = ConfigRecord({"text": MARKER})
        reply.content["other.status"] = ConfigRecord({"code": 4711, "message": MARKER})
        return reply

    reply = GuardMod(metrics=["loss", "bad"])(message_of(), context_of(), app_of(change=more))
    assert reply.has_content(), reply.error
    assert dict(reply.content["metrics"]) == {"num-examples": 4, "loss": 0.5}
    assert set(reply.content) == {"arrays", "metrics", "fitres.status", "fitres.metrics"}
    assert dict(reply.content["fitres.metrics"]) == {}
    assert dict(reply.content["fitres.status"]) == {"code": 0, "message": ""}


def test_names_and_numbers_of_records_carry_nothing() -> None:
    def more(reply):
        for row, pixel in enumerate(batch()[0][0].tolist()):
            reply.content[f"{MARKER}, {row}"] = MetricRecord({"num-examples": 4, "loss": pixel})
        reply.content["extra"] = MetricRecord({"loss": 0.123456789})
        return reply

    reply = GuardMod({"loss": (0, 1)}, records=["extra"])(message_of(), context_of(), app_of(change=more))
    assert set(reply.content) == {"arrays", "metrics", "extra"}
    assert dict(reply.content["extra"]) == {"loss": 0.12346}


@pytest.mark.parametrize("count", [5, 0, 3.25, 4.0, -1, 2**40])
def test_a_count_that_is_none_is_withheld(count) -> None:
    def counted(reply):
        reply.content["metrics"] = MetricRecord({"num-examples": count})
        return reply

    message = message_of()
    assert_withheld(guard_mod(message, context_of(), app_of(change=counted)), message)


def test_a_name_of_the_arrays_that_nobody_asked_for_is_withheld() -> None:
    def renamed(reply):
        reply.content[MARKER] = reply.content.pop("arrays")
        return reply

    message = message_of()
    assert_withheld(guard_mod(message, context_of(), app_of(change=renamed)), message)


def test_the_order_of_the_arrays_is_the_models() -> None:
    def turned(reply):
        reply.content["arrays"] = ArrayRecord(dict(reversed(list(reply.content["arrays"].items()))))
        return reply

    reply = guard_mod(message_of(), context_of(), app_of(change=turned))
    assert list(reply.content["arrays"]) == list(network().state_dict())


def test_arrays_of_more_bits_than_were_received_are_withheld() -> None:
    def wide(reply):
        arrays = {name: Array(value.numpy().astype(np.float64)) for name, value in reply.content["arrays"].items()}
        reply.content["arrays"] = ArrayRecord(arrays)
        return reply

    message = message_of()
    assert_withheld(guard_mod(message, context_of(), app_of(change=wide)), message)


def test_a_batch_that_is_used_again_after_the_hand_over_is_reviewed_as_it_was() -> None:
    inputs, targets = batch()

    def call(message, context):
        model = network()
        hand_over(guard_of(model, ENOUGH), (inputs, targets), step_size=STEP_SIZE)
        train(model, ENOUGH)
        inputs.zero_()
        return reply_of(message, model)

    reply = guard_mod(message_of(), context_of(), call)
    assert reply.has_content(), reply.error


def test_bytes_behind_an_arrays_end_stay_at_home() -> None:
    def padded(reply):
        array = reply.content["arrays"]["0.bias"]
        array.data = array.data + MARKER.encode()
        return reply

    reply = guard_mod(message_of(), context_of(), app_of(change=padded))
    if reply.has_content():
        assert all(MARKER.encode() not in value.data for value in reply.content["arrays"].values())


@pytest.mark.parametrize("message_type", ["evaluate", "query", "query.private"])
def test_other_replies_hold_allowed_numbers_only(message_type) -> None:
    message = message_of(message_type)
    metrics = RecordDict({"metrics": MetricRecord({"num-examples": 4, "loss": 0.5})})
    reply = guard_mod(message, context_of(), lambda message, context: Message(metrics, reply_to=message))
    assert dict(reply.content["metrics"]) == {"num-examples": 4}
    assert_withheld(guard_mod(message, context_of(), raising(ValueError(MARKER))), message)
    assert_withheld(guard_mod(message, context_of(), lambda message, _: reply_of(message, network())), message)


def test_reviews_are_numbered_in_the_clients_context(tmp_path) -> None:
    log, context = tmp_path / "guard.jsonl", context_of()
    for _ in range(3):
        guard_mod(message_of(), context, app_of(log=log))
    assert [entry["round"] for entry in AuditLog(log).entries()] == [1, 2, 3]


def test_a_hand_over_that_nobody_listens_to_is_an_error() -> None:
    with pytest.raises(GuardError, match="guard_mod"):
        hand_over(guard_of(network(), ENOUGH), batch(), step_size=STEP_SIZE)


def test_named_actions_and_the_apps_own_mods() -> None:
    app = ClientApp(mods=[guard_mod])
    app.train("private")(app_of())
    reply = app(message_of("train.private"), context_of())
    assert reply.has_content(), reply.error


class TestSecureAggregation:
    """secaggplus_mod outside, the guard inside: what is masked was reviewed."""

    @pytest.fixture
    def asked(self):
        """Runs SecAgg+ for two clients up to the masked vectors: their replies, and how often the app was called."""
        from flwr.client.mod import secaggplus_mod
        from flwr.client.mod.utils import make_ffn

        def run(noise_stds):
            calls = []

            def app(noise_std):
                def call(message, context):
                    calls.append(noise_std)
                    model = network()
                    hand_over(guard_of(model, noise_std), batch(), step_size=STEP_SIZE)
                    train(model, noise_std)
                    parameters = ArrayRecord([value.numpy() for value in model.state_dict().values()])
                    records = {
                        "fitres.parameters": parameters,
                        "fitres.num_examples": MetricRecord({"num_examples": 4}),
                        "fitres.metrics": ConfigRecord({"note": MARKER}),
                        "fitres.status": ConfigRecord({"code": 0, "message": MARKER}),
                    }
                    return Message(RecordDict(records), reply_to=message)

                return make_ffn(call, [secaggplus_mod, guard_mod])

            nodes = {number: (app(std), context_of()) for number, std in enumerate(noise_stds, start=1)}

            def ask(number, stage, config, arrays=None):
                content = RecordDict({"secaggplus_configs": ConfigRecord({"stage": stage, **config})})
                if arrays is not None:
                    content["fitins.parameters"] = arrays
                call, context = nodes[number]
                return call(Message(content, dst_node_id=number, message_type="train"), context)

            def config_of(reply):
                return reply.content["secaggplus_configs"]

            settings = {
                "sample_num": 2, "share_num": 2, "threshold": 2, "clipping_range": 8.0, "target_range": 1 << 20,
                "mod_range": 1 << 30, "max_weight": 100.0,
            }  # fmt: skip
            keys = {}
            for number in nodes:
                found = config_of(ask(number, "setup", settings))
                keys[str(number)] = [found["pk1"], found["pk2"]]
            shares = {number: config_of(ask(number, "share_keys", keys)) for number in nodes}
            replies = {}
            for number in nodes:
                mail = [
                    (source, text)
                    for source, found in shares.items()
                    for to, text in zip(found["dsts"], found["ctxts"], strict=True)
                    if to == number
                ]
                sources, texts = (list(part) for part in zip(*mail, strict=True))
                received = ArrayRecord([value.numpy() for value in network().state_dict().values()])
                try:
                    replies[number] = ask(number, "collect_masked_vectors", {"srcs": sources, "ctxts": texts}, received)
                except Exception as error:
                    replies[number] = error
            return replies, calls

        return run

    def test_a_reviewed_update_is_masked_and_a_withheld_one_is_not(self, asked) -> None:
        replies, calls = asked([ENOUGH, TOO_LITTLE])
        assert calls == [ENOUGH, TOO_LITTLE], "the other stages don't reach the app"
        content = replies[1].content
        assert "masked_params" in content["secaggplus_configs"]
        assert not any(len(record) for record in content.array_records.values())
        assert MARKER not in str(content)
        # secaggplus_mod reads an error's content and fails, in words that name no data: the client has dropped out.
        assert isinstance(replies[2], ValueError)
        assert MARKER not in str(replies[2])


def test_the_review_is_of_the_received_model_not_of_the_trained_one() -> None:
    torch.manual_seed(0)
    message = message_of()
    other = Message(RecordDict({"arrays": ArrayRecord(network(7).state_dict())}), dst_node_id=2, message_type="train")
    assert_withheld(guard_mod(other, context_of(), app_of(TOO_LITTLE, on_violation="warn")), other)
    assert guard_mod(message, context_of(), app_of(TOO_LITTLE, on_violation="warn")).has_content()


def test_a_model_that_looks_changed_to_leak_never_reaches_the_app() -> None:
    planted = received_cases.mlp()
    received_cases.plant_imprint(planted, planted.layers[0])
    guard, reached = guard_of(received_cases.mlp(), ENOUGH), []

    def app(message, context):
        reached.append(message)
        return Message(RecordDict(), reply_to=message)

    mod = GuardMod(inspect=lambda: (guard, received_cases.inputs()))
    for model, count in ((planted, 0), (received_cases.mlp(), 1)):
        message = Message(RecordDict({"arrays": ArrayRecord(model.state_dict())}), dst_node_id=2, message_type="train")
        assert_withheld(mod(message, context_of(), app), message)
        # An ordinary model's message does, and what the app hands over is missing here.
        assert len(reached) == count


def test_an_inspection_that_fails_refuses_to_train() -> None:
    def nothing():
        raise OSError(MARKER)

    message = message_of()
    reply = GuardMod(inspect=nothing)(message, context_of(), lambda *_: pytest.fail("the app was asked"))
    assert_withheld(reply, message)
