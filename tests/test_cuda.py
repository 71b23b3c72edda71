"""On a CUDA device an audit gives the numbers that it gives on the CPU."""

from __future__ import annotations

import copy
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

import riskaudit
from benchmarks.compiled import captured, product_of
from benchmarks.models import normal_vectors
from benchmarks.options import Settings
from benchmarks.work import load
from riskaudit.inputs.architectures import get_architecture
from riskaudit.jacobian import jacobian_maker
from riskaudit.release import Batch, PerSampleRelease

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Eigenvalues near zero carry float32's rounding, so float32 is held against the headline only.
CASES = {
    "float64 dense": ("float64", "dense", 1e-9, None),
    "float64 lanczos": ("float64", "lanczos", 1e-6, None),
    "float32 dense": ("float32", "dense", 1e-3, {"gradient_norm", "revealed_fraction", "posterior_rmse"}),
}


@pytest.mark.parametrize(("dtype", "solver", "tolerance", "only"), CASES.values(), ids=list(CASES))
def test_same_numbers_as_on_the_cpu(dtype: str, solver: str, tolerance: float, only: set[str] | None) -> None:
    folder = Path(str(files("riskaudit"))) / "demo"
    checkpoint = riskaudit.load_checkpoint(folder / "digits-lenet.safetensors")
    samples = riskaudit.load_samples(folder / "digits.npz", channels=1, limit=12)
    options = {"release": "clip:0.5,gaussian:0.01", "solver": solver}
    expected = riskaudit.audit(checkpoint, samples, device="cpu", dtype="float64", **options)
    found = riskaudit.audit(checkpoint, samples, device="cuda", dtype=dtype, **options)
    assert found.settings.device.startswith("cuda")
    for there, here in zip(found.samples, expected.samples, strict=True):
        for name, estimate in here.proxies.items():
            if only is None or name in only:
                assert there.proxies[name].value == pytest.approx(estimate.value, rel=tolerance), name


def test_iterations_are_in_mixed_precision_by_default() -> None:
    """Their intervals contain the dense values of the CPU, and some products are in each precision."""
    folder = Path(str(files("riskaudit"))) / "demo"
    checkpoint = riskaudit.load_checkpoint(folder / "digits-lenet.safetensors")
    samples = riskaudit.load_samples(folder / "digits.npz", channels=1, limit=12)
    expected = riskaudit.audit(checkpoint, samples, device="cpu", release="gaussian:0.02", solver="dense")
    found = riskaudit.audit(checkpoint, samples, device="cuda", release="gaussian:0.02", solver="lanczos")
    assert found.settings.dtype == "mixed"
    assert {row.solvers["largest_eigenvalue"].dtype for row in found.samples} == {"float32", "float64"}
    for there, here in zip(found.samples, expected.samples, strict=True):
        for name in ("revealed_fraction", "posterior_rmse", "map_rmse", "map_i2f", "lavp_l2_max"):
            (low, high), truth = there.proxies[name].ends, here.proxies[name].value
            assert low is not None
            assert low * (1 - 1e-9) <= truth
            assert high is None or truth <= high * (1 + 1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=str)
def test_structured_products_are_those_of_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    """Convolutions, strides, batch norm and shortcuts, at one column and at several."""
    torch.manual_seed(0)
    model = get_architecture("resnet18").build(channels=3, classes=10).double().eval()
    batch = Batch(torch.rand(2, 3, 16, 16, dtype=torch.float64), torch.tensor([1, 7]))
    columns = torch.randn(2, 768, 3, dtype=torch.float64)
    maker = jacobian_maker(PerSampleRelease(model, F.cross_entropy), batch)
    assert maker.kind == "structured"
    expected = maker(batch).hessian().matmat(columns)
    there = copy.deepcopy(model).to("cuda", dtype)
    moved = Batch(batch.inputs.to("cuda", dtype), batch.targets.to("cuda"))
    found = (
        jacobian_maker(PerSampleRelease(there, F.cross_entropy), moved)(moved)
        .hessian()
        .matmat(columns.to("cuda", dtype))
    )
    assert float((found.double().cpu() - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("name", ["lenet-28", "mlp", "resnet18", "vit"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_captured_products_are_the_eager_ones(name: str, dtype: str) -> None:
    """For the vectors of the capture, and for others."""
    settings = Settings(dtype=dtype, device="cuda")
    release, batch, _ = load(name, 2, settings)
    operator = jacobian_maker(release, batch)(batch).hessian()
    vectors = normal_vectors(2, operator.shape[1], operator.dtype, operator.device)
    with torch.no_grad():
        replayed = captured(operator.matvec, vectors)
        for columns in (vectors, vectors.flip(1), 1e3 * vectors):
            expected = operator.matvec(columns)
            tolerance = 1e-12 if dtype == "float64" else 1e-4
            assert float((replayed(columns) - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("name", ["lenet-28", "mlp"])
def test_compiled_products_are_the_eager_ones(name: str) -> None:
    settings = Settings(dtype="float64", device="cuda")
    release, batch, _ = load(name, 2, settings)
    operator = jacobian_maker(release, batch)(batch).hessian()
    vectors = normal_vectors(2, operator.shape[1], operator.dtype, operator.device)
    with torch.no_grad():
        traced = torch.compile(make_fx(product_of(operator))(vectors), dynamic=False)
        expected = operator.matvec(vectors)
        assert float((traced(vectors) - expected).norm() / expected.norm()) < 1e-10
