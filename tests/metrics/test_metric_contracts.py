"""Every metric by the contract of metrics; those of LPIPS with random backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contracts.completeness import cases_of
from contracts.metric import MetricContract
from torch import nn

from riskaudit.metrics import METRICS, Metric, Subject, TextVocabulary
from riskaudit.metrics.pixels import PSNR_CAP
from riskaudit.tables import Category, NumberColumn, TableEncoding
from riskaudit.torchvision_compat import import_torchvision


class TestMeanSquaredError(MetricContract):
    name = "mse"


class TestRootMeanSquaredError(MetricContract):
    name = "rmse"


class TestPeakSignalToNoise(MetricContract):
    name = "psnr"
    exact_match = PSNR_CAP


class TestStructuralSimilarity(MetricContract):
    name = "ssim"
    exact_match = 1.0
    tolerance = 1e-7


class TestFeatureError(MetricContract):
    name = "feature_mse"
    tolerance = 1e-6

    def subject(self) -> Subject:
        torch.manual_seed(0)
        return Subject((5,), (0.0, 1.0), nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2)))


class TestFeatureOutsideSpan(MetricContract):
    name = "feature_span"
    tolerance = 1e-6

    def subject(self) -> Subject:
        torch.manual_seed(0)
        return Subject((5,), (0.0, 1.0), nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2)))


class OfTablesContract(MetricContract):
    """Columns between 0 and 1: half of them numbers, half of them categories of three."""

    exact_match = 1.0

    def subject(self) -> Subject:
        numbers = [NumberColumn(f"n{place}", scaled_by="range") for place in range(60)]
        words = [Category(f"c{place}", ("a", "b", "c")) for place in range(60)]
        return Subject((240,), (0.0, 1.0), encoding=TableEncoding((*numbers, *words)))


class TestCategoryMatch(OfTablesContract):
    name = "category_match"


class TestNumberMatch(OfTablesContract):
    name = "number_match"


class OfTextsContract(MetricContract):
    """Positions in four dimensions, and a vocabulary of 50 tokens among them."""

    exact_match = 1.0

    def subject(self) -> Subject:
        rows = torch.rand(50, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        return Subject((60, 4), texts=TextVocabulary(rows, torch.zeros(0, dtype=torch.long)))


class TestTokenAccuracy(OfTextsContract):
    name = "token_accuracy"


class TestRougeOne(OfTextsContract):
    name = "rouge1"


class TestRougeTwo(OfTextsContract):
    name = "rouge2"


class TestRougeL(OfTextsContract):
    name = "rougeL"


class TestBleu(OfTextsContract):
    name = "bleu"
    symmetric = False


class LpipsContract(MetricContract):
    """Distances of features in single precision."""

    tolerance = 1e-5
    backbone: tuple[str, str]

    @pytest.fixture
    def metric(self, tmp_path: Path) -> Metric:
        torch.manual_seed(1)
        model, file = self.backbone
        torch.save(import_torchvision().models.get_model(model, weights=None).state_dict(), tmp_path / file)
        metric = METRICS[self.name](Subject((3, 40, 40), (0.0, 1.0), weights_folder=tmp_path))
        assert metric.reason is None
        return metric


class TestLpipsSqueeze(LpipsContract):
    name = "lpips_squeeze"
    backbone = ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth")


@pytest.mark.slow
class TestLpips(LpipsContract):
    name = "lpips"
    backbone = ("alexnet", "alexnet-owt-7be5be79.pth")


@pytest.mark.slow
class TestLpipsVgg(LpipsContract):
    name = "lpips_vgg"
    backbone = ("vgg16", "vgg16-397923af.pth")


def test_every_metric_has_its_contract() -> None:
    assert {case.name for case in cases_of(MetricContract, __file__)} == set(METRICS)
