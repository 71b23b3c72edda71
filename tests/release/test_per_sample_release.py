"""The per-sample release of a model, besides its contract: masks after the noise, and the models that it refuses."""

from __future__ import annotations

import copy
from dataclasses import replace

import cases
import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from riskaudit.errors import CoupledReleaseError, ReleaseError
from riskaudit.release import Batch, PerSampleRelease, Upload, make_release, with_batch_statistics


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny() -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), Batch(
        torch.rand(3, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    )


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("gradient", ()),
        ("clip:0.5", (oracles.clipped(0.5),)),
        ("prune:0.3,clip:0.5,gaussian:1", (oracles.pruned(0.3), oracles.clipped(0.5))),
        ("clip:0.5,prune:0.3", (oracles.clipped(0.5), oracles.pruned(0.3))),
    ],
)
def test_mean_is_what_autograd_gives(text: str, changes: tuple[oracles.Change, ...]) -> None:
    model, batch = cases.residual(3), cases.cifar(3, 6)
    release = PerSampleRelease(model, F.cross_entropy, text)
    mean, losses = release.mean(batch), release.losses(batch)
    for index, (x, target) in enumerate(zip(batch.inputs, batch.targets, strict=True)):
        expected = oracles.released_mean(model, F.cross_entropy, x, target, changes).detach()
        assert oracles.relative_difference(mean[index].detach(), expected) < 1e-12
        assert oracles.relative_difference(release.sample_mean(x, target).detach(), expected) < 1e-12
        loss = F.cross_entropy(model(x[None]), target[None])
        assert float(losses[index]) == pytest.approx(float(loss.detach()), rel=1e-12)


def test_noise_of_samples_is_independent_and_seeded() -> None:
    model, batch = tiny()
    release = PerSampleRelease(model, F.cross_entropy, "gaussian:1")
    first = release.observe(batch, generator(3)) - release.mean(batch)
    assert not torch.allclose(first[0], first[1])
    assert torch.equal(release.observe(batch, generator(3)), release.observe(batch, generator(3)))
    assert not torch.equal(release.sample_noise(generator(3)), release.sample_noise(generator(4)))


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_same_noise_in_every_dtype(law: str) -> None:
    model, _ = tiny()
    double = PerSampleRelease(model, F.cross_entropy, f"{law}:0.2").sample_noise(generator())
    single = PerSampleRelease(model.float(), F.cross_entropy, f"{law}:0.2").sample_noise(generator())
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_log_density_with_a_mask_after_the_noise(law: str) -> None:
    model, batch = tiny()
    release = PerSampleRelease(model, F.cross_entropy, f"{law}:0.3,mask:0.4:2")
    observation = release.observe(batch, generator())
    kept = (observation != 0).all(0).numpy()
    assert kept.sum() == 51 - round(0.4 * 51)
    noise = (observation - release.mean(batch)).detach().numpy()[:, kept]
    assert np.abs(noise).min() > 0
    distribution = stats.norm(scale=0.3) if law == "gaussian" else stats.laplace(scale=0.3)
    np.testing.assert_allclose(release.log_prob(observation, batch).detach(), distribution.logpdf(noise).sum(1))


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_log_density_is_differentiable_in_the_inputs(law: str) -> None:
    model, batch = tiny()
    release = PerSampleRelease(model, F.cross_entropy, f"clip:0.2,{law}:0.3")
    observation = release.observe(batch, generator()).detach()

    def density(inputs: torch.Tensor) -> torch.Tensor:
        return release.log_prob(observation, Batch(inputs, batch.targets)).sum()

    inputs = batch.inputs.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(density(inputs), inputs)
    assert slope.abs().max() > 0
    direction = torch.rand(inputs.shape, generator=generator(), dtype=torch.float64)
    change = (density(batch.inputs + 1e-6 * direction) - density(batch.inputs - 1e-6 * direction)) / 2e-6
    assert float((slope * direction).sum()) == pytest.approx(float(change), rel=1e-5)


def test_undefended_release_has_no_density() -> None:
    model, batch = tiny()
    release = PerSampleRelease(model, F.cross_entropy, "clip:1")
    assert release.noise is None
    with pytest.raises(ReleaseError, match=r"'gradient,clip:1\.0' has no noise"):
        release.log_prob(release.mean(batch), batch)
    with pytest.raises(ReleaseError, match="use with_noise"):
        release.sample_noise(generator())


def test_with_noise_replaces_the_noise_alone() -> None:
    model, _ = tiny()
    assert (
        str(PerSampleRelease(model, F.cross_entropy, "clip:1").with_noise(0.5).spec) == "gradient,clip:1.0,gaussian:0.5"
    )
    swapped = PerSampleRelease(model, F.cross_entropy, "laplace:1,mask:0.5").with_noise(0.5)
    assert str(swapped.spec) == "gradient,mask:0.5:0,gaussian:0.5"


def test_uploads_of_several_samples_are_refused() -> None:
    model, batch = tiny()
    joint = replace(batch, upload_size=3)
    with pytest.raises(ValueError, match="expected uploads of one sample, found uploads of 3"):
        PerSampleRelease(model, F.cross_entropy).mean(joint)
    with pytest.raises(ValueError, match="found sizes \\[1, 2\\]"):
        batch.in_uploads([Upload((0, 1)), Upload((2,))])


def test_frozen_parameters_are_not_released() -> None:
    model, batch = cases.residual(3), cases.cifar(2, 6)
    whole = PerSampleRelease(model, F.cross_entropy).num_entries
    for parameter in (*model.stem.parameters(), *model.norm1.parameters()):
        parameter.requires_grad_(False)
    release = PerSampleRelease(model, F.cross_entropy)
    assert release.num_entries == whole - 6 * 3 * 9 - 12
    expected = oracles.released_mean(model, F.cross_entropy, batch.inputs[0], batch.targets[0]).detach()
    assert oracles.relative_difference(release.mean(batch)[0].detach(), expected) < 1e-12


def test_model_without_trainable_parameters_is_refused() -> None:
    model, _ = tiny()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ReleaseError, match="none with requires_grad=True"):
        PerSampleRelease(model, F.cross_entropy)


def test_batch_norm_in_train_mode_is_refused_by_name() -> None:
    model = cases.residual()
    model.norm2.train()
    with pytest.raises(CoupledReleaseError, match=r"layer 'norm2' \(BatchNorm2d\) is in train mode.*model\.eval\(\)"):
        PerSampleRelease(model, F.cross_entropy)


def test_batch_norm_without_running_statistics_is_refused_by_name() -> None:
    model = cases.residual()
    model.norm1 = nn.BatchNorm2d(6, track_running_stats=False).double().eval()
    with pytest.raises(CoupledReleaseError, match=r"layer 'norm1' \(BatchNorm2d\) keeps no running statistics"):
        PerSampleRelease(model, F.cross_entropy)


@pytest.mark.parametrize("release", ["mean:3,gaussian:0.01", "local:epochs=2:batch=3:lr=0.1"])
def test_a_model_that_ignores_eval_sends_what_train_mode_makes_of_samples_together(release: str) -> None:
    """Its batch norm computes with the batch's statistics in either mode, and is left without running ones."""
    model, batch = cases.residual(3), cases.cifar(3, 6)
    stuck = with_batch_statistics(copy.deepcopy(model).train())
    expected = make_release(with_batch_statistics(model.eval()), F.cross_entropy, release)
    batch = replace(batch, upload_size=3)
    assert torch.allclose(make_release(stuck, F.cross_entropy, release).mean(batch), expected.mean(batch), rtol=1e-12)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.1)], ids=repr)
def test_dropout_in_train_mode_is_refused_by_name(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Flatten(), layer, nn.Linear(16, 3))
    with pytest.raises(ReleaseError, match=r"layer '1' .* is in train mode, so the gradient is random"):
        PerSampleRelease(model, F.cross_entropy)
    PerSampleRelease(model.eval(), F.cross_entropy)


def test_dropout_that_drops_nothing_is_accepted() -> None:
    PerSampleRelease(nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(16, 3)), F.cross_entropy)
