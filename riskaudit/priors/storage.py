"""Prior files: tensors as safetensors, and what they were fitted to as JSON in the header. Nothing in one can run.

A Gaussian is stored as ``KEY.mean`` [d], ``KEY.components`` [d, k], ``KEY.variances`` [k] and
``KEY.remainder`` [1], float64, where KEY is ``data`` or ``class.NUMBER``. What a file says is checked before
it is believed: a prior with a wrong root would understate every leak.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from riskaudit.errors import PriorError
from riskaudit.files import write_file
from riskaudit.inputs.readers.torch_files import check_file, read_safetensors
from riskaudit.inputs.text import clean, shape_text
from riskaudit.priors.base import Prior
from riskaudit.priors.fitting import FITTED_KINDS
from riskaudit.priors.gaussian import ClassPrior, GaussianPrior, Origin

METADATA_KEY = "riskaudit_prior"
FORMAT_VERSION = 1
PARTS = ("mean", "components", "variances", "remainder")
# Rounding leaves about 1e-14 of U^T U - I; more would make L^-1 wrong by as much as 1 / rho.
ORTHONORMAL_TOLERANCE = 1e-8
_MEND = "fit it again with riskaudit prior fit"


class _Header(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    version: int
    kind: str
    input_shape: list[int] = Field(min_length=1, max_length=8)
    source: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    num_images: int = Field(ge=1)
    class_counts: dict[str, int] = Field(default_factory=dict)


def save_prior(prior: Prior, path: str | Path) -> None:
    """Write a fitted prior in one step.

    Raises:
        OutputError: the file can't be written.
        PriorError: the prior is none that was fitted to data.
    """
    from safetensors.torch import save

    if isinstance(prior, ClassPrior):
        everything, classes = prior.everything, prior.classes
    elif isinstance(prior, GaussianPrior):
        everything, classes = prior, {}
    else:
        raise PriorError(f"expected a prior of kind {' or '.join(FITTED_KINDS)} to save, found {prior.kind}")
    gaussians = {"data": everything} | {f"class.{target}": gaussian for target, gaussian in classes.items()}
    tensors: dict[str, Tensor] = {}
    for key, gaussian in gaussians.items():
        tensors |= {f"{key}.{part}": getattr(gaussian, part).contiguous() for part in PARTS[:3]}
        tensors[f"{key}.remainder"] = torch.tensor([gaussian.remainder], dtype=torch.float64)
    origin = everything.origin
    counts = {str(target): count for target, count in origin.class_counts.items()}
    fitted = vars(origin) | {"num_images": origin.num_images or 1, "class_counts": counts}
    header = _Header(version=FORMAT_VERSION, kind=prior.kind, input_shape=list(everything.input_shape), **fitted)
    write_file(Path(path), save(tensors, metadata={METADATA_KEY: header.model_dump_json()}), private=True)


def load_prior(path: str | Path) -> Prior:
    """Read a prior that `save_prior` or ``riskaudit prior fit`` wrote.

    Raises:
        PriorError: missing, damaged, or not a prior; the message says what is wrong.
    """
    path = Path(path)
    name = clean(path.name)
    check_file(path, PriorError, "files that riskaudit prior fit wrote")
    tensors = read_safetensors(path, PriorError)
    header = _header(path, name)
    shape = tuple(header.input_shape)
    if any(size < 1 for size in shape):
        raise PriorError(f"{name} says that its inputs have shape {shape_text(shape)}; {_MEND}")
    counts = {_class_number(text, name): count for text, count in header.class_counts.items()}
    if any(count < 1 for count in counts.values()):
        raise PriorError(f"{name} counts less than one image of a class; {_MEND}")
    origin = Origin(None if header.source is None else clean(header.source), header.sha256, header.num_images, counts)
    keys = sorted({key.rpartition(".")[0] for key in tensors if key.startswith("class.") and header.kind == "class"})
    _check_names(tensors, ["data", *keys], name)
    everything = _gaussian(tensors, "data", shape, origin, name)
    if header.kind == "data":
        return everything
    classes = {}
    for key in keys:
        target = _class_number(key.removeprefix("class."), name)
        if target not in counts:
            raise PriorError(f"{name} has a Gaussian of class {target}, but counts no image of it; {_MEND}")
        class_origin = replace(origin, num_images=counts[target], class_counts={target: counts[target]})
        classes[target] = _gaussian(tensors, key, shape, class_origin, name)
    if not counts:
        raise PriorError(f"{name} is a prior per class without a class; {_MEND}")
    return ClassPrior(everything, classes)


def _header(path: Path, name: str) -> _Header:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise PriorError(f"{name} holds tensors but isn't a prior; {_MEND}")
    try:
        header = _Header.model_validate_json(text)
    except (ValidationError, RecursionError) as cause:
        first = cause.errors()[0] if isinstance(cause, ValidationError) else None
        field = clean(".".join(map(str, first["loc"]))) if first else "header"
        raise PriorError(f"{name} has a header that isn't a prior's ({field or 'no JSON'}); {_MEND}") from cause
    if header.version != FORMAT_VERSION:
        raise PriorError(
            f"expected version {FORMAT_VERSION} of the prior format in {name}, found {header.version}; {_MEND}"
        )
    if header.kind not in FITTED_KINDS:
        raise PriorError(
            f"expected a prior of kind {' or '.join(FITTED_KINDS)} in {name}, found {clean(header.kind)}; {_MEND}"
        )
    return header


def _class_number(text: str, name: str) -> int:
    if re.fullmatch(r"\d{1,9}", text, re.ASCII) is None:
        raise PriorError(f"expected class numbers in {name}, found {clean(text)!r}; {_MEND}")
    return int(text)


def _check_names(tensors: Mapping[str, Tensor], keys: list[str], name: str) -> None:
    expected = {f"{key}.{part}" for key in keys for part in PARTS}
    if set(tensors) != expected:
        missing, foreign = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
        what = f"without {clean(missing[0])}" if missing else f"with {clean(foreign[0])}, which doesn't belong there"
        raise PriorError(f"{name} is a prior {what}; {_MEND}")


def _gaussian(
    tensors: Mapping[str, Tensor], key: str, input_shape: tuple[int, ...], origin: Origin, name: str
) -> GaussianPrior:
    """One Gaussian, once it has been found to be one."""
    mean, components, variances, remainder = (tensors[f"{key}.{part}"] for part in PARTS)
    dimension, count = math.prod(input_shape), variances.numel()
    shapes = {"mean": (dimension,), "components": (dimension, count), "variances": (count,), "remainder": (1,)}
    for part, shape in shapes.items():
        tensor = tensors[f"{key}.{part}"]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float64:
            raise PriorError(
                f"expected {key}.{part} in {name} as float64 of shape {shape_text(shape)}, found "
                f"{str(tensor.dtype).removeprefix('torch.')} of shape {shape_text(tensor.shape)}; {_MEND}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise PriorError(f"{key}.{part} in {name} has a value that isn't finite; {_MEND}")
    if not float(remainder) > 0 or bool((variances < 0).any()):
        raise PriorError(f"{key} in {name} has a variance below zero or no remainder above it; {_MEND}")
    departure = components.mT @ components - torch.eye(count, dtype=torch.float64)
    if count > dimension or (count and not float(departure.abs().max()) <= ORTHONORMAL_TOLERANCE):
        raise PriorError(f"{key}.components in {name} are not orthonormal; {_MEND}")
    return GaussianPrior(mean, components, variances, float(remainder), input_shape, origin)
