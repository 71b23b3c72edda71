"""Copies and views among the audited samples are said in a warning, by id or by number."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scan_cases import CHECKPOINT, DATA, demo_model, demo_samples
from torch import nn

import riskaudit
from riskaudit.cli.app import run
from riskaudit.inputs import Samples, duplicates
from riskaudit.inputs.duplicates import duplicate_labels, num_compared


def noted(samples: Samples, model: nn.Module | None = None) -> list[str]:
    found = riskaudit.audit(model or demo_model(), samples, release="gaussian:0.01", proxies=("revealed_fraction",))
    return [warning for warning in found.warnings if "copies" in warning]


def with_views(*views: torch.Tensor, count: int = 6) -> Samples:
    """The first demo samples and other ones after them."""
    samples = demo_samples(count)
    inputs = torch.cat([samples.inputs, *(view[None] for view in views)])
    return Samples.from_tensors(inputs, torch.arange(len(inputs)) % 10)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "view",
    [
        lambda image: image,
        lambda image: image.flip(-1),
        lambda image: torch.rot90(image, 1, (-2, -1)),
        lambda image: 0.5 * image + 0.25,
        lambda image: (image * 255).round() / 255,
    ],
)
def test_a_view_is_named_with_its_original(view) -> None:
    first, second = demo_samples(6).inputs[1], demo_samples(6).inputs[4]
    (warning,) = noted(with_views(view(first), view(second), first))
    assert warning.startswith("5 of 9 samples are copies")
    assert "(1 = 6 = 8; 4 = 7)" in warning
    assert "averages count them all" in warning


@pytest.mark.slow
def test_many_are_counted_and_distinct_ones_are_not_mentioned() -> None:
    samples = demo_samples(8)
    (warning,) = noted(with_views(*samples.inputs, count=8))
    assert re.search(r"16 of 16 samples .*\(8 groups\)", warning)
    assert noted(demo_samples(20)) == []


def test_equal_rows_of_a_table() -> None:
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = Samples.from_tensors(torch.cat([rows, rows[2:3] + 1e-6]), torch.arange(6) % 3)
    (warning,) = noted(samples, nn.Linear(7, 3))
    assert "(2 = 5)" in warning


def test_the_work_is_bounded_and_the_bound_is_said(monkeypatch) -> None:
    """Equal inputs are found everywhere, views among the first samples, and the warning says so."""
    monkeypatch.setattr(duplicates, "MAX_COMPARED", 4)
    inputs = demo_samples(6).inputs
    (warning,) = noted(with_views(inputs[0].flip(-1), inputs[5]))
    assert re.search(r"2 of 8 samples .*\(5 = 7\)", warning)
    assert "the first 4 of 8 samples" in warning
    (warning,) = noted(demo_samples(6))
    assert "the first 4 of 6 samples" in warning
    assert noted(demo_samples(4)) == []


@pytest.mark.parametrize(("order", "together"), [([1, 1, 2, 3], True), ([1, 2, 1, 3], False)])
def test_copies_in_one_upload_are_told_from_copies_in_several(order, together) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    samples = Samples.from_tensors(demo_samples(6).inputs[order], torch.tensor([0, 0, 1, 2]))
    result = riskaudit.audit(model, samples, release="mean:2,gaussian:0.05")
    (warning,) = [each for each in result.warnings if "copies" in each]
    assert ("share an upload, whose equal inputs count as one" in warning) is together
    assert "views or near-copies" not in warning
    assert [row.classmates for row in result.samples] == ([0, 0, 0, 0] if together else [1, 1, 0, 0])
    assert [row.copies for row in result.samples] == ([2, 2, 1, 1] if together else [1, 1, 1, 1])
    # An upload of nothing but copies is one sample that leaves alone.
    alone = riskaudit.audit(model, samples, release="gaussian:0.05").samples[0].proxies["revealed_fraction"].value
    for name in ("revealed_fraction", "informed_revealed_fraction"):
        value = result.samples[0].proxies[name].value
        assert value == pytest.approx(alone, rel=1e-6) if together else value < 0.99 * alone


def test_copies_in_an_upload_change_a_verdict_and_the_noise_that_is_needed() -> None:
    """Taken for independent they would have had the numbers of a sample at k times the noise: a false "low"."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    inputs, targets = demo_samples(8).inputs, torch.tensor([0, 0, 0, 0, 1, 2, 3, 4])
    copied = inputs[[0, 0, 0, 0, 4, 5, 6, 7]]
    options = {"release": "mean:4,gaussian:0.4", "target_rmse": 0.2, "prior_std": 0.3}
    tied, apart = (
        riskaudit.audit(model, Samples.from_tensors(each, targets), **options).samples for each in (copied, inputs)
    )
    alone = riskaudit.audit(model, Samples.from_tensors(copied, targets), **options | {"release": "gaussian:0.4"})
    assert (apart[0].verdict, tied[0].verdict, alone.samples[0].verdict) == ("low", "medium", "medium")
    for row in tied[:4]:
        assert row.noise_std_for_target.std == pytest.approx(alone.samples[0].noise_std_for_target.std, rel=1e-6)
        assert row.success_probability == tied[0].success_probability
    # Uploads without copies in the same audit are as they are without the others.
    for row, expected in zip(tied[4:], apart[4:], strict=True):
        assert row.id == expected.id
        found, wanted = (each.proxies["informed_revealed_fraction"].value for each in (row, expected))
        assert found == pytest.approx(wanted, rel=1e-6)


def test_views_that_share_an_upload_are_named_as_what_counts_too_mildly() -> None:
    torch.manual_seed(0)
    inputs = demo_samples(4).inputs
    samples = Samples.from_tensors(torch.cat([inputs[:1], inputs[:1].flip(-1), inputs[1:3]]), torch.arange(4))
    result = riskaudit.audit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), samples, release="mean:2,gaussian:0.05")
    (warning,) = [each for each in result.warnings if "copies" in each]
    assert "1 of them hold views or near-copies, which count as independent" in warning


def test_large_inputs_are_compared_less_often() -> None:
    assert num_compared(torch.zeros(5000, 1, 28, 28)) == 1000
    assert num_compared(torch.zeros(5000, 10)) == 1000
    assert num_compared(torch.zeros(1, 100_000).expand(5000, -1)) == 100
    rows = torch.randn(300, 20, generator=torch.Generator().manual_seed(0))
    assert duplicate_labels(torch.cat([rows, rows[:1]]), [str(place) for place in range(301)])[300] == 0


@pytest.mark.slow
def test_the_command_says_so_and_verify_too(tmp_path) -> None:
    with np.load(DATA) as file:
        arrays = {name: file[name] for name in file.files}
    images, labels = arrays["images"][:3], arrays["labels"][:3]
    np.savez(tmp_path / "twins.npz", images=np.concatenate([images, images[:1]]), labels=[*labels, labels[0]])
    for command in (["scan"], ["verify", "--attack", "local", "--restarts", "1", "--attack-steps", "2"]):
        out = tmp_path / command[0]
        line = [*command, CHECKPOINT, "--data", tmp_path / "twins.npz", "--out", out, "--release", "gaussian:0.01"]
        assert run([*map(str, line), "--format", "json", "--quiet"]) == 0
        result = riskaudit.AuditResult.load(out / "audit.json")
        assert any(re.search(r"2 of 4 samples .*\(0 = 3\)", each) for each in result.warnings)
