"""What is attested: an upload, what it is held to, and what of it a test can rely on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from riskaudit.errors import SettingsError
from riskaudit.guard.attestation.contract import Contract
from riskaudit.guard.attestation.declaration import Declaration
from riskaudit.guard.attestation.vectors import Vector, read_vector

# How far a clipped norm may be above its bound, and a recomputed update from the first, besides the dtype's rounding.
TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Subject:
    """What is attested, under the received model's names.

    Attributes:
        update: the upload.
        clean: before noise; None where it isn't known.
        contract: None without a received model.
        declaration: what it is said to be.
    """

    update: Vector
    clean: Vector | None
    contract: Contract | None
    declaration: Declaration

    @classmethod
    def of(cls, update: Vector, clean: object, contract: Contract | None, declaration: Declaration) -> Subject:
        """With everything in one order.

        Raises:
            SettingsError: a clean update of other tensors.
        """
        if contract is not None:
            update = update.under(list(contract.sent(declaration.spec)))
        if clean is None:
            return cls(update, None, contract, declaration)
        before = read_vector(clean, "clean")
        before = before.under(list(update.tensors))
        shapes = {name: tensor.shape for name, tensor in update.tensors.items()}
        if {name: tensor.shape for name, tensor in before.tensors.items()} != shapes:
            raise SettingsError(
                f"expected the tensors of {update.name} in `clean`, found other names or shapes in {before.name}; "
                "hand over the same update before its noise"
            )
        if not _is_finite(before):
            raise SettingsError(f"expected finite numbers in `clean`, found others in {before.name}")
        return cls(update, before, contract, declaration)

    @property
    def is_readable(self) -> bool:
        """Whether norms and noise mean anything."""
        return _is_finite(self.update) and self.update.num_entries > 0

    @property
    def tolerance(self) -> float:
        """Share of a norm that rounding may add."""
        dtypes = [tensor.dtype for tensor in self.update.tensors.values()]
        return TOLERANCE + max(torch.finfo(dtype).eps for dtype in dtypes)

    def fits_contract(self) -> bool:
        """Whether the entries are those of the received model's parameters."""
        if self.contract is None:
            return False
        sent = self.contract.sent(self.declaration.spec)
        return {name: tensor.shape for name, tensor in self.update.tensors.items()} == dict(sent)


def _is_finite(vector: Vector) -> bool:
    tensors = vector.tensors.values()
    return all(tensor.is_floating_point() and bool(torch.isfinite(tensor).all()) for tensor in tensors)
