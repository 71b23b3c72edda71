"""A SuperLink and two SuperNodes for real: the example app with a client that tries to give its data away.

Both train a residual network with batch norm for two epochs of mini-batches with momentum in each of three rounds.
Round 1: the second client adds too little noise, and puts a secret into metrics, configuration, output and log.
Round 2: its training raises an exception with the secret. Round 3: its update is sanitised.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import environment, files_with, free_ports, listening, running, wait_for

import riskaudit

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_spec("flwr") is None, reason="flwr is not installed"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower"
SECRET, NUMBER = "patient-4711-has-it", 4711.28125
CARELESS, LIMIT, PRIOR_STD, SAMPLES, BATCH_SIZE = 0.0002, 0.2, 0.37, 16, 8
TRAINING = "local:epochs=2:batch=8:lr=0.05:momentum=0.9"

PLANTED_CLIENT = """
import logging
from pathlib import Path
from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp
from guarded import client_app as example
from riskaudit.integrations.flower import guard_mod

app = ClientApp(mods=[guard_mod])


@app.train()
def train(message, context):
    round = int(message.content["config"]["server-round"])
    if context.node_config["partition-id"] != 1:
        return example.train(message, context)
    secret = Path(context.node_config["secret"]).read_text()
    print(secret)
    logging.getLogger("flwr").error("row %s", secret)
    if round == 2:
        raise ValueError(f"row {secret}")
    context.run_config["on-violation"] = "block" if round == 1 else "sanitise"
    reply = example.train(message, context)
    reply.content["metrics"]["number"] = float(Path(context.node_config["secret"]).with_name("number").read_text())
    reply.content["note"] = ConfigRecord({"text": secret})
    return reply
"""

RECORDING_SERVER = """
import json
from pathlib import Path
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from guarded.task import network

app = ServerApp()


class Recording(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        self.save(f"{server_round}-sent", arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        for reply in replies:
            name = f"{server_round}-from-{reply.metadata.src_node_id}"
            error = [reply.error.code, reply.error.reason] if reply.has_error() else None
            content = {} if error else {
                key: dict(value) for key, value in reply.content.items() if not isinstance(value, ArrayRecord)
            }
            kinds = [] if error else sorted(reply.content.array_records)
            told = {"round": server_round, "name": name, "error": error, "content": content, "arrays": kinds}
            (self.folder / f"{name}.json").write_text(json.dumps(told, default=repr))
            if not error:
                self.save(name, reply.content["arrays"])
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.save(f"{server_round}-after", arrays)
        return arrays, metrics

    def save(self, name, arrays):
        np.savez(self.folder / f"{name}.npz", **{key: value.numpy() for key, value in arrays.items()})


@app.main()
def main(grid, context):
    strategy = Recording(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
    strategy.folder = Path(context.run_config["record"])
    strategy.start(grid=grid, initial_arrays=ArrayRecord(network().state_dict()), num_rounds=3)
"""


def run(folder: Path) -> None:
    """Leaves folders of the server, the submitter and two clients after three rounds."""
    app, record = folder / "app", folder / "server" / "record"
    record.mkdir(parents=True)
    shutil.copytree(EXAMPLE, app, ignore=shutil.ignore_patterns("__pycache__", "home"))
    (app / "guarded" / "planted.py").write_text(PLANTED_CLIENT)
    (app / "guarded" / "recording.py").write_text(RECORDING_SERVER)
    project = (app / "pyproject.toml").read_text()
    project = project.replace("guarded.client_app:app", "guarded.planted:app")
    project = project.replace("guarded.server_app:app", "guarded.recording:app")
    project += f'record = "{record}"\n'
    (app / "pyproject.toml").write_text(project)
    (folder / "second").mkdir()
    (folder / "second" / "secret").write_text(SECRET)
    (folder / "second" / "number").write_text(str(NUMBER))

    link, *nodes = free_ports(3)
    address = f"127.0.0.1:{link}"
    home = folder / "submitter"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "{address}"\ninsecure = true\n'
    )
    with contextlib.ExitStack() as stack:
        command = [
            "flower-superlink", "--insecure", "--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(link),
            "--disable-runtime-dependency-installation", "--database", str(folder / "server" / "state.db"),
        ]  # fmt: skip
        server_home = str(folder / "server" / "home")
        stack.enter_context(running(command, folder / "server" / "superlink.log", FLWR_HOME=server_home))
        wait_for(lambda: listening(link), "the SuperLink", 60)
        for number, (name, port) in enumerate(zip(["first", "second"], nodes, strict=True)):
            own = folder / name
            config = f'partition-id={number} num-partitions=2 guard-log="{own}/guard.jsonl" secret="{own}/secret"'
            command = [
                "flower-supernode", "--insecure", "--superlink", address, "--host", "127.0.0.1", "--port", str(port),
                "--node-config", config,
            ]  # fmt: skip
            stack.enter_context(running(command, own / "supernode.log", FLWR_HOME=str(own / "home")))
        done = subprocess.run(
            ["flwr", "run", str(app), "loop", "--stream"], cwd=home, env=environment(FLWR_HOME=str(home)),
            capture_output=True, text=True, timeout=150, check=False,
        )  # fmt: skip
        (folder / "server" / "stream.log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr


def replies(folder: Path, round: int) -> tuple[list[dict], list[dict]]:
    """What the server got in one round: updates and errors."""
    found = [json.loads(path.read_text()) for path in sorted((folder / "server" / "record").glob(f"{round}-from-*"))
             if path.suffix == ".json"]  # fmt: skip
    return [one for one in found if not one["error"]], [one for one in found if one["error"]]


def weights(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / "server" / "record" / f"{name}.npz") as held:
        return {key: held[key].astype(np.float64) for key in held.files}


def check_the_server_gets_one_update_and_one_neutral_error(federation: Path, round: int) -> None:
    updates, errors = replies(federation, round)
    assert len(updates) == len(errors) == 1
    assert errors[0]["error"] == [6, "riskaudit: withheld"]
    assert updates[0]["arrays"] == ["arrays"]
    assert updates[0]["content"] == {"metrics": {"num-examples": SAMPLES}}


def check_training_goes_on(federation: Path) -> None:
    for round in (1, 2, 3):
        before, after = weights(federation, f"{round}-sent"), weights(federation, f"{round}-after")
        assert any((before[name] != after[name]).any() for name in before)
        # Running statistics are means over the private digits: every client sends those that it got.
        statistics = [name for name in before if "running" in name or "tracked" in name]
        assert len(statistics) == 9
        for name in statistics:
            np.testing.assert_array_equal(before[name], after[name])
    assert "riskaudit: withheld" in (federation / "server" / "stream.log").read_text()


def check_nothing_private_reaches_the_server(federation: Path) -> None:
    secrets = [SECRET.encode(), str(NUMBER).encode(), struct.pack("<d", NUMBER)]
    assert files_with(secrets, federation / "server") == []
    assert files_with(secrets, federation / "submitter") == []
    # The search would find it: the client's own output has it, and so does its file.
    assert "supernode.log" in files_with(secrets, federation / "second")
    assert "the app failed with ValueError" in (federation / "second" / "supernode.log").read_text()


def check_the_sanitised_update_is_what_the_log_says_and_keeps_the_limit(federation: Path) -> None:
    updates, errors = replies(federation, 3)
    assert (len(updates), len(errors)) == (2, 0)
    log = [json.loads(line) for line in (federation / "second" / "guard.jsonl").read_text().splitlines()]
    assert [entry["decision"] for entry in log] == ["block", "sanitise"]
    total = math.hypot(log[-1]["noise_std"], CARELESS)

    sys.path.insert(0, str(EXAMPLE))
    try:
        from guarded.task import digits_of, network
    finally:
        sys.path.remove(str(EXAMPLE))
    inputs, targets = digits_of(1, 2)
    before = weights(federation, "3-sent")
    started = {name: torch.tensor(value).float() for name, value in before.items()}
    model = network().train()
    model.load_state_dict(started)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        for part in torch.arange(SAMPLES).split(BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[part]), targets[part]).backward()
            optimizer.step()
    distances = []
    for update in updates:
        after = weights(federation, update["name"])
        distances.append(
            torch.cat(
                [(torch.tensor(after[name]) - value.detach()).flatten() for name, value in model.named_parameters()]
            )
        )
    # One of the two is what this training makes, with the noise that the log names, entry by entry.
    noise = min(distances, key=lambda one: abs(float(one.std()) - total))
    assert float(noise.std()) == pytest.approx(total, rel=0.06)
    assert abs(float(noise.mean())) < 5 * total / math.sqrt(len(noise))

    # The audit of that upload, all samples at once and by other code than the guard's.
    model.load_state_dict(started)
    settings = riskaudit.AuditSettings(
        release=f"{TRAINING},gaussian:{total}", prior_mean=0.0, prior_std=PRIOR_STD, solver="dense",
        proxies=("informed_revealed_fraction", "informed_posterior_rmse"),
    )  # fmt: skip
    result = riskaudit.audit(model, riskaudit.Samples.from_tensors(inputs, targets), settings)
    revealed = [row.proxies["informed_revealed_fraction"].value for row in result.samples]
    assert max(revealed) <= LIMIT
    assert max(revealed) > 0.1 * LIMIT, "far more noise than needed"


# One test, since processes that share the tests between them would each start a federation of their own.
def test_a_federation_with_one_careless_client(tmp_path) -> None:
    run(tmp_path)
    for round in (1, 2):
        check_the_server_gets_one_update_and_one_neutral_error(tmp_path, round)
    check_training_goes_on(tmp_path)
    check_nothing_private_reaches_the_server(tmp_path)
    check_the_sanitised_update_is_what_the_log_says_and_keeps_the_limit(tmp_path)
