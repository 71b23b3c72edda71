"""Every check on an upload in which it finds something and one in which it doesn't, and against oracles."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from contracts.check import EXACT, CheckContract, Tokens, batch_norm_net, mlp, samples, send, sentences
from contracts.completeness import cases_of
from torch import Tensor, nn

from benchmarks import span_noise
from riskaudit.attacks.labels import proven_classes
from riskaudit.checks import CHECKS, SentUpload
from riskaudit.checks.run import check_upload
from riskaudit.checks.span import alignment
from riskaudit.inputs import Samples, load_samples
from riskaudit.policy import Policy
from riskaudit.results.checks import CHECK_IDS, CheckFinding, ids_in_the_clear

DATA = Path(__file__).parents[1] / "data"


def people(*categories: tuple[int, int], entries: str = "") -> Samples:
    """A table of two numbers, a category of four words and one of true and false: 7 inputs."""
    generator = torch.Generator().manual_seed(0)
    words = f'kind = "category"\ncategories = ["a", "b", "c", "d"]\n{entries}'
    columns = {
        "age": ('kind = "number"', torch.rand(len(categories), generator=generator)),
        "work": (words, ["abcd"[one] for one, _ in categories]),
        "member": ('kind = "boolean"', [other for _, other in categories]),
        "hours": ('kind = "number"', torch.rand(len(categories), generator=generator)),
    }
    with TemporaryDirectory() as folder:
        table, file = Path(folder) / "t.csv", Path(folder) / "e.toml"
        file.write_text("\n".join(f"[columns.{name}]\n{text}" for name, (text, _) in columns.items()))
        cells = zip(*(values for _, values in columns.values()), strict=True)
        rows = [",".join(str(float(cell) if isinstance(cell, Tensor) else cell) for cell in row) for row in cells]
        lines = [",".join(columns) + ",y", *(f"{row},{place % 4}" for place, row in enumerate(rows))]
        table.write_text("\n".join(lines))
        return load_samples(table, encoding=file)


def smooth(features: int = 20, width: int = 60) -> nn.Sequential:
    """Every unit has a signal for every sample."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, 4)).double()


class TestSingletonUnit(CheckContract):
    id = "singleton-unit"

    def leaky(self) -> SentUpload:
        return send(mlp(), *samples(6))

    def safe(self) -> SentUpload:
        return send(smooth(), *samples(6))


class TestSpan(CheckContract):
    id = "span"

    def leaky(self) -> SentUpload:
        return send(smooth(), *samples(3))

    def safe(self) -> SentUpload:
        return send(smooth(width=5), *samples(12))


class TestLabels(CheckContract):
    id = "labels"

    def leaky(self) -> SentUpload:
        return send(mlp(), *samples(6))

    def safe(self) -> SentUpload:
        # Outputs that are sure of themselves, and of the wrong class, say nothing of the mean output elsewhere; noise
        # covers the signs.
        model = mlp()
        with torch.no_grad():
            model[2].weight *= 60
        return send(model, *samples(7), release="mean:all,gaussian:1")


class TestHeadFeatures(CheckContract):
    id = "head-features"

    def leaky(self) -> SentUpload:
        return send(smooth(), *samples(1), release="gradient")

    def safe(self) -> SentUpload:
        inputs, targets = samples(6)
        return send(smooth(), inputs, targets % 2)


class TestBatchNormBuffers(CheckContract):
    id = "batch-norm-buffers"

    def leaky(self) -> SentUpload:
        return send(batch_norm_net(), *samples(6))

    def safe(self) -> SentUpload:
        return send(batch_norm_net(), *samples(6), release="local:epochs=2:batch=3:lr=0.1")


class TestEmbeddingRows(CheckContract):
    id = "embedding-rows"

    def leaky(self) -> SentUpload:
        return send(Tokens(), *sentences())

    def safe(self) -> SentUpload:
        return send(Tokens(), *sentences(), release="mean:all,gaussian:0.01")


class TestTokenSpan(CheckContract):
    id = "token-span"

    def leaky(self) -> SentUpload:
        return send(Tokens(), *sentences())

    def safe(self) -> SentUpload:
        return send(Tokens(width=8), *sentences(4))


class TestCategoryColumns(CheckContract):
    id = "category-columns"

    def leaky(self) -> SentUpload:
        found = people((0, 1), (2, 0), (2, 1))
        return send(smooth(7), found.inputs, found.targets, encoding=found.encoding)

    def safe(self) -> SentUpload:
        found = people((0, 0), (1, 1), (2, 0), (3, 1))
        return send(smooth(7), found.inputs, found.targets, encoding=found.encoding)


class TestLoneContributor(CheckContract):
    id = "lone-contributor"

    def leaky(self) -> SentUpload:
        return send(mlp(), *samples(6))

    def safe(self) -> SentUpload:
        return send(smooth(), *samples(6))


def test_every_check_is_here() -> None:
    assert set(CHECKS) == set(CHECK_IDS) == {case.id for case in cases_of(CheckContract, __file__)}


def by_backpropagation(model: nn.Sequential, inputs: Tensor, targets: Tensor) -> set[int]:
    """Positions of samples for which some unit of the first layer has a signal while it has none for any other."""
    hidden = model[0](inputs).detach().requires_grad_()
    loss = nn.functional.cross_entropy(model[1:](hidden), targets)
    (signals,) = torch.autograd.grad(loss, hidden)
    alone = (signals != 0).sum(0) == 1
    return {int(position) for position in (signals[:, alone] != 0).float().argmax(0)}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("bias", [True, False])
def test_no_false_alarm_on_200_random_networks(bias: bool) -> None:
    false, missed, total = 0, 0, 0
    for seed in range(200):
        count, width = 2 + seed % 9, 8 + 7 * (seed % 5)
        model, (inputs, targets) = mlp(width=width, seed=seed, bias=bias), samples(count, seed=seed)
        findings = [each for each in CHECKS["singleton-unit"].run(send(model, inputs, targets)) if each.layer == "0"]
        assert {each.recovers for each in findings} == {"input" if bias else "scaled_input"}
        # What is only nearly an input is no claim of this.
        said = {position for each in findings if each.exactness == "exact" for position in each.positions}
        expected = by_backpropagation(model, inputs, targets)
        false += len(said - expected)
        missed += len(expected - said)
        total += len(expected)
    assert (false, missed) == (0, 0)
    assert total > 200


@pytest.mark.parametrize(
    "release",
    [
        "gradient",
        "mean:all",
        "clip:0.1,mean:all",
        "mean:all,clip:0.1",
        "mean:all,prune:0.5",
        "local:epochs=2:batch=3:lr=0.1",
        "local:epochs=2:batch=3:lr=0.1:momentum=0.9",
        "local:epochs=2:batch=3:lr=0.1:momentum=0.9:weight_decay=0.01",
    ],
)
def test_the_input_is_recovered_from_the_upload_alone(release: str) -> None:
    """Not only said: the quotient of what leaves is the input, to 1e-6."""
    inputs, targets = samples(1 if release == "gradient" else 6)
    model = mlp(width=120)
    upload = send(model, inputs, targets, release)
    (first, *_) = CHECKS["singleton-unit"].run(upload)
    assert first.status == "leak"
    assert first.recovers == "input"
    assert first.layer == "0"
    layer = upload.fully_connected[0]
    assert layer.weight is not None
    assert layer.bias is not None
    quotients = layer.weight / layer.bias[:, None]
    for position in first.positions:
        gaps = (quotients - inputs[position]).abs()
        if "prune" in release:
            gaps = torch.where(layer.weight != 0, gaps, 0.0)
            gaps[(layer.weight != 0).sum(1) < 2] = torch.inf
        assert float(gaps.amax(1).nan_to_num(torch.inf).min()) < EXACT * float(inputs[position].max())


@pytest.mark.parametrize("bias", [True, False])
def test_what_next_to_nothing_mixes_with_is_nearly_in_the_clear(bias: bool) -> None:
    """Other samples' signals are 10,000 times smaller behind a leaky ReLU: the error is said, and forbidden."""
    inputs, targets = samples(6)
    model = mlp(width=120, bias=bias)
    model[1] = nn.LeakyReLU(1e-4)
    upload = send(model, inputs, targets)
    (first,) = [each for each in CHECKS["singleton-unit"].run(upload) if each.layer == "0"]
    assert (first.status, first.exactness) == ("leak", "predicted")
    assert first.recovers == ("input" if bias else "scaled_input")
    weight = upload.entries["0.weight"]
    for position, error in first.details["relative_error"].items():
        factors = weight @ inputs[position] / weight.square().sum(1)
        if bias:
            factors = 1 / upload.entries["0.bias"]
        gaps = (weight * factors[:, None] - inputs[position]).abs().amax(1) / inputs[position].max()
        assert EXACT < float(gaps.min()) < 1e-2
        assert error <= float(gaps.min()) * (1 + 1e-9)
    rows = check_upload(upload, list("abcdef"), only=["singleton-unit"])
    assert Policy(forbid_checks=("singleton-unit",)).forbidden(rows)[1]


@pytest.mark.parametrize("bias", [True, False])
def test_a_mixture_of_inputs_that_are_alike_is_none_of_them(bias: bool) -> None:
    alike = samples(1)[0] + 1e-3 * samples(6)[0]
    model = smooth()
    if not bias:
        model[0] = nn.Linear(20, 60, bias=False).double()
    (first, *_) = CHECKS["singleton-unit"].run(send(model, alike, torch.arange(6) % 4))
    assert first.status == "clear"


@pytest.mark.parametrize(("bias", "share"), [(False, ""), (True, ",share:0.weight")])
@pytest.mark.parametrize(
    "release", ["gradient", "clip:0.1,mean:all", "local:epochs=2:batch=3:lr=0.1:momentum=0.9:weight_decay=0.01"]
)
def test_without_a_bias_the_input_is_recovered_up_to_a_factor(release: str, bias: bool, share: str) -> None:
    """A row of what leaves points where the input does, to 1e-6 after the best scaling."""
    inputs, targets = samples(1 if release == "gradient" else 6)
    upload = send(mlp(width=120, bias=bias), inputs, targets, release + share)
    (first, *_) = CHECKS["singleton-unit"].run(upload)
    assert (first.status, first.recovers, first.layer) == ("leak", "scaled_input", "0")
    weight = upload.entries["0.weight"]
    for position in first.positions:
        factors = weight @ inputs[position] / weight.square().sum(1)
        gaps = (weight * factors[:, None] - inputs[position]).abs().amax(1)
        assert float(gaps.nan_to_num(torch.inf).min()) < EXACT * float(inputs[position].max())


@pytest.mark.parametrize("seed", range(3))
def test_the_range_gives_the_factor_of_inputs_that_reach_its_end(seed: int) -> None:
    inputs, targets = samples(4, seed=seed)
    inputs = inputs.clamp_max(0.9)
    inputs[::2, 3] = 1.0
    (first, *_) = CHECKS["singleton-unit"].run(send(mlp(width=120, seed=seed, bias=False), inputs, targets))
    assert first.details["scale_known"] == {0: 1.0, 1: 0.0, 2: 1.0, 3: 0.0}


def test_noise_hides_the_direction_of_an_input_that_is_nearly_zero() -> None:
    """An error below half the prior's std is no knowledge where the input itself is smaller than that."""
    inputs, targets = samples(1)
    (first, *_) = CHECKS["singleton-unit"].run(send(mlp(bias=False), inputs / 100, targets, "gradient,gaussian:0.01"))
    assert first.status == "clear"


def test_a_number_up_to_a_factor_is_none() -> None:
    inputs, targets = samples(1, features=1)
    (first, *_) = CHECKS["singleton-unit"].run(send(mlp(features=1, bias=False), inputs, targets, "gradient"))
    assert first.status == "clear"


@pytest.mark.parametrize("bias", [True, False])
def test_differences_of_planted_rows_give_inputs_although_the_bias_stays(bias: bool) -> None:
    """All rows one direction, thresholds spread: only differences of neighbours belong to one sample."""
    inputs, targets = samples(6)
    model = mlp(width=120)
    with torch.no_grad():
        model[0].weight[:] = 1 / 20
        model[0].bias[:] = -torch.linspace(0.3, 0.7, 120)
        model[2].weight[:] = model[2].weight[:, :1]
    upload = send(model, inputs, targets, "mean:all" if bias else "mean:all,share:0.weight")
    (first, *_) = CHECKS["singleton-unit"].run(upload)
    assert (first.status, first.recovers) == ("leak", "input" if bias else "scaled_input")
    assert len(first.positions) == 6


@pytest.mark.parametrize("std", [1e-4, 10])
def test_noise_leaves_the_direction_that_is_predicted(std: float) -> None:
    """Root mean square over draws of the best multiple of the first singular vector, which needs no signals."""
    inputs, targets = samples(1)
    upload = send(mlp(bias=False), inputs, targets, f"gradient,gaussian:{std}")
    (first, *_) = CHECKS["singleton-unit"].run(upload)
    if std > 1:
        assert first.status == "clear"
        return
    assert (first.status, first.exactness, first.recovers) == ("leak", "predicted", "scaled_input")
    weight, generator, errors = upload.entries["0.weight"], torch.Generator().manual_seed(0), []
    for _ in range(400):
        noisy = weight + std * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        direction = torch.linalg.svd(noisy, full_matrices=False)[2][0]
        errors.append((direction * (direction @ inputs[0]) - inputs[0]).square().mean())
    assert first.predicted_rmse == pytest.approx(float(torch.stack(errors).mean().sqrt()), rel=0.1)


def test_features_of_a_head_without_bias_are_recovered_up_to_a_factor() -> None:
    inputs, targets = samples(1)
    model = mlp(bias=False)
    upload = send(model, inputs, targets, "gradient")
    (finding,) = CHECKS["head-features"].run(upload)
    assert (finding.status, finding.exactness, finding.recovers) == ("leak", "exact", "scaled_features")
    features, row = model[:2](inputs)[0], upload.entries["2.weight"][0]
    assert (
        float((row / row.norm() - features / features.norm()).abs().max().detach()) < EXACT
        or float((row / row.norm() + features / features.norm()).abs().max().detach()) < EXACT
    )


class Twice(nn.Module):
    """One fully connected layer, called for both halves of the input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.head = nn.Linear(10, 40), nn.Linear(40, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(torch.relu(self.shared(inputs[:, :10]) + self.shared(inputs[:, 10:])))
        return outputs


class Functional(nn.Module):
    """Matrices that no layer holds, as in programs that were exported."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Parameter(torch.randn(40, 20)), nn.Parameter(torch.randn(4, 40))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(inputs @ self.first.T) @ self.second.T


def whole_convolution() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Unflatten(1, (1, 4, 5)), nn.Conv2d(1, 40, (4, 5)), nn.Flatten(), nn.ReLU(), nn.Linear(40, 4)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("model", "unread", "ids"),
    [
        (Twice(), ["shared.weight"], ("singleton-unit", "span")),
        (Functional(), ["first", "second"], ("singleton-unit", "span", "head-features")),
        (whole_convolution(), ["1.weight"], ("singleton-unit", "span")),
        (mlp(), [], ()),
        (Tokens(), [], ()),
        (Tokens(tied=True), ["tokens.weight"], ("singleton-unit", "span", "head-features")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_check_can_read_is_no_clearance(model, unread, ids) -> None:
    batch = sentences() if isinstance(model, Tokens) else samples(3)
    upload = send(model, *batch)
    assert upload.unread_matrices == unread
    read = [name for name in CHECK_IDS if name != "labels"]  # of tokens no dummies can be drawn
    rows = check_upload(upload, [str(position) for position in range(len(upload.batch))], only=read)
    failed = [row for row in rows if row.status == "failed"]
    assert {row.id for row in failed} == set(ids)
    assert all(unread[0] in (row.reason or "") for row in failed)
    for name in ids:
        assert Policy(forbid_checks=(name,)).forbidden(rows)[0]


@pytest.mark.parametrize(
    "release", ["mean:all,share:2.*", "mean:all,mask:0.5", "clip:0.1,mean:all", "mean:all,clip:0.1"]
)
def test_only_entries_that_leave_count_as_filled(release: str) -> None:
    upload = send(mlp(), *samples(6), release=release)
    (finding,) = CHECKS["lone-contributor"].run(upload)
    assert finding.details["filled"] == int((upload.mean != 0).sum())
    if "share" in release:
        assert finding.details["filled"] <= 60 * 4 + 4


def test_a_span_of_all_pixels_that_are_not_black_rules_nothing_out() -> None:
    inputs, targets = samples(6)
    inputs[:, 4:] = 0
    findings = CHECKS["span"].run(send(smooth(), inputs, targets))
    assert findings[0].status == "clear"


def test_adam_leaves_no_quotient() -> None:
    (first, *_) = CHECKS["singleton-unit"].run(
        send(mlp(), *samples(6), release="local:epochs=2:batch=3:lr=0.001:optimizer=adam")
    )
    assert first.status == "clear"
    assert first.reason is not None
    assert "Adam" in first.reason


def test_a_layer_behind_a_scale_and_a_shift_sees_the_input_and_one_behind_another_layer_features() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(width=120)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.body((inputs - 0.3) / 0.2)
            return outputs

    findings = CHECKS["singleton-unit"].run(send(Normalised(), *samples(1), release="gradient"))
    assert [(finding.layer, finding.recovers) for finding in findings] == [("body.0", "input"), ("body.2", "features")]


def test_noise_leaves_the_error_that_is_predicted() -> None:
    """Root mean square over draws of what the best quotients give, against sigma sqrt(1 + x^2) / |D|."""
    inputs, targets = samples(1)
    std = 1e-4
    upload = send(mlp(), inputs, targets, f"gradient,gaussian:{std}")
    (first, *_) = CHECKS["singleton-unit"].run(upload)
    assert first.status == "leak"
    assert first.exactness == "predicted"
    layer = upload.fully_connected[0]
    assert layer.weight is not None
    assert layer.bias is not None
    units = layer.bias != 0
    generator, errors = torch.Generator().manual_seed(0), []
    for _ in range(400):
        weight = layer.weight + std * torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
        bias = layer.bias + std * torch.randn(layer.bias.shape, generator=generator, dtype=torch.float64)
        recovered = (weight * layer.bias[:, None])[units].sum(0) / (bias * layer.bias)[units].sum()
        errors.append((recovered - inputs[0]).square().mean())
    measured = float(torch.stack(errors).mean().sqrt())
    assert first.predicted_rmse == pytest.approx(measured, rel=0.1)
    drowned = CHECKS["singleton-unit"].run(send(mlp(), inputs, targets, "gradient,gaussian:10"))
    assert {finding.status for finding in drowned} == {"clear"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", span_noise.FILES)
@pytest.mark.parametrize("level", span_noise.LEVELS)
def test_directions_stand_out_of_the_noise_as_predicted(name: str, level: float) -> None:
    """Squared cosines of what the check says stands out, over draws, within 0.03 for the first direction."""
    file = span_noise.FILES[name]
    images = load_samples(DATA / f"{file}.npz", channels=3 if "cifar" in file else 1, limit=span_noise.SIZE)
    predicted, measured = span_noise.compare(span_noise.network(name), images, level, draws=4)
    assert float(measured[0]) == pytest.approx(float(predicted[0]), abs=0.03)


def test_alignment_falls_with_the_noise_and_ends_at_the_threshold() -> None:
    values = torch.tensor([2.0], dtype=torch.float64)
    cosines = [float(alignment(values, 50, 80, std)) for std in (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)]
    assert cosines[0] == 1.0
    assert all(later <= earlier for earlier, later in pairwise(cosines))
    threshold = 2.0 / (50 * 80) ** 0.25
    assert float(alignment(values, 50, 80, 0.99 * threshold)) > 0
    assert float(alignment(values, 50, 80, 1.01 * threshold)) == 0


def test_the_statistics_are_those_of_the_batch() -> None:
    """What torch's own batch norm makes of a batch gives its mean and variance back."""
    inputs, targets = samples(6)
    (finding,) = CHECKS["batch-norm-buffers"].run(send(batch_norm_net(), inputs, targets))
    assert finding.details["channels"] == 12
    layer = nn.BatchNorm1d(20).double().train()
    layer(inputs)
    assert torch.allclose(layer.running_mean / 0.1, inputs.mean(0))
    assert torch.allclose((layer.running_var - 0.9) / 0.1, inputs.var(0))


def test_tied_output_weights_hide_the_bag_of_words() -> None:
    findings = CHECKS["embedding-rows"].run(send(Tokens(tied=True), *sentences()))
    assert "tokens" not in {finding.layer for finding in findings if finding.status == "leak"}


def test_every_token_is_tried_and_false_ones_are_counted() -> None:
    tokens, targets = sentences()
    (finding,) = CHECKS["token-span"].run(send(Tokens(), tokens, targets))
    assert finding.status == "leak"
    assert list(finding.positions) == [0, 1]
    assert finding.details["vocabulary"] == 40
    assert finding.details["false_tokens"] == 0


def test_a_check_that_fails_says_so_and_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(upload: SentUpload) -> list[object]:
        raise ZeroDivisionError("private words")

    monkeypatch.setattr(CHECKS["span"], "run", broken)
    rows = check_upload(send(mlp(), *samples(3)), ["a", "b", "c"])
    (failed,) = [row for row in rows if row.status == "failed"]
    assert failed.id == "span"
    assert failed.reason is not None
    assert "private" not in failed.reason
    assert {row.id for row in rows} == set(CHECK_IDS)


def test_only_inputs_and_tokens_count_as_in_the_clear() -> None:
    def row(recovers: str, status: str, *ids: str) -> CheckFinding:
        return CheckFinding.model_validate(
            {"id": "span", "title": "", "status": status, "exactness": "exact", "recovers": recovers, "sample_ids": ids}
        )

    rows = [row("input", "leak", "b", "a"), row("tokens", "leak", "a"), row("features", "leak", "c")]
    assert ids_in_the_clear([*rows, row("input", "clear")]) == ["b", "a"]


@pytest.mark.parametrize(
    "release",
    [
        "mean:all,clip:0.1", "clip:0.01,mean:all", "mean:all,prune:0.3", "local:epochs=2:batch=3:lr=0.5,clip:0.1",
        "local:epochs=2:batch=3:lr=0.01:optimizer=adam", "mean:all,clip:0.1,gaussian:1e-6",
    ],
)  # fmt: skip
def test_signs_prove_labels_in_uploads_whose_counts_can_not_be_read(release: str) -> None:
    inputs, targets = samples(6)
    targets = torch.tensor([0, 0, 0, 2, 2, 1])
    (row,) = check_upload(send(mlp(), inputs, targets, release=release), list("abcdef"), only=["labels"])
    assert row.status == "leak"
    assert row.exactness == ("predicted" if "gaussian" in release else "exact")
    # Never a class that isn't there, and all samples of one that is.
    proven = {int(targets["abcdef".index(name)]) for name in row.sample_ids}
    assert row.details["classes"] == len(proven) > 0
    assert row.sample_ids == [name for name, label in zip("abcdef", targets.tolist(), strict=True) if label in proven]
    assert "not how often" in row.reason


@pytest.mark.parametrize("seed", range(5))
def test_signs_name_no_class_that_is_not_there(seed: int) -> None:
    torch.manual_seed(seed)
    inputs, targets = torch.rand(8, 64, dtype=torch.float64), torch.randint(0, 10, (8,))
    local = "local:epochs=2:batch=2:lr"
    for release in (
        "clip:0.05,mean:all",
        f"{local}=0.1:optimizer=adam",
        f"{local}=2:momentum=0.9",
        "mean:all,prune:0.9",
    ):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
        (named,) = proven_classes(send(model, inputs, targets, release=release).observation)
        assert set(named) <= set(targets.tolist())


@pytest.mark.parametrize(
    ("release", "status"),
    [
        ("local:epochs=1:batch=3:lr=0.01:optimizer=adam:weight_decay=0.1", "failed"),
        ("mean:all,share:*weight", "failed"),
        ("mean:all,share:0.*", "not_applicable"),
    ],
)
def test_labels_that_can_not_be_read_this_way_are_no_clearance(release: str, status: str) -> None:
    rows = check_upload(
        send(mlp(), *samples(6), release=release), [str(number) for number in range(6)], only=["labels"]
    )
    assert [row.status for row in rows] == [status]
    assert bool(Policy(forbid_checks=("labels",)).forbidden(rows)[0]) == (status == "failed")


@pytest.mark.parametrize("entries", ["", "drop_first = true", "mean = 0.25\nstd = 0.43", 'missing = "zeros"'])
@pytest.mark.parametrize("release", ["gradient", "clip:0.01", "local:epochs=2:batch=1:lr=0.1:weight_decay=0.1"])
def test_the_category_of_a_sample_alone(entries: str, release: str) -> None:
    for category in range(4):
        found = people((category, category % 2), entries=entries)
        model = smooth(found.inputs.shape[1])
        upload = send(model, found.inputs, found.targets, release, encoding=found.encoding)
        (finding,) = CHECKS["category-columns"].run(upload)
        assert (finding.status, finding.exactness, finding.positions) == ("leak", "exact", range(1))
        assert finding.details["categories"] == {"work": 1.0, "member": 1.0}
        assert (finding.details["false_columns"], finding.details["not_determined"]) == (0, 0)


def test_the_categories_of_a_batch() -> None:
    found = people((0, 1), (2, 0), (2, 1))
    (finding,) = CHECKS["category-columns"].run(send(smooth(7), found.inputs, found.targets, encoding=found.encoding))
    # Both truth values occur, which rules nothing out.
    assert finding.details["categories"] == {"work": 2.0}
    assert finding.details["false_columns"] == 0


def test_categories_that_the_gradient_does_not_show() -> None:
    found = people((1, 1))
    # No unit has a signal.
    dead = mlp(7, 6)
    with torch.no_grad():
        dead[0].bias -= 100
    upload = send(dead, found.inputs, found.targets, "gradient", encoding=found.encoding)
    (finding,) = CHECKS["category-columns"].run(upload)
    assert (finding.status, finding.details["false_columns"]) == ("clear", 2)
    # Without the bias's gradient a boolean's two codes of one input can't be told, but for whether it is 1.
    upload = send(smooth(7), found.inputs, found.targets, "share:0.weight", encoding=found.encoding)
    (finding,) = CHECKS["category-columns"].run(upload)
    assert (finding.status, finding.details["not_determined"]) == ("leak", 1)
    assert finding.details["categories"] == {"work": 1.0}
    plain = send(smooth(7), found.inputs, found.targets, "gradient")
    assert [each.status for each in CHECKS["category-columns"].run(plain)] == ["not_applicable"]
