"""Prior files: what is written is read again, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prior_cases
import pytest
import torch
from safetensors.torch import load_file, save_file

from riskaudit.errors import OutputError, PriorError
from riskaudit.priors import ClassPrior, GaussianPrior, fit_prior, load_prior, save_prior
from riskaudit.priors.storage import METADATA_KEY
from riskaudit.priors.storage import load_prior as load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prior.safetensors"
    save_prior(fit_prior(prior_cases.samples(), "class"), path)
    return path


def same(one: GaussianPrior, other: GaussianPrior) -> None:
    for part in ("mean", "components", "variances"):
        assert torch.equal(getattr(one, part), getattr(other, part))
    assert (one.remainder, one.input_shape, one.origin) == (other.remainder, other.input_shape, other.origin)


def test_one_gaussian_comes_back(tmp_path: Path) -> None:
    prior = fit_prior(prior_cases.samples(), components=3)
    save_prior(prior, tmp_path / "p.safetensors")
    found = load_prior(str(tmp_path / "p.safetensors"))
    assert isinstance(found, GaussianPrior)
    same(found, prior)
    assert found.info() == prior.info()
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_a_gaussian_per_class_comes_back(file: Path) -> None:
    prior, found = fit_prior(prior_cases.samples(), "class"), load(file)
    assert isinstance(found, ClassPrior)
    assert isinstance(prior, ClassPrior)
    same(found.everything, prior.everything)
    assert list(found.classes) == list(prior.classes) == [0, 1]
    for target, own in prior.classes.items():
        same(found.classes[target], own)
    assert found.info() == prior.info()


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        save_prior(fit_prior(prior_cases.samples()), tmp_path / "nowhere" / "p.safetensors")


Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


def put(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def apply(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
        tensors[name] = change(tensors[name].clone()).contiguous()

    return apply


def head(**values: Any) -> Change:
    return lambda _, header: header.update(values)


def drop(name: str) -> Change:
    def apply(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
        del tensors[name]

    return apply


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = float("nan")
    return tensor


def negative(tensor: torch.Tensor) -> torch.Tensor:
    tensor[-1] = -1e-3
    return tensor


def skewed(tensor: torch.Tensor) -> torch.Tensor:
    tensor[:, 0] += 1e-4 * tensor[:, 1]
    return tensor


def foreign(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
    tensors["weights"] = torch.zeros(3)


HOSTILE: dict[str, tuple[Change, str]] = {
    "mean-nan": (put("data.mean", with_nan), "data.mean in prior.safetensors has a value that isn't finite"),
    "mean-inf": (put("class.0.mean", lambda mean: mean / 0), "isn't finite"),
    "mean-short": (put("data.mean", lambda mean: mean[:5]), r"float64 of shape \(12\), found float64 of shape \(5\)"),
    "mean-single": (put("data.mean", lambda mean: mean.float()), "found float32"),
    "components-nan": (put("class.1.components", with_nan), "class.1.components"),
    "components-transposed": (put("data.components", lambda columns: columns.mT[:, :7]), "data.components"),
    "components-scaled": (put("data.components", lambda columns: 1.01 * columns), "not orthonormal"),
    "components-skewed": (put("class.1.components", skewed), "class.1.components .* not orthonormal"),
    "variances-negative": (put("data.variances", negative), "variance below zero"),
    "variances-square": (put("data.variances", lambda values: values[:, None]), "data.variances"),
    "remainder-zero": (put("data.remainder", torch.zeros_like), "no remainder"),
    "remainder-negative": (put("class.0.remainder", lambda rest: -rest), "no remainder"),
    "remainder-two": (put("data.remainder", lambda rest: rest.repeat(2)), "data.remainder"),
    "tensor-missing": (drop("class.1.variances"), "without class.1.variances"),
    "data-missing": (drop("data.mean"), "without data.mean"),
    "tensor-foreign": (foreign, "with weights"),
    "class-without-count": (head(class_counts={"0": 40}), "class 1, but counts no image"),
    "class-named": (head(class_counts={"cat": 40}), "class numbers"),
    "class-count-zero": (head(class_counts={"0": 0, "1": 3}), "less than one image"),
    "kind": (head(kind="magic"), "data or class in prior.safetensors, found magic"),
    "kind-of-one": (head(kind="data"), "doesn't belong there"),
    "version": (head(version=2), "version 1 .* found 2"),
    "shape-empty": (head(input_shape=[]), "input_shape"),
    "shape-zero": (head(input_shape=[0, 12]), r"\(0, 12\)"),
    "shape-other": (head(input_shape=[1, 2, 2]), r"shape \(4\)"),
    "shape-huge": (head(input_shape=[10**9, 10**9]), "data.mean"),
    "shape-word": (head(input_shape="big"), "input_shape"),
    "images-none": (head(num_images=0), "num_images"),
    "hash": (head(sha256="../../etc"), "sha256"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_prior_that_was_tampered_with_is_refused(file: Path, name: str) -> None:
    from safetensors import safe_open

    change, words = HOSTILE[name]
    with safe_open(file, framework="pt") as content:
        header = json.loads(content.metadata()[METADATA_KEY])
    tensors = load_file(file)
    change(tensors, header)
    save_file(tensors, file, metadata={METADATA_KEY: json.dumps(header)})
    with pytest.raises(PriorError, match=words) as caught:
        load_prior(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 1}', "[" * 100_000], ids=range(6))
def test_a_header_that_is_none(file: Path, text: str) -> None:
    save_file(load_file(file), file, metadata={METADATA_KEY: text})
    with pytest.raises(PriorError, match="isn't a prior"):
        load_prior(file)


def test_tensors_that_are_no_prior(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(PriorError, match="isn't a prior"):
        load_prior(tmp_path / "model.safetensors")


@pytest.mark.parametrize("length", [0, 5, 100, 2000, -1])
def test_truncated(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(PriorError):
        load_prior(file)


def test_missing_folder_and_pickle(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(PriorError):
            load_prior(path)
    torch.save({"data.mean": torch.zeros(3)}, tmp_path / "prior.pt")
    with pytest.raises(PriorError, match="safetensors"):
        load_prior(tmp_path / "prior.pt")
