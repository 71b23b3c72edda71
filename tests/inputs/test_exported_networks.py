"""Networks of the usual families as exported programs: they load, compute the same, and differentiate twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from input_cases import random_module
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn.functional import cosine_similarity, normalize, pad

from riskaudit.errors import CheckpointError
from riskaudit.inputs import load_checkpoint
from riskaudit.inputs.exported.operators import Operator

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

SHAPE = (2, 8, 8)


class LastChannels(nn.Module):
    """A block of ConvNeXt: depthwise, layer norm over channels, layer scale; pooled at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.norm, self.wide, self.narrow = nn.LayerNorm(2), nn.Linear(2, 4), nn.Linear(4, 2)
        self.scale, self.head = nn.Parameter(torch.ones(2, 1, 1)), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.narrow(nn.functional.gelu(self.wide(self.norm(self.deep(x).permute(0, 2, 3, 1)))))
        return self.head(nn.functional.adaptive_avg_pool2d(x + self.scale * inner.permute(0, 3, 1, 2), 1).flatten(1))


class ShiftedWindows(nn.Module):
    """Attention of Swin within shifted windows, with a mask that is filled region by region."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(2, 6), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(x.permute(0, 2, 3, 1), (-2, -2), (1, 2))
        q, k, v = self.qkv(self.windows(x)).chunk(3, -1)
        regions = x.new_zeros((1, 8, 8, 1))
        for number, part in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
            regions[:, part] = number
        region = self.windows(regions)[..., 0]
        difference = region.unsqueeze(1) - region.unsqueeze(2)
        mask = difference.masked_fill(difference != 0, -100.0).masked_fill(difference == 0, 0.0)
        scores = (q @ k.mT).view(x.shape[0], 4, 16, 16) + mask
        return self.head((scores.softmax(-1) @ v.view(x.shape[0], 4, 16, 2)).mean((1, 2)))

    @staticmethod
    def windows(x: Tensor) -> Tensor:
        parts = x.reshape(x.shape[0], 2, 4, 2, 4, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
        return parts.reshape(x.shape[0] * 4, 16, x.shape[-1])


class Inverted(nn.Module):
    """A block of MobileNet and EfficientNet: expansion, depthwise, squeeze and excitation, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.Hardswish())
        self.deep = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1, groups=6), nn.BatchNorm2d(6), nn.SiLU())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 6, 1), nn.Hardsigmoid()
        )
        self.project, self.head = nn.Conv2d(6, 2, 1), nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 3))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.deep(self.expand(x))
        return self.head(x + self.project(inner * self.gate(inner)))


class Dense(nn.Module):
    """Dense blocks: all earlier maps joined, a transition with average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 2, 3, 1, 1)) for n in (2, 4)
        )
        self.head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 3))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return self.head(torch.cat(maps, 1))


class Encoder(nn.Module):
    """Patches, a class token, positions, a transformer encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Conv2d(2, 8, 4, 4), nn.Parameter(torch.zeros(1, 1, 8))
        self.place = nn.Parameter(torch.zeros(1, 5, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.layers(torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.place)[:, 0])


class SmallUNet(nn.Module):
    """Group and layer norms, strided down, transposed and interpolated up, a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(4, 4, 4, 2, 1), nn.LayerNorm([4, 4, 4]), nn.GELU())
        self.up, self.smooth = nn.ConvTranspose2d(4, 2, 2, 2), nn.Upsample(scale_factor=2, mode="bilinear")
        self.last, self.head = nn.Conv2d(10, 1, 1), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        low = self.down(first)
        return self.head(self.last(torch.cat([first, self.up(low), self.smooth(low)], 1)).flatten(1))


class Norms(nn.Module):
    """Weight norm, bilinear layers, cosine similarity, norms, remainders, reflected borders."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3))
        self.pair, self.head = nn.Bilinear(4, 4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.tanh(self.conv(pad(x, (1, 1, 1, 1), "reflect")))
        first, second = maps.mean((2, 3)), maps.amax((2, 3))
        pair = self.pair(first / torch.linalg.norm(first, dim=1, keepdim=True), normalize(second, dim=1))
        places = torch.fmod(torch.arange(5, device=x.device), 3)
        return self.head(pair * (1 + places) + cosine_similarity(first, second, dim=1).unsqueeze(1))


NETWORKS = {each.__name__: each for each in (LastChannels, Inverted, Dense, Encoder, SmallUNet, Norms)}


def saved(model: nn.Module, path: Path, *, decomposed: bool, dynamic: bool = True) -> nn.Module:
    x = torch.rand(2 if dynamic else 1, *SHAPE, dtype=torch.float64)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    return load_checkpoint(path).model


def check_derivatives(exported: nn.Module, model: nn.Module) -> None:
    """Outputs against the original, and the gradient's derivative against differences."""
    x = torch.rand(1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(exported(x), model(x))
    parameters = dict(exported.named_parameters())

    def gradient(z: Tensor) -> dict[str, Tensor]:
        return grad(lambda p: nn.functional.cross_entropy(functional_call(exported, p, (z,)), torch.tensor([1])))(
            parameters
        )

    step = 1e-6 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    _, tangent = jvp(gradient, (x,), (step,))
    after, before = gradient(x + step), gradient(x - step)
    for name, value in tangent.items():
        torch.testing.assert_close(value, (after[name] - before[name]) / 2, rtol=1e-4, atol=1e-12)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks(tmp_path: Path, name: str, decomposed: bool) -> None:
    model = random_module(NETWORKS[name]()).double().eval()
    check_derivatives(saved(model, tmp_path / "p.pt2", decomposed=decomposed), model)
    check_derivatives(saved(model, tmp_path / "q.pt2", decomposed=decomposed, dynamic=False), model)


@pytest.mark.slow
def test_filled_regions_are_read_once_they_are_written_out(tmp_path: Path) -> None:
    """As the message says."""
    model = random_module(ShiftedWindows()).double().eval()
    with pytest.raises(CheckpointError, match=r"save program\.run_decompositions\(\)"):
        saved(model, tmp_path / "p.pt2", decomposed=False)
    check_derivatives(saved(model, tmp_path / "q.pt2", decomposed=True), model)


def call(name: str, **arguments: object) -> Tensor:
    operator = Operator(f"torch.ops.aten.{name}")
    result: Tensor = operator.call(operator.bind([], arguments))
    return result


@pytest.mark.parametrize(
    "change",
    [
        {"size": [4, 3]}, {"size": [3, 5]}, {"stride": [1, 3]}, {"stride": [0, 1]}, {"stride": [4]},
        {"stride": [-4, 1]}, {"storage_offset": 1}, {"size": [2**40, 4]},
    ],
)  # fmt: skip
def test_only_the_tensor_itself_is_strided(change: dict[str, object]) -> None:
    x = torch.arange(12.0).view(3, 4)
    whole = {"size": [3, 4], "stride": [4, 1], "storage_offset": 0}
    assert call("as_strided.default", self=x, **whole) is x
    # Strides of single rows mean nothing.
    assert call("as_strided.default", self=x[:1], size=[1, 4], stride=[99, 1]).shape == (1, 4)
    with pytest.raises(ValueError, match=r"raw storage|got -?[04] as stride"):
        call("as_strided.default", self=x, **{**whole, **change})
    with pytest.raises(ValueError, match="raw storage"):
        call("as_strided.default", self=x.T.contiguous().T, **whole)


def test_arguments_of_replaced_operators() -> None:
    x = torch.rand(3, 4)
    with pytest.raises(ValueError, match="norm of matrices"):
        call("linalg_norm.default", self=x, ord=2)
    torch.testing.assert_close(call("linalg_norm.default", self=x, ord=1, dim=[1]), torch.linalg.norm(x, 1, 1))
    torch.testing.assert_close(call("linalg_norm.default", self=x), torch.linalg.norm(x))
    for dim in (-1, 0, 1):
        shape = [n if place == dim else 1 for place, n in enumerate(x.shape)]
        g = torch.rand(shape)
        torch.testing.assert_close(call("_weight_norm.default", v=x, g=g, dim=dim), torch._weight_norm(x, g, dim))
    with pytest.raises(ValueError, match="dimension that there isn't"):
        call("_weight_norm.default", v=x, g=torch.rand(3, 1), dim=2)


def test_kernels_that_fail_on_values_say_so_in_a_sentence(tmp_path: Path) -> None:
    exported = saved(random_module(Dense()).double().eval(), tmp_path / "p.pt2", decomposed=False)
    x = torch.rand(2, *SHAPE, dtype=torch.float64)
    exported(x)
    head = exported.get_submodule("program.head.2")
    for wrong in (torch.zeros(2), torch.zeros(3, dtype=torch.float32), torch.zeros(3, dtype=torch.int16)):
        head._parameters["bias"] = wrong
        with pytest.raises(CheckpointError, match="the exported program can't run on these inputs") as caught:
            exported(x)
        assert "\n" not in str(caught.value)
    head._parameters["bias"] = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        # What a transform can't do is left to its caller, who may do without.
        jvp(exported, (x,), (x,))
