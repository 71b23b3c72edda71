"""What a result says of where its numbers come from: data, release, settings, versions and cost."""

from __future__ import annotations

import platform
import resource
import sys
from typing import Literal

import numpy as np
import scipy
import torch

from riskaudit.audit.client import Client
from riskaudit.audit.positions import doubt_of_texts, text_info
from riskaudit.audit.rows import target_kind
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.inputs.architectures.precode import bottleneck_draw, num_bottleneck_draws
from riskaudit.inputs.discrete import SPARSE_CODES, are_undeclared_codes
from riskaudit.release import batch_norm_layers
from riskaudit.release.adapted import without_spoiled
from riskaudit.results import CheckpointInfo, DataInfo, NoiseInfo, ReleaseInfo, Settings
from riskaudit.results.tables import ColumnInfo, EncodingInfo
from riskaudit.sensitivity import Plan
from riskaudit.tables import Category, NumberColumn, TableEncoding
from riskaudit.version import __version__


def checkpoint_info(checkpoint: Checkpoint, doubt: str | None) -> CheckpointInfo:
    """The model, and why its architecture is doubted."""
    return CheckpointInfo(
        name=checkpoint.name,
        sha256=checkpoint.sha256,
        architecture=checkpoint.architecture,
        num_parameters=checkpoint.num_parameters,
        assumed=checkpoint.assumed,
        doubt=doubt,
        bottleneck_draw=bottleneck_draw(checkpoint.model),
        num_bottleneck_draws=num_bottleneck_draws(checkpoint.model),
    )


def audited_data(client: Client, num_unaudited: int = 0) -> DataInfo:
    """A client's samples, without any of them, and why nothing that protects may be claimed of them."""
    info, tokens = data_info(client.samples, num_unaudited), client.samples.tokens
    if tokens is None:
        return info
    text = text_info(tokens, client.release.num_entries)
    return info.model_copy(update={"text": text, "doubt": info.doubt or doubt_of_texts(client)})


def data_info(samples: Samples, num_unaudited: int = 0) -> DataInfo:
    """The samples, without any of them."""
    return DataInfo(
        name=samples.name,
        sha256=samples.sha256,
        num_samples=len(samples),
        input_shape=list(samples.inputs.shape[1:]),
        input_range=[float(samples.inputs.min()), float(samples.inputs.max())],
        class_names=list(samples.class_names) if samples.class_names is not None else None,
        target_kind=target_kind(samples.targets[0]),
        doubt=SPARSE_CODES if are_undeclared_codes(samples) else None,
        num_unaudited=num_unaudited,
        encoding=None if samples.encoding is None else encoding_info(samples.encoding),
    )


def encoding_info(encoding: TableEncoding) -> EncodingInfo:
    """The columns of a table, without any of their values."""
    columns = [
        ColumnInfo(
            name=column.name,
            kind=column.kind,
            inputs=column.width,
            num_categories=len(column.codes) if isinstance(column, Category) else None,
            missing=column.missing_words,
            unit=column.unit if isinstance(column, NumberColumn) else "",
        )
        for column, _ in encoding.places
        if column.kind is not None
    ]
    return EncodingInfo(name=encoding.name, sha256=encoding.sha256, columns=columns, ignored=encoding.ignored)


def release_info(client: Client) -> ReleaseInfo:
    """The release, with the reference noise where it has none."""
    release, noise = client.release, client.release.noise
    adapted = without_spoiled(release)
    return ReleaseInfo(
        steps=release.spec.names,
        spec=str(release.spec),
        noise=None if noise is None else NoiseInfo(law=noise.law, std=noise.std),
        defended=noise is not None,
        coupling=release.coupling,
        upload_size=client.upload_size if client.is_joint else None,
        attacker=client.settings.attacker if client.is_joint else None,
        batch_norm=_batch_norm(client),
        num_entries=release.num_entries,
        reference_noise_std=client.settings.reference_noise if noise is None else None,
        adapted=None if adapted is None else str(adapted.spec),
    )


def _batch_norm(client: Client) -> Literal["running", "batch"] | None:
    """The statistics that batch norm takes; None without such layers."""
    if not batch_norm_layers(client.release.model):
        return None
    return "batch" if client.mixes_samples else "running"


def settings_info(client: Client, plan: Plan) -> Settings:
    """The settings, and what was chosen where they leave a choice."""
    settings, checkpoint = client.settings, client.checkpoint
    return Settings(
        **settings.record(),
        device=str(settings.torch_device()),
        dtype=settings.chosen_dtype(client.device),
        solver=plan.solver,
        inverse=plan.inverse,
        solver_reason=plan.solver_reason,
        inverse_reason=plan.inverse_reason,
        loss=client.loss.name,
        batch_size=plan.width,
        max_matvecs=plan.max_matvecs,
        jacobian=client.maker.kind,
        jacobian_reason=client.maker.reason,
        target_rmse=client.target_rmse,
        thresholds=settings.thresholds(),
        normalization_mean=checkpoint.normalization_mean,
        normalization_std=checkpoint.normalization_std,
    )


def versions() -> dict[str, str]:
    """Of what computed the numbers."""
    return {
        "riskaudit": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": str(np.__version__),
        "scipy": str(scipy.__version__),
    }


def peak_memory(device: torch.device) -> int:
    """Bytes that this process took at most, on the device."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
