"""``riskaudit ats search``: the scores of the library's own search, what is named, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from scan_cases import CHECKPOINT, DATA, demo_model, demo_samples

from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.policy_search import PolicyScore, draw_policies, safest, search_policies

SEARCH = (
    "ats",
    "search",
    str(CHECKPOINT),
    "--arch",
    "lenet",
    "--limit",
    "6",
    "--policies",
    "3",
    "--private-images",
    "2",
)


@pytest.fixture
def searched(command, tmp_path):
    """The search with further options, and the document that it wrote."""

    def call(*options: str):
        out = tmp_path / "scores.json"
        outcome = command(*SEARCH, "--data", str(DATA), "--out", str(out), *options)
        assert outcome.code == 0, outcome.err
        return outcome, json.loads(out.read_text())

    return call


def test_scores_are_those_of_the_search(searched) -> None:
    outcome, document = searched("--seed", "4")
    samples = demo_samples(6)
    model = demo_model().double().eval()
    inputs = samples.inputs.double()
    expected = search_policies(model, F.cross_entropy, inputs, samples.targets, draw_policies(3, 3, 4), num_private=2)
    assert [each["policy"] for each in document["policies"]] == [score.policy for score in expected]
    for name in ("privacy", "accuracy"):
        assert [each[name] for each in document["policies"]] == pytest.approx(
            [getattr(score, name) for score in expected], rel=1e-6
        )
    assert document["num_images"] == 6
    assert document["least_accuracy"] is None
    assert document["release"] == f"ats:{expected[0].policy}"
    assert f"--release {document['release']}" in outcome.out
    assert str(ReleaseSpec.parse(document["release"])).startswith(document["release"])


def test_the_safest_of_those_that_are_accurate_enough_is_named(searched) -> None:
    _, document = searched()
    accuracies = [each["accuracy"] for each in document["policies"]]
    most = max(accuracies)
    _, document = searched("--least-accuracy", repr(most))
    assert document["release"] == f"ats:{document['policies'][accuracies.index(most)]['policy']}"
    outcome, document = searched("--least-accuracy", repr(most + 1))
    assert document["release"] is None
    assert "--release" not in outcome.out


def test_another_model_may_have_the_accuracy_score(searched, tmp_path) -> None:
    _, own = searched()
    _, same = searched("--untrained", str(CHECKPOINT))
    assert own == same


def test_the_choice() -> None:
    scores = [PolicyScore("7", 0.2, -90.0), PolicyScore("4", 0.3, -80.0), PolicyScore("3", 0.4, -70.0)]
    assert safest(scores, None) == scores[0]
    assert safest(scores, -85.0) == scores[1]
    assert safest(scores, 0.0) is None


def test_refused(command, tmp_path: Path) -> None:
    table = tmp_path / "rows.npz"
    np.savez(table, images=np.random.default_rng(0).normal(size=(3, 1, 8, 8)), labels=np.arange(3))
    outcome = command(*SEARCH, "--data", str(table))
    assert outcome.code == 2
    assert "images with values from 0 to 1" in outcome.err
    taken = tmp_path / "taken.json"
    taken.write_text("{}")
    outcome = command(*SEARCH, "--data", str(DATA), "--out", str(taken))
    assert outcome.code == 2
    assert taken.read_text() == "{}"
