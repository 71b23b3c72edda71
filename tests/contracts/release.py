"""What every `Release` must do. Inherit, and give ``release`` (float64, without noise) and what it should be.

The oracle is `expected_mean`: the uploads' means by plain autograd of one sample's loss, from the formulas alone. All
derivatives are held against finite differences of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from contracts.linear_operator import normal
from scipy import stats
from torch import Tensor, nn

from riskaudit.errors import ReleaseError
from riskaudit.jacobian import GenericJacobian, Jacobian, SampleBySampleJacobian
from riskaudit.jacobian.unrolled import UnrolledJacobian
from riskaudit.linalg.operators import identity_columns
from riskaudit.release import Batch, Noise, Release
from riskaudit.release.local_training import LocalTrainingRelease
from riskaudit.release.noise import Law

STEP = 1e-6
KINDS = (GenericJacobian, SampleBySampleJacobian, UnrolledJacobian)
LAWS: dict[Law, Callable[[float], stats.rv_continuous]] = {
    "gaussian": lambda scale: stats.norm(scale=scale),
    "laplace": lambda scale: stats.laplace(scale=scale),
}


def network(seed: int = 0) -> nn.Module:
    """Two layers on 3 x 3 inputs, 59 parameters, float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()


def samples(count: int = 4, seed: int = 0) -> Batch:
    return Batch(normal(count, 1, 3, 3, seed=seed), torch.arange(count) % 3)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def jacobian_of(kind: type[Jacobian], release: Release, batch: Batch) -> Jacobian:
    if kind is UnrolledJacobian and not isinstance(release, LocalTrainingRelease):
        pytest.skip("no training to go through")
    return kind(release, batch)


class ReleaseContract:
    coupling: Literal["per_sample", "joint"] = "per_sample"
    linear = False
    """Whether the mean is linear in the loss."""
    upload_size = 1
    divisible: tuple[int, ...] = (1, 5)
    """Numbers of samples that can leave."""
    indivisible: tuple[int, ...] = ()

    def make(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Release:
        """The release of `network` with this loss."""
        raise NotImplementedError

    def expected_mean(self, model: nn.Module, batch: Batch) -> Tensor:
        """[U, P'] of U uploads, from the formulas, with the graph to their inputs; the loss is `cross_entropy`."""
        raise NotImplementedError

    def expected_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Of every sample, [B]."""
        return F.cross_entropy(model(batch.inputs), batch.targets, reduction="none")

    @pytest.fixture
    def release(self) -> Release:
        return self.make(cross_entropy)

    @pytest.fixture
    def batch(self) -> Batch:
        """Two uploads at least."""
        plain = samples(4)
        return Batch(plain.inputs, plain.targets, self.upload_size)

    def differences(self, release: Release, batch: Batch) -> Tensor:
        """d mean / d inputs by central differences, [U P', B d]."""
        columns = []
        for direction in torch.eye(batch.inputs.numel(), dtype=torch.float64):
            shift = STEP * direction.reshape(batch.inputs.shape)
            ahead, behind = (
                self.expected_mean(release.model, batch.with_inputs(inputs)).detach()
                for inputs in (batch.inputs + shift, batch.inputs - shift)
            )
            columns.append((ahead - behind).flatten() / (2 * STEP))
        return torch.stack(columns, dim=1)

    def test_coupling(self, release: Release) -> None:
        assert release.coupling == self.coupling

    def test_uploads_partition_the_samples_in_their_order(self, release: Release) -> None:
        for num_samples in self.divisible:
            uploads, everything = release.uploads(num_samples), samples(num_samples)
            assert [position for upload in uploads for position in upload.positions] == list(range(num_samples))
            for upload in uploads:
                batch = everything.in_uploads([upload])
                assert torch.equal(batch.inputs, everything.inputs[list(upload.positions)])
                assert (batch.num_uploads, batch.upload_size) == (1, len(upload))
                assert release.mean(batch).shape == (1, release.num_entries)

    def test_samples_that_make_no_whole_uploads_are_refused(self, release: Release) -> None:
        for num_samples in self.indivisible:
            with pytest.raises(ReleaseError, match=rf"^expected .*, found .*\b{num_samples}\b"):
                release.uploads(num_samples)

    def test_mean_is_that_of_the_oracle(self, release: Release, batch: Batch) -> None:
        mean, expected = release.mean(batch), self.expected_mean(release.model, batch)
        assert mean.shape == (batch.num_uploads, release.num_entries)
        torch.testing.assert_close(mean.detach(), expected.detach(), rtol=1e-11, atol=1e-13)

    def test_mean_is_the_same_with_and_without_transforms(self, release: Release, batch: Batch) -> None:
        torch.testing.assert_close(
            release.transformed_mean(batch).detach(), release.plain_mean(batch).detach(), rtol=1e-12, atol=1e-14
        )

    def test_mean_of_an_upload_is_made_of_its_own_samples(self, release: Release, batch: Batch) -> None:
        whole = release.mean(batch).detach()
        for upload, expected in zip(batch.each_upload(), whole, strict=True):
            torch.testing.assert_close(release.mean(upload)[0].detach(), expected, rtol=1e-12, atol=1e-14)
        last = batch.num_uploads - 1
        chosen = release.mean(batch.select([last, 0, last])).detach()
        torch.testing.assert_close(chosen, whole[[last, 0, last]], rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("way", ["mean", "plain_mean"])
    def test_mean_is_differentiable_in_the_inputs(self, release: Release, batch: Batch, way: str) -> None:
        inputs = batch.inputs.clone().requires_grad_()
        mean = getattr(release, way)(batch.with_inputs(inputs))
        weights = normal(*mean.shape, seed=1)
        (slope,) = torch.autograd.grad((weights * mean).sum(), inputs)
        expected = weights.flatten() @ self.differences(release, batch)
        assert oracles.relative_difference(slope.flatten(), expected) < 1e-7

    def test_linear_in_the_loss_where_claimed(self, release: Release, batch: Batch) -> None:
        if not self.linear:
            pytest.skip("not linear in the loss")
        scaled = self.make(lambda outputs, targets: 3 * cross_entropy(outputs, targets))
        torch.testing.assert_close(
            scaled.mean(batch).detach(), 3 * release.mean(batch).detach(), rtol=1e-12, atol=1e-14
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_jacobian_is_dense_finite_differences(self, release: Release, batch: Batch, kind) -> None:
        jacobian = jacobian_of(kind, release, batch)
        U, (P, nd) = jacobian.num_samples, jacobian.shape
        assert (batch.num_uploads, release.num_entries) == (U, P)
        assert U * nd == batch.inputs.numel()
        blocks = self.differences(release, batch).reshape(U, P, U, nd)
        expected = torch.stack([blocks[u, :, u] for u in range(U)])
        dense = jacobian.matmat(identity_columns(jacobian)).detach()
        assert oracles.relative_difference(dense, expected) < 1e-7
        # Uploads have nothing to do with each other.
        across = blocks.clone()
        across[range(U), :, range(U)] = 0
        assert float(across.abs().max()) < 1e-8 * float(expected.abs().max())
        rows = normal(U, P, 2, seed=3)
        assert oracles.relative_difference(jacobian.rmatmat(rows).detach(), expected.mT @ rows) < 1e-7
        gram = jacobian.hessian().matmat(identity_columns(jacobian)).detach()
        assert oracles.relative_difference(gram, expected.mT @ expected) < 1e-7

    @pytest.mark.parametrize("kind", KINDS)
    def test_adjoint_identity(self, release: Release, batch: Batch, kind) -> None:
        jacobian = jacobian_of(kind, release, batch)
        U, (P, nd) = jacobian.num_samples, jacobian.shape
        v, u = normal(U, nd, seed=4), normal(U, P, seed=5)
        pushed, pulled = (jacobian.matvec(v) * u).sum(1).detach(), (v * jacobian.rmatvec(u)).sum(1).detach()
        torch.testing.assert_close(pushed, pulled, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("kind", KINDS)
    def test_jacobian_of_some_uploads(self, release: Release, batch: Batch, kind) -> None:
        jacobian = jacobian_of(kind, release, batch)
        U, (_, nd) = jacobian.num_samples, jacobian.shape
        indices, v = [U - 1, 0], normal(U, nd, seed=6)
        found, expected = jacobian.select(indices).matvec(v[indices]), jacobian.matvec(v)[indices]
        torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-12, atol=1e-14)

    def test_steps_are_differentiated_apart_from_the_gradient(self, release: Release, batch: Batch) -> None:
        """J = D J_bare, the derivative of the steps after that of what they are applied to."""
        bare = release.before_steps()
        if bare is release:
            pytest.skip("no steps to set apart")
        gradients, vector = (
            bare.mean(batch).detach(),
            normal(*batch.inputs.reshape(batch.num_uploads, -1).shape, seed=7),
        )
        through = release.derivative(gradients, batch).apply(GenericJacobian(bare, batch).matvec(vector).detach())
        expected = GenericJacobian(release, batch).matvec(vector).detach()
        torch.testing.assert_close(through, expected, rtol=1e-10, atol=1e-12)

    def test_noise_leaves_the_mean_alone(self, release: Release, batch: Batch) -> None:
        noisy = release.with_noise(0.25)
        assert noisy.noise == Noise("gaussian", 0.25)
        assert (type(noisy), noisy.num_entries) == (type(release), release.num_entries)
        assert torch.equal(noisy.mean(batch), release.mean(batch))
        assert noisy.without_noise().spec == release.spec
        assert release.noise is None

    def test_undefended_observation_is_the_mean(self, release: Release, batch: Batch) -> None:
        assert torch.equal(release.observe(batch, torch.Generator()), release.mean(batch))
        with pytest.raises(ReleaseError, match="has no noise"):
            release.sample_noise(torch.Generator())
        with pytest.raises(ReleaseError, match="has no noise"):
            release.log_prob(release.mean(batch), batch)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("law", LAWS)
    def test_observation_is_the_mean_with_noise_of_the_law(self, release: Release, batch: Batch, law: Law) -> None:
        noisy = release.with_spec(release.spec.with_noise(Noise(law, 0.3)))
        generator, mean = torch.Generator().manual_seed(1), noisy.mean(batch).detach()
        drawn = torch.stack([noisy.observe(batch, generator).detach() - mean for _ in range(400 // len(mean))])
        noise = drawn[..., noisy.noisy_entries > 0].flatten().numpy()
        assert stats.kstest(noise, LAWS[law](0.3).cdf).pvalue > 1e-3
        assert noise.std() == pytest.approx(noisy.noise.std, rel=0.03)
        assert float(drawn[..., noisy.noisy_entries == 0].abs().sum()) == 0
        first = noisy.observe(batch, torch.Generator().manual_seed(1))
        assert torch.equal(first, noisy.observe(batch, torch.Generator().manual_seed(1)))
        one = noisy.sample_noise(torch.Generator().manual_seed(1))
        torch.testing.assert_close(first[0].detach() - mean[0], one, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("law", LAWS)
    def test_log_density_is_that_of_scipy(self, release: Release, batch: Batch, law: Law) -> None:
        noisy = release.with_spec(release.spec.with_noise(Noise(law, 0.3)))
        observation = noisy.observe(batch, torch.Generator().manual_seed(2)).detach()
        residual = (observation - self.expected_mean(release.model, batch).detach()).numpy()
        expected = LAWS[law](0.3).logpdf(residual[:, noisy.noisy_entries.numpy() > 0]).sum(1)
        np.testing.assert_allclose(noisy.log_prob(observation, batch).detach(), expected, rtol=1e-10)

    def test_log_density_is_differentiable_in_the_inputs(self, release: Release, batch: Batch) -> None:
        noisy = release.with_noise(0.3)
        observation = noisy.observe(batch, torch.Generator().manual_seed(2)).detach()
        inputs = batch.inputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(noisy.log_prob(observation, batch.with_inputs(inputs)).sum(), inputs)
        residual = observation - noisy.mean(batch).detach()
        expected = (residual.flatten() / 0.3**2) @ self.differences(release, batch)
        assert oracles.relative_difference(slope.flatten(), expected) < 1e-6

    def test_losses_are_every_samples_own(self, release: Release, batch: Batch) -> None:
        expected = self.expected_losses(release.model, batch)
        torch.testing.assert_close(release.losses(batch).detach(), expected.detach(), rtol=1e-12, atol=0)

    def test_model_is_left_as_it_was(self, release: Release, batch: Batch) -> None:
        before = {name: value.clone() for name, value in release.model.state_dict().items()}
        release.with_noise(1.0).observe(batch, torch.Generator())
        assert all(torch.equal(value, before[name]) for name, value in release.model.state_dict().items())
        assert all(parameter.grad is None for parameter in release.model.parameters())


def sample_means(model: nn.Module, batch: Batch, changes: tuple[oracles.Change, ...] = ()) -> Tensor:
    """Every sample's own release, [B, P], by plain autograd."""
    pairs = zip(batch.inputs, batch.targets, strict=True)
    inputs = [(x if x.requires_grad else x.clone().requires_grad_(), target) for x, target in pairs]
    return torch.stack([oracles.released_mean(model, cross_entropy, x, target, changes) for x, target in inputs])
