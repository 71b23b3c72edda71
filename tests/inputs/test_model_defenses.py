"""PRECODE: its bottleneck, the models it is put into, and the closed form that breaks it."""

from __future__ import annotations

from dataclasses import replace

import cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contracts.attack import generator, observe, rmse
from contracts.linear_operator import normal
from torch import nn

from riskaudit import audit
from riskaudit.attacks import Analytic
from riskaudit.audit import AuditSettings
from riskaudit.audit.client import make_client
from riskaudit.audit.draws import over_draws
from riskaudit.audit.shards import audit_shards, plan_audit
from riskaudit.errors import SettingsError
from riskaudit.guard.batch_mean import BatchMean
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.inputs.architectures.mlp import MLP
from riskaudit.inputs.architectures.precode import Precode, VariationalBottleneck, bottleneck_draw
from riskaudit.inputs.model_defenses import with_model_defense
from riskaudit.jacobian import GenericJacobian, jacobian_maker, joint_jacobian_maker
from riskaudit.proxies import PROXIES
from riskaudit.release import Batch, PerSampleRelease, make_release
from riskaudit.report import render
from riskaudit.results import AuditResult
from riskaudit.studies.verify.run import verify


def small(draw: int = 0) -> nn.Module:
    torch.manual_seed(0)
    model = Precode((64, 12, 8), 6, 9, 10).double().eval()
    model.bottleneck.draws.redraw(draw)
    return model


def test_bottleneck_is_a_draw_of_its_normal_law() -> None:
    layer, z = VariationalBottleneck(5, 4, draw=3).double().eval(), normal(2, 5)
    # A float32 model's draw, which stays the same when the model becomes a float64 one.
    noise = np.random.default_rng(3).standard_normal(4).astype(np.float32).astype(float)
    mean, log_variance = (part(z).detach().numpy() for part in (layer.mean, layer.log_variance))
    np.testing.assert_allclose(layer(z).detach().numpy(), mean + np.exp(log_variance / 2) * noise, atol=1e-12)
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(1)
    added = layer.draws.added_loss(layer.mean(z), layer.log_variance(z))
    np.testing.assert_allclose(added.detach().numpy(), 0.003 * kl, rtol=1e-12)
    assert torch.equal(layer(z), layer(z))
    assert not torch.equal(layer.train()(z), layer(z))


@pytest.mark.parametrize(
    "case",
    [
        lambda: (small(), cases.mnist(4, 8)),
        # The network of the paper.
        pytest.param(lambda: (Precode().double().eval(), cases.cifar(16)), marks=pytest.mark.slow),
    ],
    ids=["small", "published"],
)
def test_closed_form_is_exact_whatever_is_drawn(case) -> None:
    """Balunovic et al., ICLR 2022, figure 2: above 150 dB on every image."""
    torch.manual_seed(0)
    model, batch = case()
    for draw in (0, 1):
        model.bottleneck.draws.redraw(draw)
        found = Analytic().run(observe(model, batch), generator())
        assert float((-20 * rmse(found.inputs, batch.inputs).log10()).min()) > 150


def by_hand(model: Precode, batch: Batch, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean gradient [P] of cross-entropy and the weighted divergence, and its Jacobian [P, n d], by autograd."""
    inputs = batch.inputs.clone().requires_grad_()
    z = model.encoder(inputs.flatten(1))
    mean, log_variance = model.bottleneck.mean(z), model.bottleneck.log_variance(z)
    eps = torch.from_numpy(np.random.default_rng(0).standard_normal(mean.shape[1]))
    b = mean + (log_variance / 2).exp() * eps
    logits = model.head(torch.relu(model.decoder(b)))
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    loss = F.cross_entropy(logits, batch.targets) + weight * kl.mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    gradient = torch.cat([each.reshape(-1) for each in gradients])
    rows = [torch.autograd.grad(entry, inputs, retain_graph=True)[0].reshape(-1) for entry in gradient]
    return gradient.detach(), torch.stack(rows)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("weight", [0.0, 0.003, 0.5])
@pytest.mark.parametrize(
    ("description", "size"), [("gradient", 1), ("mean:3", 3), ("local:epochs=1:batch=3:lr=0.1", 3)]
)
def test_divergence_is_part_of_what_is_released(weight: float, description: str, size: int) -> None:
    """One step of plain SGD at a rate of 0.1 sends a tenth of the gradient."""
    torch.manual_seed(0)
    plain = Precode((16, 5, 4), 3, 5, 10).double().eval()
    model = with_model_defense(Checkpoint.from_model(plain), f"precode:0:{weight}").model
    batch = replace(cases.mnist(size, 4), upload_size=size)
    gradient, jacobian = by_hand(plain, batch, weight)
    factor = 0.1 if description.startswith("local") else 1.0
    release = make_release(model, F.cross_entropy, description)
    maker = jacobian_maker(release, batch) if size == 1 else joint_jacobian_maker(release, batch)
    v = normal(1, 16 * size)
    torch.testing.assert_close(release.mean(batch)[0], factor * gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(maker(batch).mean()[0].detach(), factor * gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(maker(batch).matvec(v)[0].detach(), factor * jacobian @ v[0], rtol=1e-8, atol=1e-11)


def test_loss_of_a_sample_has_its_divergence_wherever_it_is_computed() -> None:
    torch.manual_seed(0)
    model, batch = small(), cases.mnist(3, 8)
    z = model.encoder(batch.inputs.flatten(1))
    added = model.bottleneck.draws.added_loss(model.bottleneck.mean(z), model.bottleneck.log_variance(z))
    expected = (F.cross_entropy(model(batch.inputs), batch.targets, reduction="none") + added).detach()
    assert float(added.detach().min()) > 0
    together = make_release(model, F.cross_entropy, "mean:3").losses(replace(batch, upload_size=3))
    alone = PerSampleRelease(model, F.cross_entropy).losses(batch)
    reviewed = BatchMean(model, F.cross_entropy).evaluate(batch, with_gradient=True)
    for found in (together, alone.detach(), reviewed.losses):
        torch.testing.assert_close(found, expected)
    mean = BatchMean(model, F.cross_entropy).accumulated_mean(batch)
    torch.testing.assert_close(reviewed.gradient, mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("wrapped", [False, True])
def test_both_jacobians_agree(wrapped: bool) -> None:
    torch.manual_seed(0)
    plain = Checkpoint.from_model(cases.lenet(8))
    model, batch = (with_model_defense(plain, "precode").model if wrapped else small()), cases.mnist(2, 8)
    release = PerSampleRelease(model, F.cross_entropy)
    maker, v = jacobian_maker(release, batch), normal(2, 64)
    assert maker.kind == "structured"
    expected = GenericJacobian(release, batch).matvec(v).detach()
    torch.testing.assert_close(maker(batch).matvec(v), expected, rtol=1e-9, atol=1e-11)


def test_it_is_put_before_the_last_linear_layer() -> None:
    given = Checkpoint.from_model(MLP((6, 5, 3)).double(), architecture="mlp")
    defended, x = with_model_defense(given, "precode:2"), normal(2, 6)
    bottleneck, decoder, output = defended.model.layers[2]
    features = torch.relu(given.model.layers[0](x))
    torch.testing.assert_close(defended.model(x), output(decoder(bottleneck(features))))
    assert torch.equal(output.weight, given.model.layers[2].weight)
    assert (bottleneck_draw(defended.model), bottleneck_draw(given.model)) == (2, None)
    assert defended.architecture == "mlp"
    assert not defended.model.training


def test_of_a_bottleneck_that_is_there_only_the_draw_is_chosen() -> None:
    given = Checkpoint.from_model(small())
    defended = with_model_defense(given, "precode:4")
    assert defended.num_parameters == given.num_parameters
    assert (bottleneck_draw(defended.model), bottleneck_draw(given.model)) == (4, 0)
    x = cases.mnist(1, 8).inputs
    torch.testing.assert_close(defended.model(x), small(4)(x))


def test_audits_are_conditional_on_the_draw_and_say_so() -> None:
    batch = cases.mnist(2, 8)
    samples, options = Samples.from_tensors(batch.inputs, batch.targets), {"release": "gaussian:0.01"}
    first, again, other = (
        audit(cases.lenet(8), samples, model_defense=text, **options) for text in ("precode", "precode:0", "precode:1")
    )
    revealed = [[row.proxies["revealed_fraction"].value for row in one.samples] for one in (first, again, other)]
    assert revealed[0] == revealed[1] != revealed[2]
    assert (first.checkpoint.bottleneck_draw, other.checkpoint.bottleneck_draw) == (0, 1)
    assert any("number 1" in warning and "conditional" in warning for warning in other.warnings)


@pytest.mark.parametrize(
    "text",
    [
        "precod",
        "precode:3-1",
        "precode:0-64",
        "precode:0-",
        "precode:",
        "precode:-1",
        "precode:1.5",
        "precode:1:-2",
        "precode:1:x",
        "precode:1:nan",
        "precode:1:2:3",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="expected `model_defense` to be precode or precode:DRAW"):
        with_model_defense(Checkpoint.from_model(small()), text)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(SettingsError, match="a model with a linear layer"):
        with_model_defense(Checkpoint.from_model(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())), "precode")


def revealed(result: AuditResult) -> list[float | None]:
    return [row.proxies["revealed_fraction"].value for row in result.samples]


@pytest.mark.slow
@pytest.mark.parametrize("release", ["gaussian:0.01", "mean:2,gaussian:0.01"])
def test_of_several_draws_the_riskiest_stands_beside_the_spread(release: str) -> None:
    batch = cases.mnist(2, 8)
    samples = Samples.from_tensors(batch.inputs, batch.targets)

    def audited(text: str) -> AuditResult:
        return audit(cases.lenet(8), samples, model_defense=text, release=release)

    alone = [audited(f"precode:{draw}") for draw in (3, 4, 5)]
    together = audited("precode:3-5")
    assert (together.checkpoint.bottleneck_draw, together.checkpoint.num_bottleneck_draws) == (3, 3)
    for place, row in enumerate(together.samples):
        for name, estimate in row.proxies.items():
            values = [one.samples[place].proxies[name].value for one in alone]
            spread = row.over_draws[name]
            expected = [min(values), sum(values) / 3, max(values)]
            assert [spread.low, spread.mean, spread.high] == pytest.approx(expected, rel=1e-6)
            riskiest = max(values) if PROXIES[name].riskier == "higher" else min(values)
            assert estimate.value == pytest.approx(riskiest, rel=1e-6)
        assert row.over_draws["revealed_fraction"].low < row.over_draws["revealed_fraction"].high
    worst = [max(values) for values in zip(*map(revealed, alone), strict=True)]
    assert revealed(together) == pytest.approx(worst, rel=1e-6)
    assert AuditResult.model_validate_json(together.model_dump_json()).samples == together.samples
    page = render(together, ["html"])["audit.html"].decode()
    assert "audited at 3 draws (numbers 3 to 5)" in page
    assert "differs over draws by" in page
    assert any("3 draws of its noise" in warning and "riskier still" in warning for warning in together.warnings)


def test_what_one_draw_does_not_tell_no_draw_tells() -> None:
    """A draw at which a number isn't assessed leaves it so, and one at which a sample fails fails it."""
    batch = cases.mnist(2, 8)
    samples = Samples.from_tensors(batch.inputs, batch.targets)
    client = make_client(cases.lenet(8), samples, AuditSettings(model_defense="precode", release="gaussian:0.01"))
    (shard,) = audit_shards(client, plan_audit(client, None, 1, False))
    context, first = shard.context(client), shard.run(client)
    missing = {"value": None, "status": "not_converged"}
    proxies = {name: each.model_copy(update=missing) for name, each in first.rows[0].proxies.items()}
    unknown, failed = (
        row.model_copy(update=update)
        for row, update in zip(first.rows, ({"proxies": proxies}, {"status": "failed"}), strict=True)
    )
    other = replace(first, rows=[unknown, failed])
    merged = over_draws(context, [first, other])
    assert not any(estimate.assessed for estimate in merged.rows[0].proxies.values())
    assert merged.rows[0].verdict == "not_assessed"
    assert merged.rows[1].status == "failed"


def test_attacks_are_of_one_draw() -> None:
    batch = cases.mnist(2, 8)
    samples = Samples.from_tensors(batch.inputs, batch.targets)
    with pytest.raises(SettingsError, match="one draw of the bottleneck's noise to attack, found 4"):
        verify(cases.lenet(8), samples, AuditSettings(model_defense="precode:0-3"))
