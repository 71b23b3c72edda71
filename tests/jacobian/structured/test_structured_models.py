"""The structured Jacobian of every layer that it knows, alone and in combination, against plain autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contracts.same_jacobian import check_float32, check_products, random_batch
from small_models import Apply, built, checked, headed, parameter
from torch import Tensor, nn

# Models whose parameters are used otherwise than by one module in one place.


def encoder(layers: int = 0, **options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, **options)
    if not layers:
        return layer
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(6), enable_nested_tensor=False)


def pooled(model: Any, x: Tensor) -> Tensor:
    return model.head(model.body(x).mean(1))


def with_class_token(model: Any, x: Tensor) -> Tensor:
    tokens = torch.cat([model.token.expand(len(x), -1, -1), model.embed(x)], dim=1) + model.positions
    return model.head(model.body(tokens)[:, 0])


def sequence_first(model: Any, x: Tensor) -> Tensor:
    return model.head(model.body(model.embed(x).transpose(0, 1) + model.positions).mean(0))


def stacked(model: Any, x: Tensor) -> Tensor:
    """LayerScale after a layer on [T, B, E]."""
    return model.head((x.transpose(0, 1) + model.scale * model.body(x.transpose(0, 1))).tanh().mean(0))


def positions_embedded(model: Any, x: Tensor) -> Tensor:
    return model.head(torch.tanh(x + model.embed(torch.arange(x.shape[1]))).mean(1))


def signs_embedded(model: Any, x: Tensor) -> Tensor:
    """One of the numbers, a row for every entry of x; 1 is the padding."""
    return model.head(torch.tanh(x[..., None] * model.embed((x > 0).long() + (x > 1).long())).flatten(1))


def classes_embedded(model: Any, x: Tensor) -> Tensor:
    return model.head(torch.tanh(x * model.embed((x.sum(1) > 0).long())))


def signs_embedded_time_first(model: Any, x: Tensor) -> Tensor:
    numbers = (x.mT > 0).long()
    return model.head(torch.tanh(x.mT[..., None] * model.embed(numbers)).mean(0))


def tied_embedding(model: Any, x: Tensor) -> Tensor:
    hidden = torch.tanh(model.first(x) + model.embed((x > 0).long()).sum(1))
    return F.linear(hidden, model.embed.weight)


def autoencoder(model: Any, x: Tensor) -> Tensor:
    return F.linear(torch.tanh(model.code(x)), model.code.weight.t(), model.bias)[:, :4]


def shared_convolution(model: Any, x: Tensor) -> Tensor:
    return model.head(model.conv(torch.tanh(model.conv(x))).flatten(1))


def merged(model: Any, x: Tensor) -> Tensor:
    """The batch merged with time [B, T], and apart again."""
    B, T, E = x.shape
    return model.head(torch.tanh(model.norm(model.body(x.reshape(B * T, E)) * model.scale)).reshape(B, -1))


def merged_time_first(model: Any, x: Tensor) -> Tensor:
    """[T, B] merged."""
    B, T, E = x.shape
    rows = torch.tanh(model.norm(model.body(x.transpose(0, 1).reshape(T * B, E)) * model.scale))
    return model.head(rows.reshape(T, B, -1).transpose(0, 1).flatten(1))


def merged_between(model: Any, x: Tensor) -> Tensor:
    """[T1, B, T2] merged."""
    B, T, E = x.shape
    rows = x.reshape(B, 2, T // 2, E).transpose(0, 1).reshape(-1, E)
    rows = torch.tanh(model.norm(model.body(rows) * model.scale))
    return model.head(rows.reshape(2, B, -1).transpose(0, 1).flatten(1))


def merged_addmm(model: Any, x: Tensor) -> Tensor:
    """As GPT-2's layers are, the second with what passes by it in the place of a bias."""
    rows = torch.tanh(torch.addmm(model.bias, x.reshape(-1, x.shape[2]), model.matrix))
    rows = torch.addmm(rows, rows.square(), model.matrix)
    return model.head(torch.tanh(rows).reshape(len(x), -1))


def merged_images(model: Any, x: Tensor) -> Tensor:
    """x [B, T, C, H, W]: every frame by itself."""
    frames = model.norm(model.conv(x.flatten(0, 1)))
    return model.head(torch.tanh(frames).reshape(len(x), -1))


def merged_images_time_first(model: Any, x: Tensor) -> Tensor:
    frames = torch.tanh(model.norm(model.conv(x.transpose(0, 1).flatten(0, 1))))
    return model.head(frames.reshape(x.shape[1], len(x), -1).transpose(0, 1).flatten(1))


def windows(model: Any, x: Tensor) -> Tensor:
    """Windows [B * 4, 2, 2, E] of x [B, 4, 4, E], as Swin cuts them."""
    cut = x.reshape(-1, 2, 2, 2, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 3)
    return model.head(torch.tanh(model.body(cut) + model.bias).reshape(len(x), -1))


def many_operations(model: Any, x: Tensor) -> Tensor:
    x = torch.tanh(model.left * x)
    x = torch.tanh(x * model.right)
    x = torch.tanh(model.up + x)
    x = torch.tanh(x + model.right)
    x = torch.tanh(x - model.up)
    return torch.tanh(model.left - x) @ model.matrix


def keywords(model: Any, x: Tensor) -> Tensor:
    x = F.linear(input=x, weight=model.matrix.T, bias=model.up)
    x = torch.mul(input=torch.tanh(x), other=model.right)
    x = torch.add(torch.tanh(x), other=model.left)
    return torch.matmul(input=torch.tanh(x), other=model.matrix)


def rearranged(model: Any, x: Tensor) -> Tensor:
    """Parameters in other forms than they are used in."""
    x = torch.tanh(x * model.row.squeeze(0))
    x = torch.tanh(x + model.table[1, :4] - model.table[0][:4])
    x = torch.tanh(x @ model.table.reshape(4, -1).contiguous()[:, :4])
    x = torch.tanh(F.linear(x, -model.cube.permute(2, 0, 1).flatten(1)[:, :4].to(x.dtype) / 2, None))
    first, second = model.halves.chunk(2)
    x = torch.tanh(F.linear(x, first) * second.unbind(0)[1] * (1 + model.row[0]))
    return F.linear(x, model.halves.split([3, 5])[0] * 0.5)


def relative_positions(model: Any, x: Tensor) -> Tensor:
    """A number for each pair of positions out of a table of their distances, as Swin's attention has."""
    places = torch.arange(x.shape[1])
    distances = places[:, None] - places + len(places) - 1
    weights = torch.softmax(x @ x.mT + model.table[distances.flatten(), 1].view(distances.shape), -1)
    return model.head((weights @ x * F.dropout(model.table.index_select(0, distances[0]), 0.1, False)).flatten(1))


def masked_weight(model: Any, x: Tensor) -> Tensor:
    """As pruned layers do."""
    mask = (torch.arange(16).reshape(4, 4) % 3 > 0).to(x)
    return F.linear(torch.tanh(F.linear(x, model.matrix * mask)), mask * model.matrix)


def a_constant_in_the_way(model: Any, x: Tensor) -> Tensor:
    """A branch that doesn't depend on the input."""
    constant = torch.tanh(model.first(torch.linspace(0, 1, 4, dtype=x.dtype).expand(len(x), 4)))
    return model.last(torch.tanh(x) * constant + model.first(x))


def halved_gradient(model: Any, x: Tensor) -> Tensor:
    """Weights that the model itself leaves out of the gradient."""
    with torch.no_grad():
        scale = model.first(x).mean()
    return model.last(torch.tanh(model.first(x) * F.linear(x, model.first.weight.detach()))) * torch.ones_like(scale)


def overwritten(model: Any, x: Tensor) -> Tensor:
    """Activations changed in place after a layer has made them."""
    hidden = model.first(x)
    hidden += 1
    torch.sigmoid_(hidden)
    seen = model.second(hidden)
    seen[:, :2] *= hidden[:, 2:]
    seen.tanh_()
    scaled = model.scale * seen
    scaled[:, 0] = hidden[:, 1]
    scaled += model.scale
    return model.last(F.silu(scaled, inplace=True))


def overwritten_input(model: Any, x: Tensor) -> Tensor:
    x -= 0.5
    x[:, 0] *= 2
    return model.last(torch.tanh(model.first(x) * x))


def overwritten_token(model: Any, x: Tensor) -> Tensor:
    tokens = model.token.repeat(len(x), 1)
    tokens += x
    return model.last(torch.tanh(tokens))


def hooked(model: Any, x: Tensor) -> Tensor:
    hidden = model.first(x)
    if hidden.requires_grad:
        hidden.register_hook(lambda gradient: 2 * gradient)
    return model.last(torch.tanh(hidden))


def reused(model: Any, x: Tensor) -> Tensor:
    hidden = model.first(x)
    return model.last(torch.tanh(hidden) * hidden + hidden.view(-1, 4)) + hidden


def bilinear_with_itself(model: Any, x: Tensor) -> Tensor:
    return model.head(model.both(x, x))


def bilinear(model: Any, x: Tensor) -> Tensor:
    return model.head(model.both(torch.tanh(x[..., :3]), torch.sin(x)).flatten(1))


def linears(**more: nn.Module | nn.Parameter) -> dict[str, nn.Module | nn.Parameter]:
    return {"first": nn.Linear(4, 4), "second": nn.Linear(4, 4, bias=False), "last": nn.Linear(4, 4), **more}


def tied_linears() -> nn.Sequential:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), first)


def with_statistics_kept(model: Any, x: Tensor) -> Tensor:
    return model.head(torch.tanh(model.norm(model.conv(x)).relu_().flatten(1)))


def operators() -> dict[str, nn.Parameter]:
    return {"left": parameter(4), "right": parameter(1, 4), "up": parameter(4), "matrix": parameter(4, 4)}


def rearranged_parts() -> dict[str, nn.Parameter]:
    return {"row": parameter(1, 4), "table": parameter(4, 6), "cube": parameter(2, 3, 4), "halves": parameter(8, 4)}


def merging(E: int, T: int) -> dict[str, nn.Module | nn.Parameter]:
    return {"body": nn.Linear(E, 3), "scale": parameter(3), "norm": nn.LayerNorm(3), "head": nn.Linear(3 * T, 4)}


def frames(T: int) -> dict[str, nn.Module]:
    conv = nn.Conv2d(2, 4, 2, groups=2)
    return {"conv": conv, "norm": nn.BatchNorm2d(4), "head": nn.Linear(16 * T, 4)}


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "encoder layer": (lambda: Apply(pooled, body=encoder(batch_first=True), head=nn.Linear(6, 4)), (3, 6)),
    "encoder layer, norm first": (
        lambda: Apply(pooled, body=encoder(batch_first=True, norm_first=True, activation="gelu"), head=nn.Linear(6, 4)),
        (3, 6),
    ),
    "encoder": (lambda: Apply(pooled, body=encoder(2, batch_first=True), head=nn.Linear(6, 4)), (3, 6)),
    "class token": (
        lambda: Apply(
            with_class_token, body=encoder(batch_first=True), embed=nn.Linear(5, 6), head=nn.Linear(6, 4),
            token=parameter(1, 1, 6), positions=parameter(1, 4, 6),
        ),
        (3, 5),
    ),
    "sequence first": (
        lambda: Apply(
            sequence_first, body=encoder(), embed=nn.Linear(5, 6), head=nn.Linear(6, 4), positions=parameter(3, 1, 6)
        ),
        (3, 5),
    ),
    "layer scale": (
        lambda: Apply(stacked, body=nn.Linear(4, 4), scale=parameter(4), head=nn.Linear(4, 4)), (3, 4)
    ),
    "positions": (
        lambda: Apply(positions_embedded, embed=nn.Embedding(7, 4), head=nn.Linear(4, 4)), (3, 4)
    ),
    "as many positions as traced samples": (
        lambda: Apply(positions_embedded, embed=nn.Embedding(6, 4, padding_idx=-5), head=nn.Linear(4, 4)), (3, 4)
    ),
    "numbers": (lambda: Apply(signs_embedded, embed=nn.Embedding(4, 2), head=nn.Linear(6, 4)), (3,)),
    "numbers with padding": (
        lambda: Apply(signs_embedded, embed=nn.Embedding(4, 2, padding_idx=1), head=nn.Linear(6, 4)), (3,)
    ),
    "one number per sample": (lambda: Apply(classes_embedded, embed=nn.Embedding(2, 3), head=nn.Linear(3, 4)), (3,)),
    "numbers, time first": (
        lambda: Apply(signs_embedded_time_first, embed=nn.Embedding(2, 2), head=nn.Linear(2, 4)), (3,)
    ),
    "tied embedding": (lambda: Apply(tied_embedding, embed=nn.Embedding(4, 5), first=nn.Linear(3, 5)), (3,)),
    "autoencoder": (lambda: Apply(autoencoder, code=nn.Linear(5, 3), bias=parameter(5)), (5,)),
    "one layer in two places": (
        lambda: nn.Sequential(*[layer := nn.Linear(4, 4), nn.Tanh(), layer, nn.Sigmoid(), layer]), (4,)
    ),
    "tied linears": (tied_linears, (4,)),
    "convolution used twice": (
        lambda: Apply(shared_convolution, conv=nn.Conv2d(2, 2, 3, padding=1), head=nn.Linear(18, 4)), (2, 3, 3)
    ),
    "merged": (lambda: Apply(merged, **merging(4, 3)), (3, 4)),
    "merged, time first": (lambda: Apply(merged_time_first, **merging(4, 3)), (3, 4)),
    "merged between": (lambda: Apply(merged_between, **merging(4, 4)), (4, 4)),
    "merged, addmm": (
        lambda: Apply(merged_addmm, matrix=parameter(4, 4), bias=parameter(4), head=nn.Linear(12, 4)), (3, 4)
    ),
    "merged images": (lambda: Apply(merged_images, **frames(3)), (3, 2, 3, 3)),
    "merged images, time first": (lambda: Apply(merged_images_time_first, **frames(3)), (3, 2, 3, 3)),
    "windows": (lambda: Apply(windows, body=nn.Linear(3, 2), bias=parameter(4, 2), head=nn.Linear(32, 4)), (4, 4, 3)),
    "operations": (lambda: Apply(many_operations, **operators()), (4,)),
    "operations on a sequence": (lambda: Apply(lambda m, x: many_operations(m, x).mean(1), **operators()), (3, 4)),
    "keywords": (lambda: Apply(keywords, **operators()), (4,)),
    "rearranged": (lambda: Apply(rearranged, **rearranged_parts()), (4,)),
    "relative positions": (
        lambda: Apply(relative_positions, table=parameter(7, 4), head=nn.Linear(16, 4)), (4, 4)
    ),
    "masked weight": (lambda: Apply(masked_weight, **operators()), (4,)),
    "constant": (lambda: Apply(a_constant_in_the_way, **linears()), (4,)),
    "left out by the model": (lambda: Apply(halved_gradient, **linears()), (4,)),
    "overwritten": (lambda: Apply(overwritten, **linears(scale=parameter(4))), (4,)),
    "overwritten token": (lambda: Apply(overwritten_token, **linears(token=parameter(1, 4))), (4,)),
    "overwritten after batch norm": (
        lambda: Apply(
            with_statistics_kept, conv=nn.Conv2d(1, 2, 2), norm=nn.BatchNorm2d(2), head=nn.Linear(8, 4)
        ),
        (1, 3, 3),
    ),
    "hooked": (lambda: Apply(hooked, **linears()), (4,)),
    "reused": (lambda: Apply(reused, **linears()), (4,)),
    "bilinear": (lambda: Apply(bilinear, both=nn.Bilinear(3, 4, 2), head=nn.Linear(4, 4)), (2, 4)),
    "bilinear with itself": (
        lambda: Apply(bilinear_with_itself, both=nn.Bilinear(4, 4, 3, bias=False), head=nn.Linear(3, 4)), (4,)
    ),
    "scalar": (
        lambda: Apply(lambda m, x: m.last(torch.tanh(x * m.scalar + m.scalar)), **linears(scalar=parameter())), (4,)
    ),
}  # fmt: skip


@pytest.mark.sampled(8)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_model(name: str, count: int) -> None:
    make, shape = MODELS[name]
    checked(make(), shape, count)


@pytest.mark.parametrize("name", ["encoder", "class token", "merged images", "tied embedding", "rearranged", "windows"])
def test_model_in_float32(name: str) -> None:
    make, shape = MODELS[name]
    check_float32(built(make(), shape), random_batch(2, *shape))


@pytest.mark.parametrize("trained", ["bias", "weight", "first", "last"])
def test_frozen_parameters(trained: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 5))
    model.append(nn.Tanh()).append(nn.Linear(5, 4))
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.endswith(trained) or name.startswith({"first": "0", "last": "6"}.get(trained, "-")))
    checked(model, (1, 3, 3), 3, generic=True)


def test_parameters_that_the_loss_does_not_depend_on() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        model.second(x)  # computed in vain
        return model.last(torch.tanh(model.first(x)))

    model = Apply(forward, **linears(unused=parameter(3, 2)))
    jacobian = checked(model, (4,), 3)
    names = list(jacobian.release.parameters)
    sizes = [weight.numel() for weight in jacobian.release.parameters.values()]
    pieces = dict(zip(names, jacobian.mean().split(sizes, dim=1), strict=True))
    assert not pieces["unused"].any()
    assert not pieces["second.weight"].any()
    assert pieces["first.weight"].all()


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_as_many_samples_as_positions(count: int) -> None:
    checked(Apply(merged_time_first, **merging(4, count)), (count, 4), count)


@pytest.mark.parametrize("positions", [5, 35])
def test_positions_like_the_sizes_of_the_traced_batches(positions: int) -> None:
    model = built(Apply(positions_embedded, embed=nn.Embedding(40, 2), head=nn.Linear(2, 4)), (positions, 2))
    check_products(model, random_batch(3, positions, 2), sizes=(11, 13))


def test_input_that_the_model_overwrites() -> None:
    """The audited samples themselves stay as they are."""
    model, batch = built(Apply(overwritten_input, **linears()), (4,)), random_batch(2, 4)
    before = batch.inputs.clone()

    # Plain autograd takes no derivative of an overwritten leaf, hence the copy.
    class Copied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x.clone())

    check_products(Copied(), batch)
    assert torch.equal(batch.inputs, before)


def test_blocks_of_columns_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    jacobian = checked(headed(nn.Linear(4, 3)), (4,), 3)
    columns = torch.eye(4, dtype=torch.float64).expand(3, 4, 4)
    whole = jacobian.hessian().matmat(columns)
    monkeypatch.setattr("riskaudit.jacobian.structured.operator.MAX_COPIES", 9)
    assert torch.allclose(jacobian.select([0, 1, 2]).hessian().matmat(columns), whole, rtol=1e-12, atol=0)
    assert math.isclose(float((whole - whole.mT).norm()), 0, abs_tol=1e-12 * float(whole.norm()))
