"""What every `Check` must do. Inherit, and give an upload in which it finds something and one in which it doesn't."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from riskaudit.checks import CHECKS, Check, SentUpload
from riskaudit.checks.run import check_upload
from riskaudit.checks.upload import UploadChecker
from riskaudit.inputs import load_loss
from riskaudit.priors import IsotropicPrior
from riskaudit.release import Batch, make_release, with_batch_statistics
from riskaudit.results.checks import CHECK_IDS
from riskaudit.tables import TableEncoding

DOCS = Path(__file__).parents[2] / "docs" / "checks"
EXACT = 1e-6
# Checks that say leak whatever the noise, as far as is known.
NOISE_PROOF = ("labels", "batch-norm-buffers")


def send(
    model: nn.Module, inputs: Tensor, targets: Tensor, release: str = "mean:all", loss: str = "cross-entropy",
    encoding: TableEncoding | None = None,
) -> SentUpload:  # fmt: skip
    """One upload of all these samples, or of the one where every sample leaves alone."""
    made = make_release(model.double().eval(), load_loss(loss), release)
    shape = tuple(inputs.shape[1:])
    checker = UploadChecker(made, IsotropicPrior(0.5, 0.3), 0.15, shape, (0.0, 1.0), encoding=encoding)
    return checker.sent(Batch(inputs, targets, len(inputs)), torch.Generator().manual_seed(0))


def mlp(features: int = 20, width: int = 60, classes: int = 4, seed: int = 0, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    first, second = nn.Linear(features, width, bias), nn.Linear(width, classes, bias)
    return nn.Sequential(first, nn.ReLU(), second).double()


def samples(count: int, features: int = 20, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, features, generator=generator, dtype=torch.float64)
    return inputs, torch.arange(count) % classes


def batch_norm_net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)).double().eval()
    return with_batch_statistics(model)


class Tokens(nn.Module):
    """Tokens with positions through one projection of every position, then their mean to classes."""

    def __init__(self, vocabulary: int = 40, length: int = 5, width: int = 24, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.projection, self.head = nn.Linear(width, width), nn.Linear(width, vocabulary if tied else 4)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        hidden: Tensor = torch.tanh(self.projection(self.tokens(tokens) + self.places(places))).mean(1)
        outputs: Tensor = self.head(hidden)
        return outputs


def sentences(count: int = 2, vocabulary: int = 40, length: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocabulary, (count, length), generator=generator), torch.arange(count) % 4


def noisy(upload: SentUpload, std: float) -> SentUpload:
    """The same with Gaussian noise."""
    made, seen = upload.release.with_noise(std), upload.observation
    of_upload = (seen.prior, upload.tolerable_rmse, seen.input_shape, (0.0, 1.0))
    checker = UploadChecker(made, *of_upload, encoding=upload.encoding)
    return checker.sent(upload.batch, torch.Generator().manual_seed(0))


class CheckContract:
    """Set the check's id; give a leaky and a safe upload."""

    id: ClassVar[str]

    def leaky(self) -> SentUpload:
        raise NotImplementedError

    def safe(self) -> SentUpload:
        raise NotImplementedError

    @property
    def check(self) -> Check:
        return CHECKS[self.id]

    def test_is_registered_and_described(self) -> None:
        assert self.id in CHECK_IDS
        for words in (self.check.title, self.check.summary, self.check.remedy, self.check.source):
            assert words.strip()
        page = (DOCS / f"{self.id}.md").read_text()
        for heading in ("# ", "## What it means", "## A leaky example", "## A safe example", "## What to do"):
            assert heading in page
        assert self.check.source.split(",")[0].split(" (")[0].split(" et al.")[0] in page

    def test_says_leak_of_samples_that_are_there(self) -> None:
        upload = self.leaky()
        leaks = [finding for finding in self.check.run(upload) if finding.status == "leak"]
        assert leaks
        for finding in leaks:
            assert finding.positions
            assert set(finding.positions) <= set(range(len(upload.batch)))
            assert len(set(finding.positions)) == len(finding.positions)

    def test_says_clear_with_a_reason(self) -> None:
        findings = self.check.run(self.safe())
        assert findings
        assert all(finding.status == "clear" and finding.reason for finding in findings)

    def test_says_from_which_noise_on_it_is_clear(self) -> None:
        leaks = [finding for finding in self.check.run(self.leaky()) if finding.status == "leak"]
        stds = [finding.clear_from_std for finding in leaks]
        if self.id in NOISE_PROOF:
            assert set(stds) == {None}
            return
        most = max(std for std in stds if std is not None)
        assert {finding.status for finding in self.check.run(noisy(self.leaky(), 1.01 * most + 1e-12))} == {"clear"}
        if most > 0:
            assert "leak" in {finding.status for finding in self.check.run(noisy(self.leaky(), 0.99 * most))}

    def test_rows_of_a_result(self) -> None:
        upload = self.leaky()
        ids = [f"sample {position}" for position in range(len(upload.batch))]
        rows = [row for row in check_upload(upload, ids, 3) if row.id == self.id]
        assert {row.upload for row in rows} == {3}
        assert {row.status for row in rows} >= {"leak"}
        for row in rows:
            assert set(row.sample_ids) <= set(ids)
            assert type(row).model_validate_json(row.model_dump_json()) == row

    def test_is_blind_to_the_order_of_samples(self) -> None:
        """What it finds of samples moves with them."""
        upload = self.leaky()
        count = len(upload.batch)
        order = list(range(count))[::-1]
        batch = Batch(upload.batch.inputs[order], upload.batch.targets[order], count)
        seen = upload.observation
        of_upload = (seen.prior, upload.tolerable_rmse, seen.input_shape, (0.0, 1.0))
        checker = UploadChecker(upload.release, *of_upload, encoding=upload.encoding)
        turned = checker.sent(batch, torch.Generator().manual_seed(0))
        for before, after in zip(self.check.run(upload), self.check.run(turned), strict=True):
            assert sorted(before.positions) == sorted(order[position] for position in after.positions)
