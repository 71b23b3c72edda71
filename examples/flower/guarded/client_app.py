"""The clients: the second adds next to no noise, and its guard notices."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from guarded.task import batch_of, local_step, network
from riskaudit.guard import Guard, Policy
from riskaudit.integrations.flower import guard_mod, hand_over

app = ClientApp(mods=[guard_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    config, node = context.run_config, context.node_config
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    batch = batch_of(int(node["partition-id"]), int(node["num-partitions"]))
    noise_std = float(config["careless-noise" if node["partition-id"] == 1 else "careful-noise"])

    policy = Policy(max_revealed=0.2, on_violation=str(config["on-violation"]))
    guard = Guard(
        model, "cross-entropy", policy, prior_std=0.37, release=f"gaussian:{noise_std}", log=node.get("guard-log")
    )
    step_size = float(config["step-size"])
    hand_over(guard, batch, step_size=step_size)

    loss = local_step(model, batch, step_size, noise_std)
    # guard_mod lets the number of examples pass and drops the loss, which says something about the batch.
    metrics = MetricRecord({"num-examples": len(batch[0]), "train-loss": loss})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
