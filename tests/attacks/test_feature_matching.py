"""Feature matching: what is known of features, the networks that draw, and what both are worth."""

from __future__ import annotations

from dataclasses import replace

import cases
import pytest
import torch
import torch.nn.functional as F
from contracts.attack import generator, observe_uploads, rmse
from contracts.linear_operator import normal
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.attacks import AttackNotApplicable, FeatureMatching, InvertingGradients
from riskaudit.attacks.feature_matching import known_features
from riskaudit.attacks.optimise.features import FeatureDistance
from riskaudit.attacks.optimise.image_prior import NetworkDescent, UNet
from riskaudit.attacks.optimise.minimisers import Function
from riskaudit.release import Batch
from riskaudit.studies.attacking import matched_order


def network(side: int = 8, units: int = 1024) -> tuple[nn.Sequential, nn.Sequential]:
    """Two convolutions, a wide layer and a head; and what stands before the wide layer."""
    torch.manual_seed(0)
    first, second = (nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in ((1, 8), (8, 12)))
    front = nn.Sequential(first, nn.ReLU(), nn.AvgPool2d(2), second, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    wide = nn.Linear(12 * (side // 4) ** 2, units)
    return nn.Sequential(*front, wide, nn.ReLU(), nn.Linear(units, 10)).double().eval(), front


def told(known: FeatureDistance, features: Tensor) -> Tensor:
    """Share of the length of every sample's features that lies in what is known of them."""
    pairs = zip(known.bases, features, strict=True)
    return torch.stack([(basis @ row).norm() / row.norm() for basis, row in pairs])


def test_features_of_an_upload_are_told() -> None:
    torch.manual_seed(0)
    front = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten())
    model = nn.Sequential(*front, nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 10)).double().eval()
    batch = cases.digits(3)
    observation, features = observe_uploads(model, batch, "mean:3"), front(batch.inputs).detach()
    span = known_features(observation, "span", generator())
    assert {tuple(basis.shape) for basis in span.bases} == {(3, 64)}
    torch.testing.assert_close(told(span, features), torch.ones(3, dtype=torch.float64))
    directions = known_features(observation, "directions", generator())
    assert {tuple(basis.shape) for basis in directions.bases} == {(1, 64)}
    # In the place of its own label each.
    assert float(told(directions, features).min()) > 0.85


def test_without_a_wide_layer_the_last_one_gives_the_span() -> None:
    model, batch = cases.lenet(8), cases.mnist(2, 8)
    known = known_features(observe_uploads(model, batch, "mean:2"), "directions", generator())
    seen: list[Tensor] = []
    handle = model.get_submodule(known.layer).register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    model(batch.inputs)
    handle.remove()
    torch.testing.assert_close(told(known, seen[0]), torch.ones(2, dtype=torch.float64))


def test_the_penalty_is_the_share_outside_and_its_gradient_is_right() -> None:
    (model, front), batch = network(), cases.digits(2)
    observation = observe_uploads(model, batch, "mean:2")
    bases = tuple(torch.linalg.qr(normal(48, 2)).Q.T for _ in range(2))
    penalty = FeatureDistance("7", bases).bind(observation, torch.arange(2))
    x = batch.inputs.clone().requires_grad_()
    features = front(x)
    inside = [basis.T @ basis @ row for basis, row in zip(bases, features, strict=True)]
    by_hand = 1 - F.cosine_similarity(torch.stack(inside), features) ** 2
    found = penalty(x)
    torch.testing.assert_close(found, by_hand)
    slopes = [torch.autograd.grad(value.sum(), x, retain_graph=True)[0] for value in (found, by_hand)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 20), (5, 7), (1, 3, 9)])
def test_networks_draw_images_of_any_size(shape: tuple[int, ...]) -> None:
    channels = shape[0] if len(shape) == 3 else 1
    drawn = UNet(channels, shape[-2:], 8)(torch.randn(2, channels, *shape[-2:]))
    assert drawn.shape == (2, channels, *shape[-2:])
    assert 0 < float(drawn.detach().min()) < float(drawn.detach().max()) < 1


class Squares(Function):
    """||x - wanted||^2 of every row."""

    def __init__(self, wanted: Tensor) -> None:
        self.wanted = wanted

    @override
    def evaluate(self, points: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        return (points - self.wanted).square().sum(1), 2 * (points - self.wanted)

    @override
    def select(self, rows: list[int]) -> Function:
        return Squares(self.wanted[rows])

    @override
    def released_together(self, finished: Tensor) -> Tensor:
        return finished


def test_descent_of_networks_draws_what_is_wanted_row_by_row() -> None:
    wanted, start = cases.digits(2).inputs.flatten(1), 0.5 + 0.3 * normal(2, 64)
    how = NetworkDescent((1, 8, 8), seed=1, steps=60, rate=1e-2, width=8, box=(0.0, 1.0))
    both = how.minimise(Squares(wanted), start)
    alone = how.minimise(Squares(wanted[1:]), start[1:])
    assert float(both.value.max()) < 0.3 * float((wanted - wanted.mean()).square().sum(1).min())
    torch.testing.assert_close(both.points[1], alone.points[0], rtol=0, atol=1e-9)
    assert both.status == ("not_converged", "not_converged")


def test_every_term_can_be_left_out() -> None:
    """Without features, network and other priors it is the cosine distance by signed Adam, to the last digit."""
    observation = observe_uploads(network()[0], cases.digits(2), "mean:2")
    bare = FeatureMatching(3, feature=0.0, total_variation=0.0, batch_norm=0.0, image_prior=False, rate=0.1)
    plain = InvertingGradients(3, total_variation=0.0, batch_norm=0.0)
    found, expected = (attack.run(observation, generator()) for attack in (bare, plain))
    assert torch.equal(found.inputs, expected.inputs)
    for changes in ({"feature": 0.1}, {"total_variation": 0.1}, {"image_prior": True}):
        assert not torch.equal(replace(bare, **changes).run(observation, generator()).inputs, expected.inputs)


def test_models_without_a_fully_connected_layer_have_no_features() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 10, 6), nn.Flatten()).double().eval()
    observation = observe_uploads(model, cases.digits(2), "mean:2")
    with pytest.raises(AttackNotApplicable, match="a fully connected layer, and none is sent"):
        FeatureMatching(1).run(observation, generator())
    FeatureMatching(1, feature=0.0).run(observation, generator())


def mean_error(attack: FeatureMatching, batch: Batch) -> float:
    found = attack.run(observe_uploads(network(16)[0], batch, f"mean:{len(batch)}"), generator())
    return float(rmse(found.inputs[matched_order(found.inputs, batch.inputs, len(batch))], batch.inputs).mean())


@pytest.mark.slow
def test_features_and_the_network_bring_a_mean_of_four_nearer() -> None:
    """Liu, Wang and Lei, section 4.2, on a small network: each of the two terms is worth something by itself."""
    batch = cases.mnist(4, 16)
    pixels = FeatureMatching(250, rate=0.1, feature=0.0, image_prior=False)
    bare = mean_error(pixels, batch)
    assert mean_error(replace(pixels, feature=0.03), batch) < 0.9 * bare
    assert mean_error(replace(pixels, image_prior=True, rate=3e-3), batch) < 0.9 * bare
