"""``resnet18``, ``resnet34``, ``resnet50`` with the CIFAR stem: 3x3 convolution of stride 1, no max-pool.

He et al., "Deep Residual Learning", CVPR 2016. Names are torchvision's; the other customary names
(``shortcut``, ``linear``) are accepted. The ImageNet stem is ``torchvision:resnet18`` and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from riskaudit.inputs.architectures.registry import Guess, Shapes, register, shape_at

STEM_CHANNELS = 64
ASSUMED = "ReLU, no pooling behind the stem, stride 2 at the start of the second, third and fourth stage"


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; x [B, inputs, H, W] to [B, width, H/stride, W/stride]."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for a batch x [B, inputs, H, W]."""
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + identity)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut; x [B, inputs, H, W] to [B, 4 width, H/stride, W/stride]."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = _convolution(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for a batch x [B, inputs, H, W]."""
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + identity)


class CifarResNet(nn.Module):
    """x [B, C, H, W], any H and W, to logits [B, classes]; ``depths`` are the numbers of blocks of the four stages."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int], channels: int = 3, classes: int = 10
    ) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, STEM_CHANNELS, 3)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        inputs = STEM_CHANNELS
        for stage, depth in enumerate(depths):
            width = STEM_CHANNELS * 2**stage
            blocks: list[nn.Module] = []
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(block(inputs, width, stride))
                inputs = width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of a batch x [B, C, H, W]."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(4):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _infer(shapes: Shapes) -> Guess:
    _, channels, _, _ = shape_at(shapes, "conv1.weight", 4)
    classes, _ = shape_at(shapes, "fc.weight", 2)
    arguments = {"channels": channels, "classes": classes}
    return Guess(arguments, num_classes=classes, input_channels=channels, assumed=ASSUMED)


def _rename(shapes: Shapes, _named: bool) -> Mapping[str, str]:
    renames = {name: name.replace(".shortcut.", ".downsample.") for name in shapes if ".shortcut." in name}
    return renames | {f"linear.{kind}": f"fc.{kind}" for kind in ("weight", "bias") if f"linear.{kind}" in shapes}


def _declare(name: str, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int]) -> Callable[..., nn.Module]:
    description = f"ResNet with {sum(depths)} blocks, CIFAR stem (3x3, no max-pool), batch norm"
    return register(name, description=description, infer=_infer, rename=_rename)(partial(CifarResNet, block, depths))


resnet18 = _declare("resnet18", BasicBlock, (2, 2, 2, 2))
resnet34 = _declare("resnet34", BasicBlock, (3, 4, 6, 3))
resnet50 = _declare("resnet50", Bottleneck, (3, 4, 6, 3))
