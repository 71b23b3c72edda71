"""The block iteration that is measured is a valid one, and the command prints tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from contracts.eigenvalue_solver import stack
from oracles import random_spectrum_matrix
from scipy.stats import binom

from benchmarks import block
from riskaudit.linalg import Lanczos

SAMPLES, N = 200, 40
SPECTRA = {
    "clustered-top": lambda rng: np.concatenate([1 - 1e-6 * np.arange(6), rng.uniform(0, 0.9, N - 6)]),
    "repeated-top": lambda rng: np.concatenate([np.ones(2), rng.uniform(0, 0.95, N - 2)]),
    "flat": lambda rng: 1 - 1e-2 * rng.uniform(0, 1, N),
    "hidden-top": lambda rng: np.concatenate([[1.0], 0.9 + 1e-4 * rng.uniform(0, 1, N - 1)]),
    "uniform": lambda rng: rng.uniform(0, 1, N),
}


def starts(columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, N, columns, generator=generator, dtype=torch.float64)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("kind", SPECTRA)
def test_block_end_is_missed_as_rarely_as_claimed(kind: str, columns: int) -> None:
    rng = np.random.default_rng(3)
    spectra = [SPECTRA[kind](rng) for _ in range(SAMPLES)]
    operator = stack([random_spectrum_matrix(values, rng) for values in spectra])
    failure = 0.05
    for found in block.block_lanczos(operator, starts(columns), 3):
        ends = np.array([each.upper_end(failure) for each in found])
        truth = np.array([values.max() for values in spectra])
        assert (np.array([each.ritz.values[-1] for each in found]) <= truth * (1 + 1e-12)).all()
        missed = int((ends < truth * (1 - 1e-12)).sum())
        assert missed <= binom.ppf(0.9999, SAMPLES, failure), f"{missed} of {SAMPLES} ends lie below l_1"


def test_one_column_takes_the_products_of_lanczos() -> None:
    rng = np.random.default_rng(4)
    operator = stack([random_spectrum_matrix(0.8 ** np.arange(N), rng) for _ in range(SAMPLES)])
    solver = Lanczos(block.TOLERANCE, 20, block.FAILURE, block.PRECISION)
    products = solver.solve(operator, starts(1)[..., 0]).matvecs.tolist()
    assert block.block_steps(operator, starts(1), block.FAILURE, 20) == products


@pytest.mark.slow
def test_more_columns_take_fewer_steps() -> None:
    rng = np.random.default_rng(5)
    operator = stack([random_spectrum_matrix(0.9 ** np.arange(N), rng) for _ in range(SAMPLES)])
    means = [np.mean(block.block_steps(operator, starts(K), 1e-3, 9)) for K in (1, 2, 4)]
    assert means[0] > means[1] > means[2]


def test_block_quick(capsys, tmp_path) -> None:
    block.main(["--quick", "--json", str(tmp_path / "block.json")])
    assert "K columns per sample: tiny, B = 1" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "block.json").read_text())["tables"]
    assert [row["columns"] for row in table["rows"]] == [1, 2]
    assert table["rows"][0]["cost"] == table["rows"][0]["time"] == 1
