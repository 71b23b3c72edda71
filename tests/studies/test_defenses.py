"""The study of defences: training by what leaves, the front on records made by hand, one study from end to end."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from study_cases import digits, perceptron
from torch import nn

from riskaudit.audit import AuditSettings
from riskaudit.errors import ReleaseError, SamplesError, SettingsError
from riskaudit.inputs import Samples
from riskaudit.inputs.architectures import get_architecture
from riskaudit.release import Batch, make_release
from riskaudit.results import Estimate
from riskaudit.statistics.groups import paired_difference
from riskaudit.studies.adaptive import with_adaptive
from riskaudit.studies.base import StudyRun, with_noise_times
from riskaudit.studies.defenses import run as module
from riskaudit.studies.defenses.front import defense_rows, equal_utility, least_errors, over_seeds
from riskaudit.studies.defenses.recommendation import recommend
from riskaudit.studies.defenses.record import DefendedSample, DefenseRun, DefensesStudy, TrainingPoint
from riskaudit.studies.defenses.run import TrainingData, defended_client, defenses_study
from riskaudit.studies.settings import AttackSettings, DefenseSettings
from riskaudit.studies.simulated_training import DivergedError, Plan, train


def batch_of(samples: Samples) -> Batch:
    return Batch(samples.inputs, samples.targets)


def flat_gradient(model: nn.Module, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    value = nn.functional.cross_entropy(model(inputs[None]), target[None])
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(value, list(model.parameters()))])


def move(model: nn.Module, update: torch.Tensor) -> None:
    with torch.no_grad():
        weights = nn.utils.parameters_to_vector(model.parameters())
        nn.utils.vector_to_parameters(weights - update, model.parameters())


def test_two_steps_of_clipped_means_are_those_by_hand() -> None:
    """Each gradient of an upload of two clipped to 0.5, the mean of two uploads, at rate 0.3."""
    samples, plan = digits(8), Plan(epochs=1, batch_size=4, rate=0.3)
    trained, by_hand = perceptron().double(), perceptron().double()
    release = make_release(trained, nn.functional.cross_entropy, "clip:0.5,mean:2")
    assert list(train(release, batch_of(samples), plan, seed=3)) == [0, 1, 2]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(module.derived_seed(3, 11))).tolist()
    for step in (order[:4], order[4:]):
        clipped = []
        for place in step:
            gradient = flat_gradient(by_hand, samples.inputs[place], samples.targets[place])
            clipped.append(gradient * min(1.0, 0.5 / float(gradient.norm())))
        assert min(0.5 / float(flat_gradient(by_hand, samples.inputs[p], samples.targets[p]).norm()) for p in step) < 1
        move(by_hand, 0.3 * torch.stack(clipped).mean(0))
    for ours, theirs in zip(trained.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_every_upload_has_noise_of_its_own_which_the_server_averages() -> None:
    samples, plan = digits(8), Plan(epochs=1, batch_size=8, rate=1.0)
    moved = {}
    for release in ("mean:8", "mean:2,gaussian:0.5", "mean:8,gaussian:0.5"):
        model = perceptron().double()
        list(train(make_release(model, nn.functional.cross_entropy, release), batch_of(samples), plan, seed=0))
        moved[release] = nn.utils.parameters_to_vector(model.parameters()).detach()
    # Four uploads halve the std of one; 310 entries tell it to 4 % (one std).
    for release, expected in (("mean:2,gaussian:0.5", 0.25), ("mean:8,gaussian:0.5", 0.5)):
        assert float((moved[release] - moved["mean:8"]).std()) == pytest.approx(expected, rel=0.2)


def test_local_training_moves_the_weights_by_what_it_sends() -> None:
    samples = digits(4)
    trained, by_hand = perceptron().double(), perceptron().double()
    release = make_release(trained, nn.functional.cross_entropy, "local:epochs=2:batch=4:lr=0.2")
    list(train(release, batch_of(samples), Plan(1, 4, 0.01), seed=0))
    for _ in range(2):
        gradients = [flat_gradient(by_hand, *pair) for pair in batch_of(samples).pairs()]
        move(by_hand, 0.2 * torch.stack(gradients).mean(0))
    for ours, theirs in zip(trained.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_what_is_not_sent_stays_and_what_is_redrawn_differs_from_step_to_step() -> None:
    samples = digits(4)
    model = perceptron().double()
    before = {name: value.clone() for name, value in model.named_parameters()}
    list(train(make_release(model, nn.functional.cross_entropy, "share:3.*"), batch_of(samples), Plan(1, 4, 1), 0))
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"3.weight", "3.bias"}
    model = perceptron().double()
    release = make_release(model, nn.functional.cross_entropy, "mean:4,dropout:0.5")
    moved, last = [], nn.utils.parameters_to_vector(model.parameters()).detach()
    for step in train(release, batch_of(samples), Plan(2, 4, 1), 0):
        now = nn.utils.parameters_to_vector(model.parameters()).detach()
        moved += [now != last] if step else []
        last = now
    assert 0.3 < float(moved[0].double().mean()) < 0.7
    assert not torch.equal(moved[0], moved[1])


def test_a_training_that_diverges_says_so() -> None:
    release = make_release(perceptron().double(), lambda out, target: out.square().sum() * 1e200, "gradient")
    with pytest.raises(DivergedError, match="step"):
        list(train(release, batch_of(digits(4)), Plan(20, 4, 1e100), 0))


def exact(value: float | None) -> Estimate:
    return Estimate(value=value, status="exact" if value is not None else "not_converged")


def made(defense: str, losses: list[float], errors: list[list[float | None]], predicted: float | None = 0.3, **more):
    """A run per loss; ``errors`` [N] of attacks at each of two points."""
    runs = []
    for number, loss in enumerate(losses):
        points = [
            TrainingPoint(
                step=step, loss=loss + 1 - step, accuracy=0.5,
                samples=[
                    DefendedSample(sample_id=str(place), status="exact", outsider_rmse=exact(predicted),
                                   attack_rmse=None if error is None else error + 0.001 * number, attack="dlg")
                    for place, error in enumerate(errors[step])
                ],
            )
            for step in (0, 1)
        ]  # fmt: skip
        runs.append(DefenseRun(defense=defense, number=number, status="finished", points=points, **more))
    return runs


EVEN = [[0.2] * 6, [0.3] * 6]


def rows_of(*groups, noisy=("a", "b", "c")):
    runs = [run for group in groups for run in group]
    names = {run.defense: run.defense in noisy for run in runs}
    return defense_rows(runs, names, "informed", 0.95), runs


def test_an_error_is_the_least_over_points_and_unknown_where_one_is() -> None:
    runs = made("a", [1.0, 1.2], [[0.2, 0.4, None, 0.5], [0.3, 0.1, 0.2, 0.5]])
    assert least_errors(runs, lambda sample: sample.attack_rmse)[0][:2].tolist() == [0.2, 0.1]
    (row,), _ = rows_of(runs)
    assert row.num_unattacked == 1
    assert row.attack_rmse.mean == pytest.approx((0.2 + 0.1 + 0.5) / 3 + 0.0005)
    assert row.least_attack == pytest.approx(0.1)
    assert (row.loss.mean, row.loss.num_seeds) == (pytest.approx(1.1), 2)
    # Student's t with one degree of freedom: 12.706 s / sqrt(2).
    assert row.loss.high - row.loss.mean == pytest.approx(12.706 * math.sqrt(0.02) / math.sqrt(2), rel=1e-3)
    assert over_seeds([1.0, None], 0.95).low is None


def test_dominated_defences_are_named_and_the_front_is_the_rest() -> None:
    rows, _ = rows_of(
        made("gradient", [1.0, 1.1], [[0.1] * 6] * 2),
        made("a", [1.5, 1.6], [[0.3] * 6] * 2),
        made("b", [1.6, 1.7], [[0.2] * 6] * 2),
        made("c", [1.5, 1.6], [[0.3] * 6] * 2),
    )
    assert {row.defense: row.dominated_by for row in rows} == {"gradient": [], "a": [], "b": ["a", "c"], "c": []}
    assert [row.on_front for row in rows] == [True, True, False, True]


def test_defences_are_compared_where_their_losses_overlap() -> None:
    rows, runs = rows_of(
        made("a", [1.0, 1.1, 1.2], [[0.4] * 6] * 2), made("b", [1.1, 1.0, 1.2], EVEN),
        made("c", [9.0, 9.1, 9.2], [[0.9] * 6] * 2),
    )  # fmt: skip
    (pair,) = equal_utility(rows, runs, "informed", 0.95, 0)
    assert (pair.first, pair.second) == ("a", "b")
    assert pair.attack_difference == pytest.approx(0.2)
    assert pair.attack_low == pytest.approx(0.2)
    assert pair.told_apart is True
    assert (pair.predicted_difference, pair.predicted_low) == (pytest.approx(0), pytest.approx(0))
    single, runs = rows_of(made("a", [1.0], EVEN), made("b", [1.0], EVEN))
    assert equal_utility(single, runs, "informed", 0.95, 0) == []


def test_differences_are_paired_by_sample_and_by_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, seeds = torch.randn(1, 20, generator=generator), torch.randn(4, 1, generator=generator)
    second = (5 * samples + 3 * seeds).double().numpy()
    value, low, high = paired_difference(second + 0.1, second, confidence=0.95, seed=0)
    assert (value, low, high) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    assert paired_difference(second[:1] + 0.1, second[:1], confidence=0.95, seed=0)[1:] == (None, None)
    assert paired_difference(second[:, :4], second[:, :4], confidence=0.95, seed=0)[1:] == (None, None)


def test_a_diverged_training_is_counted_and_not_averaged() -> None:
    runs = made("a", [1.0, 1.2, 1.4], EVEN)
    runs[1] = DefenseRun(defense="a", number=1, status="diverged", reason="the loss is not finite")
    (row,), _ = rows_of(runs)
    assert (row.num_seeds, row.num_finished, row.loss.mean) == (3, 2, pytest.approx(1.2))
    assert row.reasons == ["the loss is not finite"]
    nothing, _ = rows_of([DefenseRun(defense="b", number=0, status="failed", reason="why")])
    assert (nothing[0].loss, nothing[0].on_front) == (None, None)
    unaudited = [replace_status(run) for run in made("c", [2.0, 2.2], EVEN)]
    (row,), _ = rows_of(unaudited)
    assert (row.loss.mean, row.attack_rmse, row.num_finished) == (pytest.approx(2.1), None, 0)


def replace_status(run: DefenseRun) -> DefenseRun:
    points = [point.model_copy(update={"samples": [], "reason": "why"}) for point in run.points]
    return run.model_copy(update={"status": "unaudited", "points": points})


def test_only_what_the_prediction_supports_is_recommended() -> None:
    plain = made("gradient", [1.0, 1.1], [[0.05] * 6] * 2, 0.01)
    protected = [[0.35] * 6] * 2

    def recommended(*groups, noisy=("a", "b")):
        return recommend(rows_of(plain, *groups, noisy=noisy)[0], 0.2)

    # The cheaper of two that protect.
    line, text = recommended(made("b", [1.6, 1.7], protected), made("a", [1.4, 1.5], protected))
    assert line == "a"
    assert "--release a," in text
    # A failed attack alone is no protection, nor is a prediction at noise that nobody adds.
    line, text = recommended(made("a", [1.4, 1.5], protected, 0.1))
    assert line is None
    assert "failed attack is no protection" in text
    assert recommended(made("a", [1.4, 1.5], protected), noisy=())[0] is None
    # Nor is a prediction that an attack refutes, one sample without number, or a training that diverged.
    assert recommended(made("a", [1.4, 1.5], [[0.35] * 5 + [0.1]] * 2))[0] is None
    assert recommended(made("a", [1.4, 1.5], protected, None))[0] is None
    assert recommended(made("a", [1.4, 1.5], [[0.35] * 5 + [None]] * 2))[0] is None
    broken = made("a", [1.4, 1.5], protected)
    broken[1] = DefenseRun(defense="a", number=1, status="diverged", reason="why")
    assert recommended(broken)[0] is None
    assert recommend(rows_of(plain, made("a", [1.4, 1.5], protected))[0], 0.2, doubted=True)[0] is None
    assert "one seed" in recommended(made("a", [1.4], protected))[1]


OPTIONS = DefenseSettings(
    defenses=("clip:1,mean:2,gaussian:0.05",), train="", seeds=2, training_batch=4, points=(0,), attack_names=("dlg",)
)
RUN = StudyRun(attack_steps=3)


def studied(options: DefenseSettings = OPTIONS, run: StudyRun = RUN, **settings) -> DefensesStudy:
    data = TrainingData(digits(8), digits(10, 30))
    result = defenses_study(
        perceptron(),
        digits(2),
        data,
        AuditSettings(checks=False, proxies=("revealed_fraction",), **settings),
        run,
        options=options,
    )
    study = result.studies.get(DefensesStudy)
    assert study is not None
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> DefensesStudy:
    return studied(run=replace(RUN, log=tmp_path_factory.mktemp("log") / "trials.jsonl"))


def test_a_study_from_end_to_end(study: DefensesStudy) -> None:
    assert [row.defense for row in study.rows] == ["gradient", "clip:1,mean:2,gaussian:0.05"]
    assert study.points == [0, 2]
    plain, noisy = study.rows
    assert (plain.num_finished, noisy.num_finished, noisy.noisy, plain.noisy) == (2, 2, True, False)
    assert plain.loss.mean < plain.points[0].loss.mean
    assert plain.predicted_rmse.mean < noisy.predicted_rmse.mean
    # Informed attackers know more; samples that leave alone have one number.
    assert noisy.points[0].informed_rmse.mean < noisy.points[0].outsider_rmse.mean
    assert plain.points[0].informed_rmse is None
    first, end = study.runs[-1].points
    assert first.relative_noise_std == first.noise_std == end.noise_std == 0.05
    assert first.samples[0].relative_rmse == first.samples[0].informed_rmse
    assert end.relative_noise_std == pytest.approx(0.05 * end.gradient_norm / first.gradient_norm)
    assert end.samples[0].relative_rmse != end.samples[0].informed_rmse
    assert first.samples[0].attack == "dlg"
    # All begin with the checkpoint; trainings of one seed see the data in one order.
    assert {run.points[0].loss for run in study.runs} == {study.runs[0].points[0].loss}
    assert len({run.points[-1].loss for run in study.runs}) == 4
    assert study.control is not None


def test_the_checkpoint_is_audited_once_per_defence_and_every_point_once(monkeypatch, tmp_path) -> None:
    audits, attacks = [], []
    audited, attacked = module.audit_samples, module.attack_at
    monkeypatch.setattr(module, "audit_samples", lambda client: audits.append(1) or audited(client))
    monkeypatch.setattr(module, "attack_at", lambda *given: attacks.append(dict(given[0])) or attacked(*given))
    found = studied(DefenseSettings(**{**vars(OPTIONS), "seeds": 3}))
    # Of two defences the checkpoint, and the end of three trainings.
    assert len(audits) == len(attacks) == 2 * (1 + 3)
    # At the noise that leaves, which is none without a defence.
    assert sorted(attacks, key=list) == [{0.0: None}] * 4 + [{0.05: None}] * 4
    for defense in ("gradient", OPTIONS.defenses[0]):
        firsts = [run.points[0] for run in found.runs if run.defense == defense]
        assert firsts == [firsts[0]] * 3
    assert [run.status for run in found.runs] == ["finished"] * 6


def test_a_checkpoint_that_cannot_be_audited_leaves_its_trainings_unaudited(monkeypatch) -> None:
    audited = module.audit_samples
    calls = iter([True])

    def audit(client):
        if next(calls, False):
            raise SamplesError("no row has a number")
        return audited(client)

    monkeypatch.setattr(module, "audit_samples", audit)
    found = studied(DefenseSettings(**{**vars(OPTIONS), "seeds": 1}))
    assert [(run.status, len(run.points)) for run in found.runs] == [("unaudited", 2), ("finished", 2)]
    assert found.runs[0].reason == "after 0 steps: no row has a number"
    assert found.rows[0].loss is not None
    assert found.rows[0].attack_rmse is None


def test_finished_trainings_are_not_run_again(tmp_path, study: DefensesStudy, monkeypatch) -> None:
    log = tmp_path / "trials.jsonl"
    options = DefenseSettings(**{**vars(OPTIONS), "seeds": 1})
    whole = studied(options, replace(RUN, log=log))
    log.write_text("\n".join(log.read_text().splitlines()[:-1]) + "\n")
    begun = []
    original = module.train
    monkeypatch.setattr(module, "train", lambda *given: begun.append(1) or original(*given))
    again = studied(options, replace(RUN, log=log, resume=True))
    assert len(begun) == 1
    assert again == whole
    assert again.equal_utility == []
    with pytest.raises(SettingsError, match="another study"):
        studied(DefenseSettings(**{**vars(options), "learning_rate": 0.2}), replace(RUN, log=log, resume=True))


@pytest.mark.slow
def test_workers_give_the_same_bytes(study: DefensesStudy) -> None:
    assert studied(run=replace(RUN, workers=2)).model_dump_json() == study.model_dump_json()


@pytest.mark.parametrize(
    ("changes", "error", "expected"),
    [
        ({"defenses": ("clip:1,prun:0.9",)}, ReleaseError, "did you mean 'prune'"),
        ({"defenses": ("mean:2",), "training_batch": 3}, SettingsError, "training_batch=3.* leave out 1"),
        ({"points": (9,)}, SettingsError, "from 0 to 2"),
        ({"training_batch": 16}, SettingsError, "at least 16"),
        ({"attack_names": ("local",)}, SettingsError, "started at the truth"),
        ({"attack_names": ("nothing",)}, SettingsError, "nothing"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(changes, error, expected) -> None:
    with pytest.raises(error, match=expected):
        studied(DefenseSettings(**{**vars(OPTIONS), **changes}))


def test_training_data_of_another_shape_are_refused() -> None:
    other = Samples.from_tensors(torch.rand(8, 1, 9, 9), torch.arange(8))
    with pytest.raises(SamplesError, match="`train`"):
        defenses_study(perceptron(), digits(2), TrainingData(other), run=RUN, options=OPTIONS)


def test_a_defence_is_attacked_around_what_it_spoils() -> None:
    from riskaudit.audit.client import make_client
    from riskaudit.inputs import Checkpoint

    network = get_architecture("lenet").build(channels=1, features=48, classes=10).eval()
    client = make_client(Checkpoint.from_model(network), digits(2), AuditSettings())
    names = AttackSettings(("dlg",))
    assert with_adaptive(defended_client(client, "soteria:80", network), names, 0.1).names == ("dlg", "layer-left-out")
    assert with_adaptive(defended_client(client, "prune:0.9", network), names, 0.1).names == ("dlg",)
    assert with_adaptive(defended_client(client, "prune:0.9", network), names, 0.0).names == ("dlg", "kept-entries")
    # A layer that sees all of the input gives it in closed form, unless several samples share its gradient.
    plain = make_client(Checkpoint.from_model(perceptron()), digits(2), AuditSettings())
    assert with_adaptive(defended_client(plain, "gradient", perceptron()), names, 0.0).names == ("dlg", "analytic")
    assert with_adaptive(defended_client(plain, "mean:2", perceptron()), names, 0.0).names == ("dlg",)
    scaled = with_noise_times(defended_client(client, "laplace:0.1,mask:0.5", network), 3.0)
    assert scaled.release.noise is not None
    assert (scaled.release.noise.law, scaled.release.noise.scale) == ("laplace", pytest.approx(0.3))
    assert with_noise_times(client, 3.0).settings.reference_noise == pytest.approx(0.003)
