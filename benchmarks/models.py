"""The models and inputs that are timed: registered architectures with weights by a fixed seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from riskaudit.errors import SamplesError
from riskaudit.inputs.architectures import get_architecture
from riskaudit.inputs.architectures.registry import COLLECTIONS
from riskaudit.inputs.samples import load_samples
from riskaudit.release import Batch, PerSampleRelease, Release
from riskaudit.torchvision_compat import import_torchvision

SEED = 0


@dataclass(frozen=True)
class Case:
    """One model at one input size.

    Attributes:
        name: as ``--models`` takes it.
        build: the model with PyTorch's initialization.
        shape: of one input, (C, H, W).
        classes: number of logits.
        batch_size: samples at once, unless ``--batch-size`` says otherwise.
        few: samples that the slow contestants are timed on.
        uniform: weights uniform(-0.5, 0.5), as in the I2F paper, instead of PyTorch's initialization.
        needs_cuda: too slow for a processor.
        optional: timed where it is asked for only.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    classes: int = 10
    batch_size: int = 64
    few: int = 64
    uniform: bool = False
    needs_cuda: bool = False
    optional: bool = False


def _lenet(channels: int, size: int) -> nn.Module:
    return get_architecture("lenet").build(channels=channels, features=12 * (-(-size // 4)) ** 2, classes=10)


def _resnet50() -> nn.Module:
    """With the ImageNet stem; the collection reads the sizes off the first and the last layer's weights."""
    ends = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 2048)}
    return COLLECTIONS["torchvision"].build("resnet50", ends)


def _vision_transformer() -> nn.Module:
    """timm's smallest one, for small pictures: 64 patches of 4 x 4 pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import timm

        model: nn.Module = timm.create_model(
            "test_vit", pretrained=False, img_size=32, patch_size=4, num_classes=10, dynamic_img_size=False
        )
    return model


CASES = {
    case.name: case
    for case in (
        Case("lenet-28", lambda: _lenet(1, 28), (1, 28, 28), uniform=True),
        Case("lenet-32", lambda: _lenet(3, 32), (3, 32, 32), uniform=True),
        Case("mlp", lambda: get_architecture("mlp").build(widths=(784, 128, 10)), (1, 28, 28)),
        Case("resnet18", lambda: get_architecture("resnet18").build(), (3, 32, 32), batch_size=8, few=2),
        Case("vit", _vision_transformer, (3, 32, 32), batch_size=8, few=2, optional=True),
        Case("resnet50", _resnet50, (3, 224, 224), classes=1000, batch_size=4, few=1, needs_cuda=True),
        # For --quick: says nothing of speed.
        Case("tiny", lambda: _lenet(1, 8), (1, 8, 8), batch_size=3, few=2, uniform=True),
    )
}
DEFAULT_CASES = tuple(name for name, case in CASES.items() if name != "tiny" and not case.optional)


def build_release(case: Case, dtype: torch.dtype, device: torch.device) -> Release:
    """The plain gradient of a case's model and cross-entropy."""
    torch.manual_seed(SEED)
    model = case.build()
    if case.uniform:
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
    return PerSampleRelease(model.to(device, dtype).eval(), F.cross_entropy)


def load_batch(
    case: Case, count: int, data: Sequence[Path], dtype: torch.dtype, device: torch.device
) -> tuple[Batch, str]:
    """``count`` samples and where they come from: the first file that holds such inputs, else random ones.

    A file of fewer samples is repeated from its start.
    """
    for path in data:
        try:
            samples = load_samples(path, channels=case.shape[0], limit=count)
        except SamplesError:
            continue
        if tuple(samples.inputs.shape[1:]) == case.shape:
            places = torch.arange(count) % len(samples)
            name = samples.name if len(samples) >= count else f"{samples.name} ({len(samples)} samples, repeated)"
            return Batch(samples.inputs[places].to(device, dtype), samples.targets[places].to(device)), name
    generator = torch.Generator().manual_seed(SEED)
    inputs = torch.rand((count, *case.shape), generator=generator, dtype=torch.float64)
    targets = torch.randint(case.classes, (count,), generator=generator)
    return Batch(inputs.to(device, dtype), targets.to(device)), "uniform random inputs"


def normal_vectors(count: int, dimension: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Standard normal vectors [count, dimension], the same on every device."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return torch.randn((count, dimension), generator=generator, dtype=torch.float64).to(device, dtype)
