"""Files that are either whole or absent, and the hashes that name them.

Every output is written beside its destination under a temporary name, flushed to disk, and
renamed, so that a kill or a full disk never leaves half a file under the real name. Nothing is replaced that
riskaudit didn't write: a folder of results carries a manifest of its files with their hashes.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from riskaudit.errors import CheckpointError, OutputError, RiskauditError, SamplesError, SettingsError, UserCodeError

# Beside the results: what riskaudit wrote there, by name and SHA-256.
MANIFEST = "manifest.json"


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a mapping.

    Raises:
        SettingsError: missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"can't read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"expected TOML in {path}, found a mistake: {error}") from error


def names_code(text: str) -> bool:
    """Whether ``text`` reads as ``file.py:name``, a function that would be run."""
    return text.rpartition(":")[0].endswith(".py")


def check_found(source: str | Path, error: type[RiskauditError]) -> None:
    """Refuse a file or folder that isn't there, of ``file.py:name`` the file, before anything heavy is loaded.

    What can't be looked at is left to whoever reads it.

    Args:
        source: where it should be.
        error: to raise, of a path.

    Raises:
        RiskauditError: ``error``, or `UserCodeError`.
    """
    spec = str(source)
    if not names_code(spec):
        if not _may_exist(Path(spec)):
            raise error(not_found(spec))
    elif not _may_exist(Path(spec.rpartition(":")[0])):
        raise UserCodeError(code_not_found(spec))


find_model = partial(check_found, error=CheckpointError)
find_samples = partial(check_found, error=SamplesError)


def find_code(name: str) -> None:
    """Refuse a ``file.py:name`` whose file isn't there; any other name is none of a file.

    Raises:
        UserCodeError: it is missing.
    """
    if names_code(name):
        check_found(name, UserCodeError)


def not_found(path: str | Path) -> str:
    """One sentence about a path where nothing is."""
    return f"can't find {path}; check the path"


def code_not_found(spec: str) -> str:
    """One sentence about a ``file.py:name`` whose file isn't there."""
    return f"can't find {spec.rpartition(':')[0]} of {spec!r}; check the path"


def _may_exist(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return True


def _write_and_sync(path: Path, content: bytes, mode: int) -> None:
    """Write a new file; ``mode`` is what the umask is taken from."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _beside(path: Path) -> Path:
    """A name that nothing has, in the same folder, so that a rename is one step."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")


def write_file(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write ``content`` to ``path`` in one step.

    Args:
        path: a new file, or one whose place may be taken (see `check_output_file`).
        content: all of it.
        private: for the owner alone (mode 600); else as the umask has it.

    Raises:
        OutputError: the folder is missing or can't be written.
    """
    temporary = _beside(path)
    try:
        try:
            _write_and_sync(temporary, content, 0o600 if private else 0o666)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror or error}; choose another place") from error


def check_output_file(
    path: Path, inputs: Iterable[Path] = (), is_own: Callable[[Path], bool] = lambda _: False
) -> None:
    """Refuse ``path`` before any work is done if a result can't go there.

    A file that exists is replaced only where it is empty or ``is_own`` knows it for an earlier result.

    Args:
        path: of the result.
        inputs: files and folders that the run reads.
        is_own: whether a file is an earlier result of the same kind.

    Raises:
        OutputError: no such folder, one of the inputs, or a file that is something else.
    """
    try:
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise OutputError(f"expected `out` as a file in a folder that exists, found {path}; choose another place")
        _refuse_inputs(path, inputs)
        if not path.exists():
            return
        if not path.is_file():
            raise OutputError(f"expected `out` as a plain file, found the device {path}; choose another place")
        replaceable = not path.stat().st_size or is_own(path)
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror or error}; choose another place") from error
    if not replaceable:
        raise OutputError(f"{path} exists and is no earlier result of this command; choose another name with `out`")


def is_json_with(path: Path, keys: Iterable[str]) -> bool:
    """Whether a file is a JSON object with these keys."""
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError, MemoryError):
        return False
    return isinstance(document, dict) and set(keys) <= set(document)


def _refuse_inputs(output: Path, inputs: Iterable[Path], *, folder: bool = False) -> None:
    """Refuse an output that is an input or holds one, or a ``folder`` that would lie in one.

    Paths are compared after following links, and files by device and number, so that hard links count.

    Raises:
        OutputError: see above.
    """
    real = output.resolve()
    held = [real, *real.iterdir()] if real.is_dir() else [real]
    identities = {_identity(entry) for entry in held if entry.exists()}
    for source in inputs:
        if not source.exists():
            continue
        target = source.resolve()
        if _identity(target) in identities or target == real or real in target.parents:
            raise OutputError(f"writing to {output} would replace {source}, which this run reads; choose another `out`")
        if folder and target.is_dir() and target in real.parents:
            raise OutputError(f"{output} lies in {source}, which this run reads; choose another `out`")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def check_output_folder(folder: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse ``folder`` before any work is done if results can't go there.

    A folder is usable when it doesn't exist yet, is empty, or holds nothing but what its manifest lists with
    the hash that it lists, which is then replaced as a whole.

    Args:
        folder: for the results.
        inputs: files and folders that the run reads.

    Raises:
        OutputError: the folder holds other files or an input, isn't a folder, or can't be written.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"expected a folder for the results, found the file {folder}; choose another `out`")
        _refuse_inputs(folder, inputs, folder=True)
        _refuse_foreign(folder)
        # Nothing is made yet, so that an audit that fails leaves nothing behind; the same call will make the
        # real temporary folder, so it fails for the same reasons.
        existing = next(parent for parent in folder.absolute().parents if parent.exists())
        temporary = _beside(existing / folder.name)
        temporary.mkdir()
        temporary.rmdir()
    except OSError as error:
        raise OutputError(f"can't write to {folder}: {error.strerror or error}; choose another `out`") from error


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder with anything in it that its manifest doesn't vouch for.

    Raises:
        OutputError: see above.
    """
    if not folder.is_dir():
        return
    listed = _manifest(folder)
    for entry in sorted(folder.iterdir()):
        if listed is None:
            raise OutputError(
                f"{folder} already holds {entry.name!r}, which no audit wrote, or one without the {MANIFEST} that "
                "names it; choose a new or empty folder with `out`"
            )
        if entry.name != MANIFEST and not _is_listed(entry, listed):
            raise OutputError(
                f"{folder} already holds {entry.name!r}, which no audit wrote or which was changed since; "
                "choose a new or empty folder with `out`"
            )


def _is_listed(entry: Path, listed: Mapping[str, list[str]]) -> bool:
    plain = entry.is_file() and not entry.is_symlink()
    return plain and entry.name in listed and sha256_of_file(entry) in listed[entry.name]


def _manifest(folder: Path) -> dict[str, list[str]] | None:
    """The hashes of each file that riskaudit wrote into a folder; None without a manifest that can be read."""
    try:
        if (folder / MANIFEST).is_symlink():
            return None
        document = json.loads((folder / MANIFEST).read_bytes())
        files = document["files"] if document["written_by"] == "riskaudit" else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(files, dict):
        return None
    return {name: [str(each) for each in hashes] for name, hashes in files.items() if isinstance(hashes, list)}


def _manifest_of(hashes: Mapping[str, Iterable[str]]) -> bytes:
    files = {name: sorted(each) for name, each in sorted(hashes.items())}
    return (json.dumps({"written_by": "riskaudit", "files": files}, indent=1) + "\n").encode()


def write_folder(folder: Path, files: Mapping[str, bytes], *, private: bool = False) -> None:
    """Write all ``files`` and their manifest as ``folder`` in one step, replacing an earlier audit there.

    The caller has passed the folder through `check_output_folder`.

    Args:
        folder: as a whole.
        files: content by name.
        private: for the owner alone (modes 700 and 600); else as the umask has it.

    Raises:
        OutputError: the place can't be written, or now holds something else; what was there is untouched.
    """
    try:
        # Through a link, so that the folder is replaced and not the link.
        real = folder.resolve()
        real.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(real)
        temporary.mkdir(mode=0o700 if private else 0o777)
        try:
            manifest = _manifest_of({name: [hashlib.sha256(content).hexdigest()] for name, content in files.items()})
            for name, content in {**files, MANIFEST: manifest}.items():
                _write_and_sync(temporary / name, content, 0o600 if private else 0o666)
            _refuse_foreign(folder)
            if real.exists() and any(real.iterdir()):
                _replace_folder(temporary, real)
            else:
                temporary.rename(real)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"can't write to {folder}: {error.strerror or error}; choose another `out`") from error


def add_to_folder(
    folder: Path, files: Mapping[str, bytes], inputs: Iterable[Path] = (), *, private: bool = False
) -> None:
    """Write ``files`` into a folder that may hold others, and add them to its manifest.

    Each is written in one step. The manifest lists old and new hashes while files are replaced, so that a kill
    leaves none of them unknown.

    Args:
        folder: made where it doesn't exist.
        files: content by name.
        inputs: files that the run reads.
        private: for the owner alone (mode 600); else as the umask has it.

    Raises:
        OutputError: a file of that name is an input or was not written by riskaudit, or the place can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        listed = _manifest(folder) or {}
        for name, content in files.items():
            path = folder / name
            if not path.exists() and not path.is_symlink():
                continue
            if path.is_file() and not path.is_symlink() and path.read_bytes() == content:
                continue
            _refuse_inputs(path, inputs)
            if not _is_listed(path, listed):
                raise OutputError(
                    f"{path} exists and no {MANIFEST} there says that riskaudit wrote it as it is; choose a new or "
                    "empty folder with `out`"
                )
        if (folder / MANIFEST).exists() and _manifest(folder) is None:
            raise OutputError(f"{folder / MANIFEST} isn't riskaudit's; choose a new or empty folder with `out`")
        added = {name: [hashlib.sha256(content).hexdigest()] for name, content in files.items()}
        both = {name: [*listed.get(name, []), *hashes] for name, hashes in added.items()}
        write_file(folder / MANIFEST, _manifest_of({**listed, **both}), private=private)
        for name, content in files.items():
            write_file(folder / name, content, private=private)
        write_file(folder / MANIFEST, _manifest_of({**listed, **added}), private=private)
    except OSError as error:
        raise OutputError(f"can't write to {folder}: {error.strerror or error}; choose another `out`") from error


def _replace_folder(new: Path, folder: Path) -> None:
    """Put ``new`` in the place of ``folder``, which is not empty; a failure leaves ``folder`` as it was."""
    if _exchange(new, folder):
        return
    # rename(2) replaces only an empty folder: move the earlier one aside first.
    aside = new.with_name(f"{new.name}.earlier")
    folder.rename(aside)
    try:
        new.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step, so that a kill can't fall in between; False where the system can't (not Linux)."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's headers
    return bool(renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0)
