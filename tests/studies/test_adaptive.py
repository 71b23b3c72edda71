"""Which attacks run where none is named: those made for the defence are among them."""

from __future__ import annotations

import pytest
import torch
from study_cases import digits, network
from torch import nn

from riskaudit.audit import AuditSettings
from riskaudit.audit.client import make_client
from riskaudit.inputs import Samples
from riskaudit.studies.adaptive import by_default
from riskaudit.studies.settings import DEFAULT_ATTACKS, AttackSettings
from riskaudit.studies.verify.record import VerifyStudy
from riskaudit.studies.verify.run import verify


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Sigmoid(), nn.Linear(16, 10)).eval()


@pytest.mark.parametrize(
    ("model", "settings", "stds", "added"),
    [
        (perceptron, {"release": "gaussian:0.01"}, [0.01], ()),
        (perceptron, {"release": "soteria:80"}, [0.0], ("layer-left-out", "kept-entries")),
        (perceptron, {"release": "soteria:80,gaussian:0.01"}, [0.01], ("layer-left-out",)),
        (perceptron, {"release": "prune:0.9"}, [0.0, 0.01], ("kept-entries",)),
        (perceptron, {"release": "prune:0.9,gaussian:0.01"}, [0.01], ()),
        (perceptron, {"model_defense": "precode"}, [0.0], ("analytic",)),
        (perceptron, {"model_defense": "precode", "release": "mean:2"}, [0.0], ()),
        # Convolutions stand before its linear layer.
        (network, {"model_defense": "precode"}, [0.0], ()),
    ],
)
def test_attacks_made_for_the_defence_join_the_default(model, settings, stds, added) -> None:
    client = make_client(model(), digits(2), AuditSettings(**settings))
    assert by_default(client, AttackSettings(), stds).chosen == (*DEFAULT_ATTACKS, *added)
    named = AttackSettings(names=("dlg",))
    assert by_default(client, named, stds) is named


def test_verify_breaks_precode_without_being_told_how() -> None:
    samples: Samples = digits(2)
    settings = AuditSettings(model_defense="precode", dtype="float64")
    study = verify(perceptron(), samples, settings, AttackSettings(steps=1, restarts=1)).studies.get(VerifyStudy)
    rows = {row.sample_id: row for row in study.attacks if row.attack == "analytic"}
    assert set(rows) == set(samples.ids)
    assert all(row.metrics["rmse"] < 1e-8 for row in rows.values())
