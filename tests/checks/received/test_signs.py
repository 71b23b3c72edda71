"""Each sign finds what it is for, at its layer, also in the middle of a network; and nothing in honest changes."""

from __future__ import annotations

import copy

import pytest
import received_cases as planted_in
import torch
from contracts.completeness import cases_of
from contracts.sign import SignContract
from torch import nn

from riskaudit.checks.received import SIGNS, SignNotApplicable, observe
from riskaudit.checks.received.base import FAR, Measurement, register
from riskaudit.checks.received.judging import judge_model
from riskaudit.errors import SettingsError


class TestImprintLayer(SignContract):
    sign_id = "imprint-layer"

    def planted(self) -> tuple[nn.Module, str]:
        model = planted_in.convnet()
        planted_in.plant_imprint(model, model[7])
        return model, "7"

    @pytest.mark.parametrize("rescaled", [False, True])
    def test_a_part_of_a_trained_layer(self, rescaled) -> None:
        model = planted_in.trained(planted_in.mlp(), 2)
        planted_in.plant_imprint(model, model.layers[0], units=24, rescaled=rescaled)
        (row,) = (row for row in self.rows(model) if row.flagged)
        assert (row.layer, row.value) == ("layers.0", 24 / 96)
        assert row.z > 100

    def test_one_sample_is_enough(self) -> None:
        model, layer = self.planted()
        assert self.flags(model, 1) == [layer]

    def test_equal_rows_with_one_threshold_are_no_bins(self) -> None:
        # What one step makes of a head that began at 0, for the classes that the data hasn't.
        model = planted_in.mlp(widths=(64, 32, 40))
        head = model.layers[2]
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        loss = nn.functional.cross_entropy(model(planted_in.inputs()), torch.arange(64) % 5)
        loss.backward()
        with torch.no_grad():
            head.weight -= 0.1 * head.weight.grad
            head.bias -= 0.1 * head.bias.grad
        assert float(torch.nn.functional.cosine_similarity(*head.weight.detach()[20:40].split(10)).min()) > 0.9999
        assert self.flags(model) == []

    def test_thresholds_out_of_reach_are_no_bins(self) -> None:
        model, _ = self.planted()
        with torch.no_grad():
            model[7].bias -= 1000
        assert self.flags(model) == []


class TestLoneActivation(SignContract):
    sign_id = "lone-activation"

    def planted(self) -> tuple[nn.Module, str]:
        model = planted_in.convnet()
        planted_in.plant_quantile_biases(model, model[7], 16)
        return model, "7"

    @pytest.mark.parametrize("batch_size", [8, 32])
    def test_other_batches(self, batch_size) -> None:
        model = planted_in.mlp()
        planted_in.plant_quantile_biases(model, model.layers[0], batch_size)
        assert self.flags(model) == ["layers.0"]


class TestSingletonShare(SignContract):
    sign_id = "singleton-share"

    def planted(self) -> tuple[nn.Module, str]:
        model = planted_in.mlp(widths=(64, 256, CLASSES))
        planted_in.plant_trap_weights(model.layers[0])
        return model, "layers.0"

    def test_of_a_batch_at_the_quantile_it_is_what_chance_gives(self) -> None:
        model = planted_in.mlp(widths=(64, 2048, CLASSES))
        planted_in.plant_quantile_biases(model, model.layers[0], 16)
        (row,) = self.rows(model)
        # B p (1 - p)^(B - 1) / (1 - (1 - p)^B) at p = 1/B.
        alone = (15 / 16) ** 15
        assert row.value == pytest.approx(alone / (1 - (15 / 16) ** 16), abs=0.05)

    def test_a_leap_since_the_previous_round_is_flagged_below_the_threshold(self) -> None:
        sign = SIGNS[self.sign_id]
        model = planted_in.mlp(widths=(64, 256, CLASSES))
        planted_in.plant_quantile_biases(model, model.layers[0], 11)
        (row,) = self.rows(model)
        assert 0.35 < row.value < sign.threshold
        assert not row.flagged
        assert self.flags(model, previous=planted_in.mlp(widths=(64, 256, CLASSES))) == ["layers.0"]
        assert self.flags(model, previous=copy.deepcopy(model)) == []


class TestIdentityConvolution(SignContract):
    sign_id = "identity-convolution"

    def planted(self) -> tuple[nn.Module, str]:
        model = planted_in.convnet()
        planted_in.plant_identity(model[2], gain=3.0)
        return model, "2"

    def test_a_whole_backbone(self) -> None:
        model = planted_in.convnet()
        for layer in (model[0], model[2]):
            planted_in.plant_identity(layer)
        assert self.flags(model) == ["0", "2"]

    def test_a_few_channels_beside_ordinary_kernels(self) -> None:
        model = planted_in.convnet()
        ordinary = model[2].weight.detach().clone()
        planted_in.plant_identity(model[2])
        with torch.no_grad():
            model[2].weight[2:] = ordinary[2:]
        (row,) = (row for row in self.rows(model) if row.flagged)
        assert (row.layer, row.value) == ("2", 2 / 6)

    def test_rows_of_an_identity_matrix_in_a_transformer(self) -> None:
        model = planted_in.transformer()
        planted_in.plant_identity(model[2].linear1)
        planted_in.plant_identity(model[2].self_attn.out_proj)
        assert self.flags(model) == ["2.self_attn.out_proj", "2.linear1"]

    def alarms(self, model: nn.Module) -> bool:
        """Whether any layer is flagged; fresh models have nothing of this."""
        measured = self.sign.measure(observe(model, planted_in.inputs(2), 2))
        return any(self.sign.judge(each, [0.0], None).flagged for each in measured.values())

    @pytest.mark.parametrize("kept", [0.1, 0.03])
    def test_pruned_layers_are_no_identity(self, kept) -> None:
        for seed in range(5):
            model = planted_in.convnet(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        limit = parameter.abs().flatten().quantile(1 - kept)
                        parameter.copy_(parameter * (parameter.abs() >= limit))
            assert not self.alarms(model)

    def test_pruned_layers_of_equal_weights_are_no_identity(self) -> None:
        # As ternary networks have them: every weight is -1, 0 or 1.
        for seed in range(5):
            model = planted_in.convnet(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.copy_(parameter.sign() * (torch.rand_like(parameter) < 0.15))
            assert not self.alarms(model)


class TestSilencedClass(SignContract):
    sign_id = "silenced-class"

    def planted(self) -> tuple[nn.Module, str]:
        model = planted_in.trained(planted_in.convnet(), 2)
        planted_in.plant_class_fishing(model[9])
        return model, "9"

    def test_the_number_of_classes(self) -> None:
        (row,) = self.rows(self.planted()[0])
        assert row.value == 1.0
        assert "8 of 10 classes" in row.reason

    def test_the_label_that_a_sample_has_is_never_asked(self) -> None:
        # A network that is sure of all its samples has no gradient at their own labels.
        model = planted_in.trained(planted_in.mlp(), 40, 1e-2)
        assert self.flags(model) == []

    def test_outputs_that_are_no_classes(self) -> None:
        observed = observe(self.planted()[0], planted_in.inputs(), 16, classifies=False)
        with pytest.raises(SignNotApplicable, match="cross-entropy"):
            self.sign.measure(observed)

    def test_one_bias_that_decides_alone(self) -> None:
        model = planted_in.convnet()
        with torch.no_grad():
            model[9].bias[4] = 50.0
        assert self.flags(model) == ["9"]
        with torch.no_grad():
            model[9].bias[4] = 5.0
        assert self.flags(model) == []


class TestNormDrift(SignContract):
    sign_id = "norm-drift"

    def planted(self) -> tuple[nn.Module, str]:
        model = planted_in.convnet()
        with torch.no_grad():
            model[5].weight *= 300
        return model, "5"

    def test_factors_from_the_previous_round(self) -> None:
        before, model = planted_in.convnet(), planted_in.convnet()
        with torch.no_grad():
            model[5].weight *= 12
            model[7].weight /= 12
            model[9].weight *= 8
        assert self.flags(model) == []
        assert self.flags(model, previous=before) == ["5", "7"]

    def test_a_last_layer_that_began_anew_near_0_is_honest(self) -> None:
        before, model = planted_in.convnet(), planted_in.convnet()
        with torch.no_grad():
            model[9].weight *= 1e-4
        assert self.flags(model) == []
        assert self.flags(model, previous=before) == []


class TestMagnifiedGradient(SignContract):
    sign_id = "magnified-gradient"

    def planted(self) -> tuple[nn.Module, None]:
        model = planted_in.normalised()
        planted_in.plant_small_variances(model)
        return model, None

    def test_no_other_sign_sees_small_variances(self) -> None:
        model, _ = self.planted()
        rows = judge_model(model, planted_in.inputs(), previous=planted_in.normalised()).rows
        assert {row.id for row in rows if row.flagged} == {self.sign_id}

    def test_a_gain_spread_over_the_layers(self) -> None:
        model = planted_in.mlp(widths=(64, 96, 64, 64, CLASSES))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(90)
        assert {row.id for row in judge_model(model, planted_in.inputs()).rows if row.flagged} == {self.sign_id}

    def test_the_number_is_the_largest_singular_value(self) -> None:
        model = planted_in.mlp(widths=(64, 8, CLASSES)).double()
        (row,) = self.rows(model)
        values = []
        for sample in planted_in.inputs(3).double():
            label = model(sample[None]).topk(2).indices[0, 1]

            def gradient(x: torch.Tensor, label: torch.Tensor = label) -> torch.Tensor:
                loss = nn.functional.cross_entropy(model(x[None]), label[None])
                parts = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
                return torch.cat([part.flatten() for part in parts])

            matrix = torch.autograd.functional.jacobian(gradient, sample).flatten(1)
            values.append(float(torch.linalg.matrix_norm(matrix, 2)))
        # Three products, from below.
        assert 0.9 * sorted(values)[1] <= row.value <= sorted(values)[1] * (1 + 1e-9)

    def test_a_leap_since_the_previous_round_counts_where_training_has_begun(self) -> None:
        sign = SIGNS[self.sign_id]
        measured = Measurement(3000.0)
        assert not sign.judge(measured, [0.1, 1.0], None).flagged
        assert sign.judge(measured, [0.1, 1.0], 20.0).flagged
        assert not sign.judge(measured, [0.1, 1.0], 40.0).flagged
        # From a plateau, as of sigmoids, honest training leaps too.
        assert not sign.judge(measured, [0.1, 1.0], 0.01).flagged

    def test_a_large_step_is_no_magnification(self) -> None:
        model = planted_in.trained(planted_in.normalised(), 3, 2e-2)
        (row,) = self.rows(model)
        assert row.value > 2 * self.rows(planted_in.normalised())[0].value
        assert not row.flagged

    def test_what_overflows_is_no_number(self) -> None:
        model = planted_in.normalised().requires_grad_(True)
        with torch.no_grad():
            model[1].weight.fill_(1e12)
            model[4].weight.fill_(1e12)
            model[7].weight.mul_(1e-12)
        (row,) = self.rows(model)
        assert (row.status, row.value, row.flagged) == ("failed", None, False)

    def test_layers_without_a_rule_are_named(self) -> None:
        class Odd(nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.linear(x, self.weight.sin(), self.bias)

        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), Odd(64, CLASSES)).eval()
        (row,) = self.rows(model)
        assert (row.status, row.value) == ("not_applicable", None)
        assert "Odd" in row.reason

    def test_an_operation_without_a_second_derivative_is_named(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Hardsigmoid(), nn.Linear(16, CLASSES)).eval()
        (row,) = self.rows(model)
        assert row.status == "not_applicable"
        assert "hardsigmoid" in row.reason

    def test_a_frozen_model_has_no_gradient(self) -> None:
        model = planted_in.mlp().requires_grad_(False)
        assert [row.status for row in self.rows(model)] == ["not_applicable"]


CLASSES = planted_in.CLASSES


def test_every_sign_has_a_case() -> None:
    assert {case.sign_id for case in cases_of(SignContract, __file__)} == set(SIGNS)


def test_a_sign_registers_once() -> None:
    with pytest.raises(SettingsError, match="registered twice"):
        register(type(SIGNS["norm-drift"]))


def test_a_flag_is_far_from_fresh_models() -> None:
    model = planted_in.mlp()
    planted_in.plant_imprint(model, model.layers[0])
    flagged = [row for row in judge_model(model, planted_in.inputs()).rows if row.flagged]
    assert [row.id for row in flagged] == ["imprint-layer"]
    assert flagged[0].z >= FAR


@pytest.mark.parametrize("make", [planted_in.mlp, planted_in.convnet, planted_in.transformer])
def test_fresh_and_trained_networks_show_no_sign(make) -> None:
    before, model = make(), make()
    assert not any(row.flagged for row in judge_model(model, planted_in.inputs()).rows)
    planted_in.trained(model, 3)
    rows = judge_model(model, planted_in.inputs(), previous=before).rows
    assert not any(row.flagged for row in rows)
    assert {row.id for row in rows if row.status == "judged"} >= set(SIGNS) - {"lone-activation", "singleton-share"}


def test_another_architecture_is_no_previous_round() -> None:
    with pytest.raises(SettingsError, match=r"layers\.0\.bias first"):
        judge_model(planted_in.mlp(), planted_in.inputs(), previous=planted_in.mlp(widths=(64, 32, 32, CLASSES)))
