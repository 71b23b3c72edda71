"""What every `Attack` must do. Inherit, and give ``attack(**changes)``; fast settings are asked for by the suite."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riskaudit.attacks import Attack, AttackNotApplicable, Observation, Reconstruction
from riskaudit.jacobian import jacobian_maker, joint_jacobian_maker
from riskaudit.release import Batch, PerSampleRelease, make_release
from riskaudit.release.joint import JointRelease

STATUSES = {"converged", "not_converged", "failed"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observe(
    model: nn.Module, batch: Batch, spec: str = "gradient", *, known: bool = True, dtype: torch.dtype = torch.float64
) -> Observation:
    """What an attacker sees of a batch; the Jacobian was chosen on inputs that have nothing to do with it."""
    release = PerSampleRelease(model.to(dtype), F.cross_entropy, spec)
    batch = Batch(batch.inputs.to(dtype), batch.targets)
    decoys = torch.rand(batch.inputs.shape, generator=generator(99), dtype=torch.float64).to(dtype)
    return Observation(
        released=release.observe(batch, generator(5)).detach(),
        jacobian=jacobian_maker(release, Batch(decoys, torch.zeros_like(batch.targets))),
        input_shape=tuple(batch.inputs.shape[1:]),
        prior=cases.PRIOR,
        targets=batch.targets if known else None,
        input_range=(0.0, 1.0),
    )


def observe_uploads(model: nn.Module, batch: Batch, spec: str, *, known: bool = True) -> Observation:
    """Likewise of uploads of several samples."""
    release = make_release(model, F.cross_entropy, spec)
    assert isinstance(release, JointRelease)
    batch = batch.in_uploads(release.uploads(len(batch)))
    decoys = torch.rand(batch.inputs.shape, generator=generator(99), dtype=torch.float64)
    return Observation(
        released=release.observe(batch, generator(5)).detach(),
        jacobian=joint_jacobian_maker(release, batch.with_inputs(decoys).select([0])),
        input_shape=tuple(batch.inputs.shape[1:]),
        prior=cases.PRIOR,
        targets=batch.targets if known else None,
        input_range=(0.0, 1.0),
        upload_size=batch.upload_size,
        numbers=batch.numbers,
    )


UPLOADS = ("mean:2", "mean:1,secagg:2,laplace:0.01")
LOCAL = "local:epochs=2:batch=1:lr=0.1,gaussian:0.001"


def flat_batch(count: int = 3) -> Batch:
    """Inputs that aren't images, [B, 36]."""
    images = cases.mnist(count, 6)
    return Batch(images.inputs.flatten(1), images.targets)


def rmse(found: Tensor, expected: Tensor) -> Tensor:
    return (found - expected).double().flatten(1).square().mean(1).sqrt()


class AttackContract:
    steps = 8
    reads_one_sample = False
    """Whether the attack can't be run on uploads of several samples, and says so."""
    reads_local_training = True
    """Likewise on a client's local training."""

    def attack(self, **changes: Any) -> Attack:
        raise NotImplementedError

    def deterministic(self) -> Attack:
        """One start that isn't random."""
        return self.attack(steps=self.steps, restarts=1, start="mean")

    def quick(self, **changes: Any) -> Attack:
        return self.attack(**{"steps": self.steps, "restarts": 2, **changes})

    def case(self) -> tuple[nn.Module, Batch]:
        return cases.lenet(8), cases.mnist(3, 8)

    def flat_case(self) -> tuple[nn.Module, Batch]:
        """On inputs that aren't images."""
        return cases.mlp((36, 16, 10)), flat_batch()

    def check(self, found: Reconstruction, observation: Observation) -> None:
        count = len(observation)
        assert found.inputs.shape == (count * observation.upload_size, *observation.input_shape)
        assert found.inputs.dtype == observation.released.dtype
        assert torch.isfinite(found.inputs).all()
        assert found.objective.shape == (count,)
        assert found.objective.dtype == torch.float64
        assert torch.isfinite(found.objective).all()
        assert len(found.status) == count
        assert set(found.status) <= STATUSES - {"failed"}
        assert found.steps.shape == (count,)
        assert int(found.steps.min()) >= 0
        assert found.targets.shape[0] == count * observation.upload_size
        assert found.seconds > 0
        assert not found.inputs.requires_grad

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
    @pytest.mark.parametrize("spec", ["gradient", "gradient,clip:0.5,gaussian:0.01", "laplace:0.01,mask:0.2"])
    def test_shapes_and_types(self, spec: str, dtype: torch.dtype) -> None:
        model, batch = self.case()
        observation = observe(model, batch, spec, dtype=dtype)
        self.check(self.quick().run(observation, generator()), observation)

    def test_one_sample_and_one_step(self) -> None:
        model, batch = self.case()
        observation = observe(model, batch.select([0]))
        self.check(self.quick(steps=1, restarts=1).run(observation, generator()), observation)

    def test_equal_generators_give_equal_results(self) -> None:
        observation = observe(*self.case(), "gaussian:0.01")
        first, second = (self.quick().run(observation, generator(3)) for _ in range(2))
        assert torch.equal(first.inputs, second.inputs)
        assert torch.equal(first.objective, second.objective)
        assert first.status == second.status

    def test_the_truth_is_out_of_reach(self) -> None:
        observation = observe(*self.case(), "gaussian:0.01")
        names = {field.name for field in fields(observation)}
        assert names == {
            "released", "jacobian", "input_shape", "prior", "targets", "input_range", "batch_norm_statistics",
            "upload_size", "layer_statistics", "deadline", "numbers", "encoding", "texts",
        }  # fmt: skip
        # Neither the observation nor the maker of Jacobians holds a tensor of the inputs' size.
        tensors = [getattr(observation, name) for name in names]
        tensors += [getattr(observation.jacobian, field.name) for field in fields(observation.jacobian)]
        sizes = {tuple(value.shape) for value in tensors if isinstance(value, Tensor)}
        assert not any(shape[1:] == observation.input_shape for shape in sizes)

    def test_the_model_is_left_as_it_was(self) -> None:
        model, batch = self.case()
        observation = observe(model, batch)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        self.quick().run(observation, generator())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_samples_do_not_see_each_other(self) -> None:
        observation = observe(*self.case(), "gaussian:0.01")
        together = self.deterministic().run(observation, generator())
        for index in range(len(observation)):
            alone = self.deterministic().run(observation.select([index]), generator())
            torch.testing.assert_close(alone.inputs[0], together.inputs[index], rtol=0, atol=1e-6)
            assert alone.status[0] == together.status[index]

    def test_unknown_labels_are_recovered(self) -> None:
        model, batch = self.case()
        observation = observe(model, batch, known=False)
        found = self.quick().run(observation, generator())
        self.check(found, observation)
        assert found.targets.tolist() == batch.targets.tolist()

    def test_inputs_that_are_no_images(self) -> None:
        observation = observe(*self.flat_case(), "gaussian:0.01")
        self.check(self.quick().run(observation, generator()), observation)

    def test_what_is_no_number_fails(self) -> None:
        observation = observe(*self.case())
        released = observation.released.clone()
        released[1] = float("nan")
        found = self.quick().run(replace(observation, released=released), generator())
        assert found.status[1] == "failed"
        assert float(found.objective[1]) == float("inf")
        assert bool((found.inputs[1] == cases.PRIOR.mean).all())
        assert "failed" not in (found.status[0], found.status[2])

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("spec", [*UPLOADS, LOCAL])
    def test_uploads_of_several_samples(self, spec: str) -> None:
        model, batch = self.case()
        batch = cases.mnist(2 if spec == LOCAL else 4, 8)
        observation = observe_uploads(model, batch, spec)
        if self.reads_one_sample or (spec == LOCAL and not self.reads_local_training):
            with pytest.raises(AttackNotApplicable, match="mean"):
                self.quick().run(observation, generator())
            return
        self.check(self.quick(steps=2).run(observation, generator()), observation)

    def test_uploads_do_not_see_each_other(self) -> None:
        observation = observe_uploads(self.case()[0], cases.mnist(4, 8), "mean:2,gaussian:0.01")
        if self.reads_one_sample:
            pytest.skip("not for uploads of several samples")
        together = self.deterministic().run(observation, generator())
        for index in range(2):
            alone = self.deterministic().run(observation.select([index]), generator())
            own = together.inputs[2 * index : 2 * index + 2]
            torch.testing.assert_close(alone.inputs, own, rtol=0, atol=1e-6)
            assert alone.status[0] == together.status[index]

    def test_unknown_labels_of_uploads_are_recovered(self) -> None:
        if self.reads_one_sample:
            pytest.skip("not for uploads of several samples")
        batch = cases.mnist(3, 8)
        local = ("local:epochs=2:batch=1:lr=0.1:momentum=0.5",)
        for spec in ("mean:3", *(local if self.reads_local_training else ())):
            observation = observe_uploads(self.case()[0], batch, spec, known=False)
            found = self.quick(steps=1, restarts=1).run(observation, generator())
            assert found.targets.tolist() == sorted(batch.targets.tolist())
