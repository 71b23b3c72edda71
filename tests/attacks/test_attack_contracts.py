"""Every attack against the suite, and what they share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cases
import pytest
import received_cases
import torch
import torch.nn.functional as F
from contracts.attack import AttackContract, flat_batch, generator, observe, rmse
from contracts.completeness import cases_of
from torch import nn

from riskaudit.attacks import (
    ATTACKS,
    Analytic,
    Attack,
    AttackNotApplicable,
    BayesOptimal,
    CocktailParty,
    DeepLeakage,
    FeatureMatching,
    GradInversion,
    Imprint,
    ImprovedDeepLeakage,
    InvertingGradients,
    LayerLeftOut,
    MethodOfMoments,
    TabLeak,
    TokenSpanAttack,
    TransformerGradients,
)
from riskaudit.attacks.base import register
from riskaudit.errors import SettingsError
from riskaudit.release import Batch


class TestDeepLeakage(AttackContract):
    def attack(self, **changes: Any) -> Attack:
        return DeepLeakage(**changes)


class TestImprovedDeepLeakage(AttackContract):
    def attack(self, **changes: Any) -> Attack:
        return ImprovedDeepLeakage(**changes)


class TestInvertingGradients(AttackContract):
    def attack(self, **changes: Any) -> Attack:
        return InvertingGradients(**changes)


class TestGradInversion(AttackContract):
    def attack(self, **changes: Any) -> Attack:
        return GradInversion(**changes)


class TestTabLeak(AttackContract):
    def attack(self, **changes: Any) -> Attack:
        return TabLeak(**changes)


class TestTransformerGradients(AttackContract):
    def attack(self, **changes: Any) -> Attack:
        return TransformerGradients(**changes)


class TestBayesOptimal(AttackContract):
    def attack(self, **changes: Any) -> Attack:
        return BayesOptimal(**changes)


class TestAnalytic(AttackContract):
    reads_one_sample = True

    def attack(self, **changes: Any) -> Attack:
        return Analytic(**changes)

    def deterministic(self) -> Attack:
        return Analytic()

    def case(self) -> tuple[nn.Module, Batch]:
        return cases.mlp((64, 24, 10)), cases.mnist(3, 8)


class TestFeatureMatching(AttackContract):
    steps = 4

    def attack(self, **changes: Any) -> Attack:
        return FeatureMatching(**changes)


class TestMethodOfMoments(AttackContract):
    def attack(self, **changes: Any) -> Attack:
        return MethodOfMoments(**changes)

    def deterministic(self) -> Attack:
        return MethodOfMoments(restarts=1)

    def case(self) -> tuple[nn.Module, Batch]:
        return cases.mlp((64, 24, 10)), cases.mnist(3, 8)


class TestCocktailParty(AttackContract):
    def attack(self, **changes: Any) -> Attack:
        return CocktailParty(**changes)

    def deterministic(self) -> Attack:
        return CocktailParty(restarts=1)

    def case(self) -> tuple[nn.Module, Batch]:
        return cases.mlp((64, 24, 10)), cases.mnist(3, 8)


class TestImprint(AttackContract):
    reads_local_training = False

    def attack(self, **changes: Any) -> Attack:
        return Imprint(**changes)

    def deterministic(self) -> Attack:
        return Imprint()

    def case(self) -> tuple[nn.Module, Batch]:
        return received_cases.imprint_mlp(), cases.mnist(3, 8)

    def flat_case(self) -> tuple[nn.Module, Batch]:
        return received_cases.imprint_mlp(36), flat_batch()


class TestLayerLeftOut(AttackContract):
    def attack(self, **changes: Any) -> Attack:
        return LayerLeftOut(**changes)


def test_every_attack_has_a_contract() -> None:
    covered = {type(case().attack()) for case in cases_of(AttackContract, __file__)}
    # The contract's inputs are coordinates, of which no token can be tried: see test_text_attacks.
    covered.add(TokenSpanAttack)
    assert {attack for attack in ATTACKS.values() if not attack.oracle_start} == covered


OWN = ("dlg", "idlg", "inverting-gradients", "gradinversion", "bayes", "analytic")


@pytest.mark.parametrize(
    "attack",
    [
        DeepLeakage(steps=8, optimiser="adam", rate=0.1),
        BayesOptimal(steps=8, delta=0.01, num_points=2, prior="gaussian"),
        InvertingGradients(steps=8, layer_weights="exponential", signed=False, start="uniform"),
        GradInversion(steps=8, restarts=2, start="prior"),
    ],
    ids=lambda attack: attack.name,
)
def test_variants_on_batch_norm(attack: Attack) -> None:
    observation = observe(cases.residual(3), cases.cifar(2, 6), "clip:1,gaussian:0.01")
    AttackContract().check(attack.run(observation, generator()), observation)


def test_registered() -> None:
    assert set(OWN) <= set(ATTACKS)
    with pytest.raises(SettingsError, match="registered twice"):
        register(DeepLeakage)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_attack_says_what_it_is_and_what_to_try(name: str) -> None:
    attack = ATTACKS[name]
    assert attack.name == name
    assert all(text and text == text.strip() for text in (attack.title, attack.source, attack.summary))
    assert attack.grid[0] == {}
    for changes in attack.grid:
        assert isinstance(replace(replace(attack(), **changes), steps=3, restarts=2), attack)


@pytest.mark.slow
def test_strong_attacks_reconstruct_an_undefended_lenet() -> None:
    batch = cases.mnist(3, 12)
    observation = observe(cases.lenet(12), batch)
    for attack in (DeepLeakage(steps=150), InvertingGradients(steps=400)):
        found = attack.run(observation, generator(1))
        assert float(rmse(found.inputs, batch.inputs).max()) < 5e-3, attack.name


def test_improved_deep_leakage_does_not_trust_given_labels() -> None:
    batch = cases.mnist(3, 8)
    observation = observe(cases.lenet(8), batch).with_targets((batch.targets + 1) % 10)
    found = ImprovedDeepLeakage(steps=2).run(observation, generator())
    assert found.targets.tolist() == batch.targets.tolist()


@pytest.mark.parametrize("name", [name for name in OWN if name != "analytic"])
def test_labels_that_cannot_be_recovered_are_said_to_be(name: str) -> None:
    observation = observe(cases.lenet(8), cases.mnist(2, 8), known=False)
    release = type(observation.release)(observation.release.model, lambda y, t: F.mse_loss(y.sum(-1), t.double()))
    observation = replace(observation, jacobian=replace(observation.jacobian, release=release))
    with pytest.raises(AttackNotApplicable, match="cross-entropy"):
        ATTACKS[name]().run(observation, generator())


def test_attacks_run_on_the_generic_jacobian() -> None:
    observation = observe(cases.sine_net(), Batch(cases.mnist(2, 4).inputs, cases.mnist(2, 4).targets))
    assert observation.jacobian.kind == "structured" or observation.jacobian.reason
    generic = replace(observation, jacobian=replace(observation.jacobian, layout=None))
    found = DeepLeakage(steps=20, start="mean").run(generic, generator())
    expected = DeepLeakage(steps=20, start="mean").run(observation, generator())
    torch.testing.assert_close(found.inputs, expected.inputs, rtol=0, atol=1e-6)
