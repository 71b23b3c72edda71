"""TabLeak on real tables: categories and numbers come back, of batches too, and confidence falls with noise."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import pytest
import torch
from table_cases import network, samples_of
from torch import Tensor

from riskaudit.attacks import Reconstruction, TabLeak
from riskaudit.attacks.matching import SquaredDistance
from riskaudit.attacks.optimise.categories import MixtureObjective, Mixtures, NumbersPenalty
from riskaudit.attacks.optimise.objectives import Objective, Term
from riskaudit.audit import AuditSettings
from riskaudit.audit.client import Client, make_client
from riskaudit.inputs import Samples
from riskaudit.metrics import Subject, make_metrics, measure
from riskaudit.studies.attacking import Target, matched_order, reconstruct
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.verify.record import VerifyStudy
from riskaudit.studies.verify.run import verify


@lru_cache
def table(count: int) -> Samples:
    with TemporaryDirectory() as folder:
        return samples_of(Path(folder), count)


def client_of(release: str, count: int) -> Client:
    return make_client(network(14), table(count), AuditSettings(release=release, checks=False))


def attacked(client: Client, attack: TabLeak) -> Reconstruction:
    return reconstruct(attack, Target.of(client, None, labels_known=True), list(range(len(client.samples))))


def scores(found: Reconstruction, samples: Samples, names: tuple[str, ...]) -> list[dict[str, float | None]]:
    metrics = make_metrics(Subject((14,), encoding=samples.encoding), names)
    size = len(found.inputs) // len(found.objective)
    return measure(metrics, found.inputs[matched_order(found.inputs, samples.inputs, size)], samples.inputs)


@pytest.mark.parametrize("distance", ["likelihood", "cosine"])
def test_a_single_gradient_gives_the_row_away(distance: Literal["likelihood", "cosine"]) -> None:
    client = client_of("gaussian:0.0001", 3)
    found = attacked(client, TabLeak(steps=200, restarts=3, distance=distance))
    for row in scores(found, client.samples, ("category_match", "number_match")):
        # The cosine knows no size.
        assert row["category_match"] == 1.0
        assert row["number_match"] == 1.0 or distance == "cosine"
    # Categories are codes, not something between them.
    for category in client.samples.encoding.categories:
        inputs = found.inputs[:, category.span].numpy()
        assert np.abs(inputs - category.codes[category.nearest(inputs)]).max() < 1e-9
    assert found.confidence.shape == (3,)
    assert bool(((found.confidence >= 0) & (found.confidence <= 1)).all())
    assert distance == "cosine" or float(found.confidence.min()) > 0.99


@pytest.mark.slow
def test_two_rows_of_a_mean_are_told_apart() -> None:
    client = client_of("mean:2,gaussian:0.0001", 2)
    found = attacked(client, TabLeak(steps=300, restarts=4))
    row = scores(found, client.samples, ("category_match", "number_match"))
    assert np.mean([each["category_match"] for each in row]) >= 0.75


def test_noise_leaves_less_and_less_confidence() -> None:
    shares, confidences = [], []
    for std in ("0.0001", "3"):
        client = client_of(f"gaussian:{std}", 6)
        found = attacked(client, TabLeak(steps=100, restarts=4))
        shares.append(np.mean([row["category_match"] for row in scores(found, client.samples, ("category_match",))]))
        confidences.append(float(found.confidence.mean()))
    assert shares[0] > 0.95 > shares[1] + 0.2
    assert confidences[0] > 0.95
    assert confidences[1] < 0.2


def objective_of(client: Client) -> tuple[MixtureObjective, Mixtures]:
    observation = Target.of(client, None, labels_known=True).observe(list(range(len(client.samples))))
    mixtures = Mixtures(14, client.samples.encoding)
    inner = Objective.of(observation, 1, SquaredDistance(), (Term(NumbersPenalty(), 0.5),))
    return MixtureObjective(inner, mixtures), mixtures


def test_gradients_of_mixtures() -> None:
    """Against central differences."""
    objective, mixtures = objective_of(client_of("gaussian:0.01", 2))
    assert mixtures.size == 4 + 4 + 5 + 2
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, mixtures.size, generator=generator, dtype=torch.float64)
    _, gradient = objective.evaluate(points)
    step = 1e-5
    for place in range(mixtures.size):
        moved = torch.zeros_like(points)
        moved[:, place] = step
        slope = (objective.evaluate(points + moved)[0] - objective.evaluate(points - moved)[0]) / (2 * step)
        torch.testing.assert_close(gradient[:, place], slope, rtol=1e-5, atol=1e-7)


def test_mixtures_and_inputs_are_each_others() -> None:
    inputs: Tensor = table(5).inputs
    mixtures = Mixtures(14, table(5).encoding)
    torch.testing.assert_close(mixtures.inputs(mixtures.points(inputs)), inputs, rtol=0, atol=1e-12)
    plain = Mixtures(14, None)
    assert torch.equal(plain.inputs(plain.points(inputs)), inputs)
    assert plain.size == 14


@pytest.mark.slow
def test_verify_measures_columns(tmp_path: Path) -> None:
    settings = AuditSettings(release="gaussian:0.0003", checks=False)
    result = verify(network(14), table(2), settings, AttackSettings(names=("tableak",), steps=60, restarts=2))
    study = result.studies.get(VerifyStudy)
    assert {"category_match", "number_match"} <= {info.id for info in study.metric_info}
    for row in study.attacks:
        assert row.metrics["category_match"] == 1.0
        assert 0 <= row.confidence <= 1
    assert all(row.columns["mean symmetry"].estimate.value > 0.99 for row in result.samples)
