"""Plans as a run's manifest holds them."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from riskaudit.audit import AuditSettings
from riskaudit.audit.plan import UploadShape, choose_plan
from riskaudit.runs.opening import plan_from, plan_to_json


def test_a_plan_comes_back_from_json() -> None:
    settings = AuditSettings(max_revealed=0.3, min_rmse=0.1)
    plan = choose_plan(settings, 32 * 784, 17038, 32, 1, torch.device("cpu"), UploadShape(32))
    assert plan.thresholds
    assert plan.of_samples is not None
    assert plan_from(json.loads(json.dumps(plan_to_json(plan)))) == plan
    assert plan_from(plan_to_json(replace(plan, of_samples=None))) == replace(plan, of_samples=None)
