"""Creating a run: everything that decides its results is decided here, once."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from riskaudit.audit.client import Client, make_client
from riskaudit.audit.provenance import versions
from riskaudit.audit.settings import AuditSettings
from riskaudit.audit.shards import plan_audit
from riskaudit.audit.subject import SourceOptions
from riskaudit.errors import OutputError, RunError, SettingsError
from riskaudit.files import check_output_folder
from riskaudit.formatting import present_time
from riskaudit.inputs.text import clean
from riskaudit.runs.leases import LEASES
from riskaudit.runs.manifest import MANIFEST, RunCheckpoint, RunManifest, hash_of, named_files, placed
from riskaudit.runs.opening import computing_as, hash_of_samples, plan_to_json
from riskaudit.runs.store import SHARDS


def check_folder(folder: Path, inputs: Sequence[Path]) -> None:
    """Refuse a place for a run before any work is done.

    Args:
        folder: the place.
        inputs: files and folders that the run reads.

    Raises:
        RunError: it holds a run already.
        OutputError: it holds something else, is a file, or lies in an input.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"expected a folder for the run, found the file {folder}; choose another one")
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise OutputError(f"can't use {folder}: {error.strerror or error}; choose another folder") from error
    if MANIFEST in names:
        raise RunError(f"{folder} holds a run already; riskaudit run work goes on with it, or choose another folder")
    if names:
        raise OutputError(f"{folder} already holds {clean(names[0])!r}; choose a new or empty folder")
    check_output_folder(folder, inputs)


def make_manifest(
    checkpoints: Sequence[str | Path],
    source: SourceOptions,
    settings: AuditSettings,
    *,
    shard: int,
    threads: int,
    heartbeat: float,
    show_samples: bool,
    commands: Sequence[str | None] | None = None,
) -> RunManifest:
    """Read the inputs, check that they fit, and decide how they are audited.

    Args:
        checkpoints: their files.
        source: the data.
        settings: of every audit.
        shard: samples of a shard, at most; an upload stays whole.
        threads: of every worker.
        heartbeat: seconds between a worker's signs of life.
        show_samples: put private inputs into the results.
        commands: that reproduce the audits, for the record.

    Raises:
        SettingsError: no checkpoint, or options that a run can't have.
        RiskauditError: inputs that can't be used, or that don't fit.
    """
    if not checkpoints:
        raise SettingsError("expected at least one checkpoint, found none")
    if settings.budget is not None:
        raise SettingsError("with a budget of time results would depend on who works; leave out `budget`")
    settings = replace(settings, device=str(settings.torch_device()))
    with computing_as(threads):
        entries = [
            _entry(Path(path).absolute(), source, settings, shard, show_samples, command)
            for path, command in zip(checkpoints, commands or [None] * len(checkpoints), strict=True)
        ]
    source_values, settings_values = placed(source), placed(settings)
    manifest = RunManifest(
        created_at=present_time(),
        versions=versions(),
        source=source_values,
        settings=settings_values,
        checkpoints=entries,
        files={path: hash_of(Path(path)) for path in named_files([source_values, settings_values])},
        threads=threads,
        show_samples=show_samples,
        heartbeat=heartbeat,
    )
    return manifest.model_copy(update={"id": manifest.identity()})


def _entry(
    path: Path, source: SourceOptions, settings: AuditSettings, shard: int, show_samples: bool, command: str | None
) -> RunCheckpoint:
    model, samples = source.load_from(str(path), settings.loss)
    client = make_client(model, samples, settings)
    client, uploads = _fitting(client, shard)
    plan = plan_audit(client, None, 1, show_samples).solvers
    size, sha256 = client.upload_size, client.checkpoint.sha256
    assert sha256 is not None
    return RunCheckpoint(
        path=str(path),
        sha256=sha256,
        data_sha256=hash_of_samples(samples),
        num_samples=len(samples),
        # Whole batches, so that they are those of one audit without shards.
        shard=size * max(plan.width, uploads // plan.width * plan.width),
        plan=plan_to_json(plan),
        command=command,
    )


def _fitting(client: Client, shard: int) -> tuple[Client, int]:
    """The client with batches no larger than a shard, and the uploads of a shard."""
    uploads, settings = max(1, shard // client.upload_size), client.settings
    most = uploads * client.upload_size
    if settings.batch_size is None or settings.batch_size > most:
        width = plan_audit(client, None, 1, show_samples=False).solvers.width
        if width > uploads:
            client = replace(client, settings=replace(settings, batch_size=most))
    return client, uploads


def write_run(folder: Path, manifest: RunManifest) -> None:
    """Make the run's folder in one step.

    Raises:
        OutputError: it can't be written.
    """
    real = folder.absolute()
    temporary = real.with_name(f".{real.name}.{secrets.token_hex(6)}")
    mode = 0o700 if manifest.private else 0o777
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        try:
            for path in (temporary, temporary / SHARDS, temporary / LEASES):
                path.mkdir(mode=mode)
            manifest.save(temporary / MANIFEST)
            if manifest.private:
                (temporary / MANIFEST).chmod(0o600)
            temporary.rename(real)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"can't write {folder}: {error.strerror or error}; choose another place") from error
