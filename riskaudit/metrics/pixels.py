"""Errors per input coordinate: MSE, RMSE and PSNR. They make no assumption about what an input is.

    MSE = mean_i (xhat_i - x_i)^2,   RMSE = sqrt(MSE),   PSNR = 10 log10(range^2 / MSE)

All in float64. PSNR is infinite for an exact match, which audit.json can't hold: it is capped at the value
that an error of one float64 rounding of the range has, 313.07 dB, so that ranks stay what they are.
"""

from __future__ import annotations

import math
import sys

from torch import Tensor
from typing_extensions import override

from riskaudit.metrics.base import Metric, Subject, real_positions, register

PSNR_CAP = -20 * math.log10(sys.float_info.epsilon)


def mean_squared_error(reconstruction: Tensor, truth: Tensor, *, texts: bool = False) -> Tensor:
    """Mean squared difference per sample: [B, ...] twice -> [B], float64, on the CPU.

    Args:
        reconstruction: [B, *S].
        truth: likewise.
        texts: whether they are embedded texts [B, T, E], of which padding counts in no mean.
    """
    truth = truth.to(reconstruction.device).double()
    squared = (reconstruction.double() - truth).square()
    if not texts:
        return squared.flatten(1).mean(1).cpu()
    real = real_positions(truth)
    return (squared.mean(-1).where(real, 0.0).sum(1) / real.sum(1)).cpu()


@register
class MeanSquaredError(Metric):
    """Mean squared error per input coordinate."""

    name = "mse"
    title = "MSE"
    order = 20
    units = "squared data units"
    source = "mean over coordinates of the squared difference"

    @override
    def __call__(self, reconstruction: Tensor, truth: Tensor) -> Tensor:
        return mean_squared_error(reconstruction, truth, texts=self.subject.texts is not None)


@register
class RootMeanSquaredError(Metric):
    """Root mean squared error per input coordinate: the unit of every predicted error."""

    name = "rmse"
    title = "RMSE"
    order = 10
    units = "data units"
    source = "root of the MSE"

    @override
    def __call__(self, reconstruction: Tensor, truth: Tensor) -> Tensor:
        return mean_squared_error(reconstruction, truth, texts=self.subject.texts is not None).sqrt()


@register
class PeakSignalToNoise(Metric):
    """Peak signal-to-noise ratio, by torchmetrics; at most `PSNR_CAP`."""

    name = "psnr"
    title = "PSNR"
    order = 30
    units = "dB"
    source = "10 log10(range^2 / MSE), range that of the inputs"
    higher_is_better = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        if subject.texts is not None:
            self.reason = "embedded texts have no peak value"
        elif subject.span is None:
            self.reason = "the input range is unknown or empty, so there is no peak value"

    @override
    def __call__(self, reconstruction: Tensor, truth: Tensor) -> Tensor:
        from riskaudit.metrics.base import torchmetrics_image

        guess, target = reconstruction.double(), truth.to(reconstruction.device).double()
        values: Tensor = torchmetrics_image().peak_signal_noise_ratio(
            guess, target, data_range=self.subject.span, reduction="none", dim=tuple(range(1, guess.ndim))
        )
        return values.clamp(max=PSNR_CAP).double().cpu()
