"""Structural similarity (Wang, Bovik, Sheikh and Simoncelli, IEEE Transactions on Image Processing 2004).

Mean over positions and channels of luminance, contrast and structure compared under a Gaussian window of
11 x 11 pixels and standard deviation 1.5; images are mirrored at their borders. On images smaller than that
the window is the largest odd one that fits, with a standard deviation in proportion: such values compare with
each other, not with published ones.
"""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from riskaudit.metrics.base import Metric, Subject, register

WINDOW = 11
WINDOW_STD = 1.5
SMALLEST_WINDOW = 3


@register
class StructuralSimilarity(Metric):
    """SSIM in [-1, 1], by torchmetrics."""

    name = "ssim"
    title = "SSIM"
    order = 40
    units = "1 = identical"
    source = "Wang et al., IEEE TIP 2004"
    higher_is_better = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.window = WINDOW
        if len(subject.input_shape) != 3:
            self.reason = "the inputs are not images of channels, height and width"
        elif subject.span is None:
            self.reason = "the input range is unknown or empty"
        else:
            shorter = min(subject.input_shape[1:])
            self.window = min(WINDOW, shorter - 1 + shorter % 2)
            if self.window < SMALLEST_WINDOW:
                self.reason = f"images of {shorter} pixels are smaller than any window"
            elif self.window < WINDOW:
                self.note = (
                    f"window of {self.window} x {self.window} pixels instead of {WINDOW} x {WINDOW}, because the "
                    f"images are {subject.input_shape[1]} x {subject.input_shape[2]}; not comparable with other sizes"
                )

    @override
    def __call__(self, reconstruction: Tensor, truth: Tensor) -> Tensor:
        from riskaudit.metrics.base import torchmetrics_image

        # torchmetrics derives the Gaussian window's size from its standard deviation.
        values: Tensor = torchmetrics_image().structural_similarity_index_measure(
            reconstruction.double(),
            truth.to(reconstruction.device).double(),
            sigma=WINDOW_STD * self.window / WINDOW,
            data_range=self.subject.span,
            reduction="none",
        )
        return values.double().cpu()
