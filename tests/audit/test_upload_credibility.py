"""Derivatives of uploads of several samples that can't be believed are never a number; honest ones always are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scan_cases import demo_model, demo_samples
from test_credibility import FLAT, FLAT_STEPS, HIDDEN, HONEST, STD, Net, StraightThroughRounding, batch_of
from torch import Tensor, nn

import riskaudit
from riskaudit.audit.evidence import Evidence
from riskaudit.audit.uploads import examine_uploads
from riskaudit.errors import SamplesError
from riskaudit.jacobian import joint_jacobian_maker
from riskaudit.priors import IsotropicPrior
from riskaudit.release import Batch, make_release
from riskaudit.release.steps import STEPS

LOCAL = "local:epochs=2:batch=2:lr=0.2"
ADAM = "local:epochs=2:batch=2:lr=0.01:optimizer=adam"
SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def known_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, step in {**FLAT_STEPS, "round-through": StraightThroughRounding}.items():
        monkeypatch.setitem(STEPS, name, step)


def evidence_of(
    model: nn.Module, release: str, dtype: torch.dtype = torch.float64, batch: Batch | None = None
) -> Evidence:
    """Of one upload."""
    samples = batch_of(dtype=dtype) if batch is None else batch
    # No entry of a gradient is 0, where a squashing isn't flat.
    samples = samples.with_inputs(samples.inputs + 0.05)
    made = make_release(model.to(dtype).eval(), F.cross_entropy, release)
    upload = samples.in_uploads(made.uploads(len(samples)))
    maker = joint_jacobian_maker(made, upload)
    flat = upload.inputs.flatten(1)
    drawn = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(flat)
    prior = IsotropicPrior(0.0, STD).bind(upload.targets, flat)
    (found,) = examine_uploads(maker, upload, prior, drawn, maker(upload))
    return found


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("release", "dtype"),
    [
        ("mean:4", torch.float64),
        pytest.param("mean:4", torch.float32, marks=SLOW),
        pytest.param(f"{LOCAL}:momentum=0.5", torch.float64, marks=SLOW),
        (f"{LOCAL}:momentum=0.5", torch.float32),
        pytest.param(ADAM, torch.float64, marks=SLOW),
        pytest.param(ADAM, torch.float32, marks=SLOW),
    ],
)
@pytest.mark.parametrize("name", [*HIDDEN, *FLAT])
def test_hidden_inputs_are_doubted(name: str, release: str, dtype: torch.dtype) -> None:
    if name in FLAT and release == ADAM:
        pytest.skip("Adam divides tiny gradients by their size, which makes them anything but flat")
    assert evidence_of({**HIDDEN, **FLAT}[name](), release, dtype).doubt(1e-4)


@pytest.mark.parametrize(
    ("release", "dtype"),
    [
        ("mean:4", torch.float32),
        pytest.param("mean:4", torch.float64, marks=SLOW),
        pytest.param("clip:0.1,mean:4", torch.float32, marks=SLOW),
        pytest.param(f"{LOCAL},clip:0.1,prune:0.9", torch.float32, marks=SLOW),
        (f"{LOCAL}:momentum=0.5", torch.float64),
        pytest.param(f"{LOCAL}:momentum=0.5", torch.float32, marks=SLOW),
        pytest.param(ADAM, torch.float32, marks=SLOW),
        pytest.param(ADAM, torch.float64, marks=SLOW),
    ],
)
@pytest.mark.parametrize("name", HONEST)
def test_honest_networks_are_believed(name: str, release: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    found = evidence_of(HONEST[name](), release, dtype)
    assert [found.doubt(noise) for noise in (0.0, 1e-4, 1e-2)] == [None] * 3


@pytest.mark.sampled(1)
@pytest.mark.parametrize("release", ["mean:4,gaussian:0.01", "local:epochs=1:batch=2:lr=0.1,gaussian:0.01"])
def test_samples_that_a_network_is_sure_of_are_believed_beside_others(release: str) -> None:
    # Their gradients, tiny beside the largest one, grow by orders of magnitude where the network sees another class.
    result = riskaudit.audit(demo_model(), demo_samples(4), release=release, solver="lanczos", max_matvecs=2)
    assert {row.status for row in result.samples} == {"bracketed"}


class HiddenInOne(Net):
    """One sample of a batch, that whose first pixel is marked, is kept from the derivative."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return super().forward(torch.where(flat[:, :1] > 5, flat.detach(), flat))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("release", ["mean:16", pytest.param("local:epochs=1:batch=4:lr=0.2", marks=SLOW)])
def test_one_hidden_sample_among_many_is_found(release: str, dtype: torch.dtype) -> None:
    batch = batch_of(16, dtype)
    assert evidence_of(HiddenInOne(), release, dtype, batch).doubt(1e-4) is None
    batch.inputs[5].flatten()[0] = 10
    assert evidence_of(HiddenInOne(), release, dtype, batch).doubt(1e-4)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("release", "noise"),
    [
        ("mean:4,round:0.000001", 1e-4),
        ("round:0.000001,mean:4", 1e-4),
        ("mean:4,round-relative:0.000001", 1e-4),
        ("mean:4,squash:0.000000001", 1e-11),
        (f"{LOCAL},round:0.000001", 1e-4),
        (f"{LOCAL},round-relative:0.000001", 1e-4),
        (f"{LOCAL},prune:0.5,round:0.000001,clip:0.5", 1e-4),
        (f"{LOCAL},round:0.000001,secagg:2", 1e-4),
        (f"{LOCAL},round-relative:0.000001,secagg:2", 1e-4),
        (f"{LOCAL},secagg:2,round:0.000001", 1e-4),
        ("mean:4,dropout:0.2,round-relative:0.000001", 1e-4),
    ],
)
def test_steps_that_hide_the_input_from_their_derivative_are_doubted(
    release: str, noise: float, dtype: torch.dtype
) -> None:
    found = evidence_of(Net(), release, dtype)
    assert found.doubt(noise)
    assert found.doubt(1e3) is None


@pytest.mark.sampled(6)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "release",
    [
        "mean:4,squash:0.01",
        "round-through:0.000001,mean:4",
        f"{LOCAL},round-through:0.000001",
        f"{LOCAL},clip:0.05,round-through:0.0001,prune:0.5",
        f"{LOCAL},round-through:0.000001,secagg:2,dropout:0.3",
        "clip:0.1,mean:2,secagg:2,share:last.*",
    ],
)
def test_honest_steps_are_believed(release: str, dtype: torch.dtype) -> None:
    found = evidence_of(Net(), release, dtype)
    assert [found.doubt(noise) for noise in (0.0, 1e-4, 1e-2)] == [None] * 3


@pytest.mark.parametrize(("first", "dtype"), [("mean:2", "float32"), pytest.param(LOCAL, "float64", marks=SLOW)])
def test_audit_has_no_number_behind_a_flat_step(first: str, dtype: str) -> None:
    samples = riskaudit.Samples.from_tensors(batch_of().inputs, batch_of().targets)
    options = {"prior_std": STD, "dtype": dtype, "solver": "lanczos", "max_matvecs": 2}
    with pytest.raises(SamplesError, match="nothing read off the derivative can be believed"):
        riskaudit.audit(Net(), samples, release=f"{first},round:0.000001,gaussian:0.0001", **options)
    through = riskaudit.audit(Net(), samples, release=f"{first},round-through:0.000001,gaussian:0.0001", **options)
    assert {row.status for row in through.samples} == {"bracketed"}
