"""The structured Jacobian of whole pipelines against the generic one."""

from __future__ import annotations

from collections.abc import Callable

import cases
import oracles
import pytest
import torch
import torch.nn.functional as F
from contracts.release_step import LayerClip
from contracts.same_jacobian import by_autograd, check_generic, close, structured
from torch import nn

from riskaudit.release import Batch, PerSampleRelease, ReleaseSpec
from riskaudit.release.steps.clip import Clip


def without_ties(batch: Batch) -> Batch:
    """Pixels that are never exactly black: of equal entries, pruning may keep any."""
    noise = torch.rand(batch.inputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batch(0.05 + 0.8 * batch.inputs + 0.1 * noise, batch.targets)


MODELS: dict[str, Callable[[], tuple[nn.Module, Batch]]] = {
    "lenet": lambda: (cases.lenet(8), cases.mnist(3, 8)),
    "mlp": lambda: (cases.mlp((36, 16, 10)), cases.mnist(3, 6)),
    "residual": lambda: (cases.residual(3), cases.cifar(3, 6)),
    "tied": lambda: (cases.tied(), cases.mnist(3, 6)),
}
# MIXED is replaced by a bound that some samples exceed and others don't.
RELEASES = [
    "gradient",
    "clip:1e-3",
    "clip:1e3",
    "clip:MIXED",
    "clip:MIXED,laplace:1",
    "mask:0.3",
    "prune:0.4",
    "clip:MIXED,prune:0.3",
    "prune:0.3,clip:1e-2",
    "mask:0.4:3,clip:1e-2,gaussian:0.1",
    "clip:MIXED,clip:1e-2",
    "clip:1e-1,mask:0.2,clip:1e-2,prune:0.6,clip:1e-3",
    "prune:0.2,mask:0.2,prune:0.6",
    "clip:1e-2,gaussian:0.1,mask:0.5",
]


@pytest.fixture(params=MODELS)
def model_and_batch(request: pytest.FixtureRequest) -> tuple[nn.Module, Batch]:
    model, batch = MODELS[request.param]()
    return model, without_ties(batch)


def mixed_bound(model: nn.Module, batch: Batch) -> float:
    """Between the middle sample's norm and the largest."""
    norms = structured(PerSampleRelease(model, F.cross_entropy), batch).norms.sort().values
    return float((norms[-2] + norms[-1]) / 2)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("text", RELEASES)
def test_pipeline(model_and_batch: tuple[nn.Module, Batch], text: str) -> None:
    model, batch = model_and_batch
    release = PerSampleRelease(model, F.cross_entropy, text.replace("MIXED", repr(mixed_bound(model, batch))))
    jacobian = structured(release, batch)
    check_generic(jacobian)
    if "MIXED" in text:  # samples that are treated unlike each other
        check_generic(jacobian.select([2, 0, 2]))


@pytest.mark.parametrize("closed_form_after", [True, False])
def test_step_that_is_nothing_but_a_function(closed_form_after: bool) -> None:
    model, batch = MODELS["residual"]()
    steps = (LayerClip(0.2), Clip(0.3)) if closed_form_after else (LayerClip(0.2),)
    jacobian = structured(PerSampleRelease(model, F.cross_entropy, ReleaseSpec(steps)), batch)
    check_generic(jacobian)
    columns = torch.eye(jacobian.shape[1], dtype=torch.float64)[:, :3].expand(jacobian.num_samples, -1, -1)
    pushed = jacobian.matmat(columns)
    close(columns.mT @ jacobian.hessian().matmat(columns), pushed.mT @ pushed, 1e-11, "H")


def test_mixed_bound_is_exceeded_by_some_samples_only(model_and_batch: tuple[nn.Module, Batch]) -> None:
    model, batch = model_and_batch
    bound = mixed_bound(model, batch)
    exceeded = structured(PerSampleRelease(model, F.cross_entropy), batch).norms > bound
    assert exceeded.any()
    assert not exceeded.all()


@pytest.mark.parametrize("clipped_first", [True, False])
def test_clipped_and_pruned_against_plain_autograd(clipped_first: bool) -> None:
    model, batch = MODELS["residual"]()
    steps = [("clip:0.5", oracles.clipped(0.5)), ("prune:0.3", oracles.pruned(0.3))]
    steps = steps if clipped_first else steps[::-1]
    batch = without_ties(batch)
    jacobian = structured(PerSampleRelease(model, F.cross_entropy, ",".join(text for text, _ in steps)), batch)
    pairs = zip(batch.inputs, batch.targets, strict=True)
    changes = tuple(change for _, change in steps)
    dense = torch.stack(
        [torch.from_numpy(oracles.jacobian(model, F.cross_entropy, x, target, changes)) for x, target in pairs]
    )
    identity = torch.eye(dense.shape[2], dtype=torch.float64).expand(3, -1, -1)
    close(jacobian.matmat(identity), dense, 1e-9, "J")
    close(jacobian.hessian().matmat(identity), dense.mT @ dense, 1e-9, "H")


def test_gradient_that_vanishes() -> None:
    """A sample whose gradient is zero is neither clipped nor divided by its norm."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.abs_()
    batch = Batch(torch.tensor([[1.0, 2, 3, 4], [-1, -2, -3, -4]]).double(), torch.tensor([0, 1]))
    for text in ("gradient", "clip:1e-3", "prune:0.5,clip:1e-3"):
        jacobian = structured(PerSampleRelease(model.eval(), F.cross_entropy, text), batch)
        assert jacobian.norms[1] == 0
        assert not jacobian.pull_mean()[1].any()
        columns = torch.ones(2, 4, dtype=torch.float64)
        assert torch.isfinite(jacobian.hessian().matvec(columns)).all()
        assert not jacobian.hessian().matvec(columns)[1].any()


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = MODELS["residual"]()
    release = PerSampleRelease(model, F.cross_entropy, "clip:0.5")
    whole = structured(release, batch)
    norms, pulled = whole.norms, whole.pull_mean()
    monkeypatch.setattr("riskaudit.jacobian.base.CHUNK_ENTRIES", 2 * release.num_entries)
    parts = whole.select([0, 1, 2])
    close(parts.norms, norms, 1e-12, "norms")
    close(parts.pull_mean(), pulled, 1e-12, "J^T r / ||r||")
    drawn = torch.randn(3, release.num_entries, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(parts.pull_each(lambda place: drawn[place]), whole.rmatvec(drawn), 1e-12, "J^T u")


def test_helper_is_the_dense_oracle() -> None:
    """The plain products that layers are held against are those of the dense oracle."""
    model, batch = MODELS["residual"]()
    x, target = batch.inputs[0], batch.targets[0]
    dense = torch.from_numpy(oracles.jacobian(model, F.cross_entropy, x, target))
    generator = torch.Generator().manual_seed(0)
    v, u = (torch.randn(size, generator=generator, dtype=torch.float64) for size in reversed(dense.shape))
    gradient, pushed, pulled = by_autograd(model, x, target, v, u)
    close(gradient, oracles.released_mean(model, F.cross_entropy, x, target).detach(), 1e-12, "gradient")
    close(pushed, dense @ v, 1e-12, "J v")
    close(pulled, dense.mT @ u, 1e-12, "J^T u")
