"""The clients: the second adds next to no noise, and its guard notices."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from guarded.task import MOMENTUM, digits_of, network, train_round
from riskaudit.guard import Guard, Policy
from riskaudit.integrations.flower import guard_mod, hand_over_round

app = ClientApp(mods=[guard_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    config, node = context.run_config, context.node_config
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    model.train()
    digits = digits_of(int(node["partition-id"]), int(node["num-partitions"]))
    noise_std = float(config["careless-noise" if node["partition-id"] == 1 else "careful-noise"])

    # Running statistics of batch norm are means over the digits: they stay here.
    policy = Policy(max_revealed=0.2, on_violation=str(config["on-violation"]), buffers="reset")
    guard = Guard(
        model, "cross-entropy", policy, prior_std=0.37, release=f"gaussian:{noise_std}", log=node.get("guard-log")
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=float(config["learning-rate"]), momentum=MOMENTUM)
    recording = guard.record(optimizer)
    loss = train_round(recording, optimizer, digits, int(config["epochs"]))
    recording.add_noise()
    hand_over_round(recording)

    # guard_mod lets the number of examples pass and drops the loss, which says something about the digits.
    metrics = MetricRecord({"num-examples": len(digits[0]), "train-loss": loss})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
