"""An operator that writes down what is asked of it."""

from __future__ import annotations

from typing import final

from torch import Tensor
from typing_extensions import override

from riskaudit.linalg import LinearOperator


@final
class RecordingOperator(LinearOperator):
    """Like the operator it wraps; ``held`` is the number of samples in each product made so far."""

    def __init__(self, operator: LinearOperator, held: list[int] | None = None) -> None:
        super().__init__(operator.num_samples, operator.shape, operator.dtype, operator.device)
        self.operator = operator
        self.held: list[int] = [] if held is None else held

    @property
    @override
    def psd(self) -> bool:
        return self.operator.psd

    @override
    def _matmat(self, columns: Tensor) -> Tensor:
        self.held.append(self.num_samples)
        return self.operator.matmat(columns)

    @override
    def select(self, indices: list[int]) -> RecordingOperator:
        return RecordingOperator(self.operator.select(indices), self.held)
