"""The contract of an upload: which tensors may be in it, of which shapes and dtypes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from riskaudit.errors import ArchitectureError, CheckpointError, GuardError
from riskaudit.guard.attestation.vectors import Vector, read_vector
from riskaudit.inputs import Checkpoint, load_checkpoint
from riskaudit.inputs.text import clean, listing, shape_text
from riskaudit.release import ReleaseSpec
from riskaudit.release.steps import StepContext
from riskaudit.release.steps.share import Share
from riskaudit.results.attestation import AttestationTest, VectorFile

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
TITLES = {
    "names": "Names of the tensors",
    "shapes": "Shapes of the tensors",
    "dtypes": "Dtypes of the tensors",
    "finite": "Finite real numbers",
    "extras": "Nothing besides the tensors",
    "masked-out": "Nothing in entries that are masked out",
}


@dataclass(frozen=True, eq=False)
class Contract:
    """What may be in an upload.

    Attributes:
        parameters: of the model that was received, by name, in its order: shapes.
        dtypes: of the same, as they are stored there.
        model: with the weights; None where it isn't known.
        file: where this comes from.
        doubt: what isn't known of which parameters are trained; None where all is.
    """

    parameters: Mapping[str, torch.Size]
    dtypes: Mapping[str, torch.dtype]
    model: nn.Module | None
    file: VectorFile
    doubt: str | None = None

    @property
    def context(self) -> StepContext:
        """The vector of all parameters, as steps of a release take it."""
        return StepContext(self.parameters, torch.float64, torch.device("cpu"))

    def sent(self, spec: ReleaseSpec) -> Mapping[str, torch.Size]:
        """The parameters that a release lets leave.

        Raises:
            ReleaseError: a pattern that matches none.
        """
        context = self.context
        for step in spec.all_steps:
            if isinstance(step, Share):
                context = step.context_after(context)
        return context.shapes


def contract_of(received: object, arch: str | None = None) -> Contract:
    """From a checkpoint that was received: its trainable parameters, or where nobody knows the model its weights.

    Args:
        received: path, `Checkpoint`, module, or tensors by name.
        arch: architecture of a path's model, see `load_checkpoint`.

    Raises:
        RiskauditError: it can't be read.
    """
    if isinstance(received, Checkpoint | nn.Module):
        model = received.model if isinstance(received, Checkpoint) else received
        name, sha256 = (received.name, received.sha256) if isinstance(received, Checkpoint) else ("received", None)
        trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
        return _contract(trained, Vector(name, sha256, trained), model)
    if not isinstance(received, str | Path):
        return _of_weights(read_vector(received, "received"))
    try:
        checkpoint = load_checkpoint(received, arch=arch)
    except ArchitectureError:
        if arch is not None:
            raise
        return _of_weights(read_vector(received, "received"))
    trained = {key: value for key, value in checkpoint.model.named_parameters() if value.requires_grad}
    try:
        stored = read_vector(received, "received")
    except CheckpointError:
        # A program of torch.export, whose weights have the dtypes that it computes in.
        stored = Vector(checkpoint.name, checkpoint.sha256, trained)
    return _contract(trained, stored, checkpoint.model)


def _contract(trained: Mapping[str, Tensor], stored: Vector, model: nn.Module) -> Contract:
    if not trained:
        raise GuardError(f"{stored.name} has no trainable parameters, so nothing may be in an upload; check the model")
    tensors = stored.under(list(trained)).tensors
    dtypes = {}
    for key, parameter in trained.items():
        # In a checkpoint of a training run the weights lie deeper.
        deeper = [tensor.dtype for name, tensor in tensors.items() if name.endswith(f".{key}")]
        dtypes[key] = tensors[key].dtype if key in tensors else deeper[0] if deeper else parameter.dtype
    return Contract({key: value.shape for key, value in trained.items()}, dtypes, model, stored.info())


def _of_weights(stored: Vector) -> Contract:
    """Where no model is known: every weight may be trained."""
    weights = {
        name: tensor
        for name, tensor in stored.tensors.items()
        if tensor.is_floating_point() and not name.endswith(_BUFFERS)
    }
    doubt = (
        f"which of the weights in {stored.name} are trained isn't known, since no architecture fits them alone; "
        "frozen ones among the upload wouldn't be noticed (`arch` names it)"
    )
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    return Contract(shapes, {name: tensor.dtype for name, tensor in weights.items()}, None, stored.info(), doubt)


def contract_tests(update: Vector, contract: Contract | None, spec: ReleaseSpec) -> list[AttestationTest]:
    """Whether an upload holds what it may, and nothing besides.

    Args:
        update: under the contract's names.
        contract: None where no received model is given, so that names can't be compared.
        spec: which parameters leave.
    """
    tests = [_test("finite", _not_finite(update), "every entry is a finite real number")]
    tests.append(_test("extras", _extras(update), "nothing but tensors is in it"))
    if contract is None:
        reason = "no received model was given to compare with"
        return [*(_row(name, "not_applicable", None, reason) for name in ("names", "shapes", "dtypes")), *tests]
    sent = contract.sent(spec)
    comparisons: list[tuple[str, Callable[[], str | None], str]] = [
        ("names", lambda: _names(update, sent), f"it has the {len(sent)} tensors that may leave and no other"),
        ("shapes", lambda: _shapes(update, sent), "every tensor has the shape of its parameter"),
        ("dtypes", lambda: _dtypes(update, contract.dtypes), "every tensor has the dtype of its parameter"),
    ]
    return [*(_test(name, compare(), otherwise) for name, compare, otherwise in comparisons), *tests]


def masked_test(update: Vector, empty: Tensor) -> AttestationTest:
    """Whether the entries [P] that a mask leaves empty are 0."""
    number = int((update.flat()[empty] != 0).sum())
    fault = f"{number} of {int(empty.sum())} entries that the mask leaves empty aren't 0"
    return _test("masked-out", fault if number else None, f"the {int(empty.sum())} entries of the mask are 0")


def _names(update: Vector, sent: Mapping[str, torch.Size]) -> str | None:
    if update.is_row:
        return f"expected {len(sent)} tensors, one per parameter that leaves, found {len(update.tensors)} without names"
    foreign = [name for name in update.tensors if name not in sent]
    missing = [name for name in sent if name not in update.tensors]
    sentences = [f"{listing(foreign)} may not leave"] if foreign else []
    sentences += [f"{listing(missing)} is missing"] if missing else []
    return "; ".join(sentences) or None


def _shapes(update: Vector, sent: Mapping[str, torch.Size]) -> str | None:
    for name, shape in sent.items():
        if name in update.tensors and update.tensors[name].shape != shape:
            found = shape_text(update.tensors[name].shape)
            return f"expected {shape_text(shape)} for {clean(name, 60)}, found {found}"
    return None


def _dtypes(update: Vector, dtypes: Mapping[str, torch.dtype]) -> str | None:
    for name, tensor in update.tensors.items():
        if name in dtypes and tensor.dtype != dtypes[name]:
            return f"expected {dtypes[name]} for {clean(name, 60)}, found {tensor.dtype}"
    return None


def _not_finite(update: Vector) -> str | None:
    for name, tensor in update.tensors.items():
        if not tensor.is_floating_point():
            return f"{clean(name, 60)} holds {tensor.dtype}, expected floating-point numbers"
        if not bool(torch.isfinite(tensor).all()):
            return f"{clean(name, 60)} holds something that isn't a finite number"
    return None


def _extras(update: Vector) -> str | None:
    sentences = [f"{listing(update.extras)} in {update.name} is no tensor"] if update.extras else []
    if update.hidden_bytes:
        sentences.append(
            f"{update.name} stores {update.hidden_bytes} bytes beyond the tensors' own entries, since views were "
            "saved with all that they are views of; save clones"
        )
    return "; ".join(sentences) or None


def _test(name: str, fault: str | None, otherwise: str) -> AttestationTest:
    return _row(name, "as_declared" if fault is None else "not_as_declared", 0.0, fault or otherwise)


def _row(name: str, status: str, false_alarm: float | None, reason: str) -> AttestationTest:
    return AttestationTest.model_validate(
        {
            "id": name,
            "title": TITLES[name],
            "claim": "contract",
            "status": status,
            "false_alarm": false_alarm,
            "reason": reason,
        }
    )
