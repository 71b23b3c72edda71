"""The closed form: exact where it applies, and says so where it doesn't."""

from __future__ import annotations

from collections.abc import Callable

import cases
import pytest
import torch
import torch.nn.functional as F
from contracts.attack import flat_batch, generator, observe, rmse
from torch import Tensor, nn

from riskaudit.attacks import Analytic, AttackNotApplicable
from riskaudit.attacks.analytic import whole_input_layer
from riskaudit.inputs.models import Normalized
from riskaudit.release import Batch, PerSampleRelease


def psnr(found: Tensor, expected: Tensor) -> Tensor:
    return -20 * rmse(found, expected).clamp_min(1e-300).log10()


class InTheMiddle(nn.Module):
    """The layer that sees the whole input isn't called first, nor defined first."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(28, 10)
        self.part = nn.Linear(8, 12)
        self.whole = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        part = self.part(x.flatten(1)[:, :8])
        return self.last(torch.cat([part, torch.tanh(self.whole(3 - 2 * x.flatten(1)))], dim=1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: cases.mlp((64, 24, 10)),
    "one layer": lambda: cases.mlp((64, 10)),
    "normalised": lambda: Normalized(cases.mlp((64, 24, 10)), [0.1307], [0.3081]),
    "in the middle": lambda: InTheMiddle().double(),
}


@pytest.mark.parametrize("spec", ["gradient", "clip:0.1", "mask:0.1"])
@pytest.mark.parametrize("name", MODELS)
def test_exact_without_noise(name: str, spec: str) -> None:
    torch.manual_seed(0)
    batch = cases.mnist(4, 8)
    found = Analytic().run(observe(MODELS[name](), batch, spec), generator())
    assert found.status == ("converged",) * 4
    assert float(psnr(found.inputs, batch.inputs).min()) > 100
    assert found.targets.tolist() == batch.targets.tolist()


def test_exact_where_the_layer_defined_first_is_not_sent() -> None:
    model, batch = InTheMiddle().double(), cases.mnist(2, 8)
    found = Analytic().run(observe(model, batch, "share:!last.*,mask:0.1"), generator())
    assert float(psnr(found.inputs, batch.inputs).min()) > 100


def test_inputs_that_are_no_images() -> None:
    batch = flat_batch()
    found = Analytic().run(observe(cases.mlp((36, 16, 10)), batch), generator())
    assert float(psnr(found.inputs, batch.inputs).min()) > 100


def test_pruned_entries_do_not_count() -> None:
    batch = cases.mnist(4, 8)
    batch = Batch(0.2 + 0.8 * batch.inputs, batch.targets)
    found = Analytic().run(observe(cases.mlp((64, 24, 10)), batch, "prune:0.5"), generator())
    assert float(psnr(found.inputs, batch.inputs).min()) > 100


def test_all_rows_are_weighed_against_noise() -> None:
    batch = cases.mnist(4, 8)
    observation = observe(cases.mlp((64, 64, 10)), batch, "gaussian:1e-4")
    found = Analytic().run(observation, generator())
    layer = whole_input_layer(observation.release, (1, 8, 8))
    signals = observation.release.mean(batch)[:, layer.bias]
    # The noise of the quotient by least squares: sigma / ||s||, and as much again from s itself at most.
    assert bool((rmse(found.inputs, batch.inputs) < 2e-4 / signals.norm(dim=-1)).all())
    assert bool((found.objective > 0).all())


def test_float32() -> None:
    batch = cases.mnist(3, 8)
    found = Analytic().run(observe(cases.mlp((64, 24, 10)), batch, dtype=torch.float32), generator())
    assert float(psnr(found.inputs, batch.inputs).min()) > 80


def test_labels_are_not_needed() -> None:
    batch = cases.mnist(3, 8)
    observation = observe(cases.mlp((64, 24, 10)), batch, known=False)
    release = PerSampleRelease(observation.release.model, lambda y, t: F.cross_entropy(y, t, label_smoothing=0.1))
    hinge = type(observation)(
        released=release.mean(batch).detach(),
        jacobian=type(observation.jacobian)(release, None, "given", 1),
        input_shape=(1, 8, 8),
        prior=cases.PRIOR,
        targets=None,
    )
    found = Analytic().run(hinge, generator())
    assert found.targets.tolist() == [-1, -1, -1]
    assert float(psnr(found.inputs, batch.inputs).min()) > 100


def test_a_dead_layer_fails() -> None:
    model = cases.mlp((64, 24, 10))
    with torch.no_grad():
        model.layers[0].bias.fill_(-1e3)
    found = Analytic().run(observe(model, cases.mnist(2, 8)), generator())
    assert found.status == ("failed", "failed")
    assert bool((found.inputs == cases.PRIOR.mean).all())


def test_columns_that_a_mask_removed_get_the_prior() -> None:
    batch = cases.mnist(2, 8)
    batch = Batch(0.1 + 0.3 * batch.inputs, batch.targets)
    observation = observe(cases.mlp((64, 8, 10)), batch, "mask:0.5")
    found = Analytic().run(observation, generator())
    assert found.status == ("converged", "converged")
    known = (found.inputs - batch.inputs).abs() < 1e-8
    assert 0 < int(known.sum()) < known.numel()
    assert bool((known | (found.inputs == cases.PRIOR.mean)).all())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (cases.lenet(8), "no fully connected layer"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)).double(), "no fully connected layer"),
        (nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(64, 10)).double(), "more than the scaled"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 64, bias=False), nn.Linear(64, 10)).double(),
            "more than the scaled",
        ),
    ],
    ids=["convolutions", "no bias", "ReLU before", "mixed before"],
)
def test_not_applicable(model: nn.Module, why: str) -> None:
    with pytest.raises(AttackNotApplicable, match=why):
        whole_input_layer(PerSampleRelease(model, F.cross_entropy), (1, 8, 8))


def test_a_layer_that_is_used_twice_is_not_read() -> None:
    with pytest.raises(AttackNotApplicable):
        whole_input_layer(PerSampleRelease(cases.tied(), F.cross_entropy), (1, 6, 6))
