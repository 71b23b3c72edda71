"""Whether J holds over the width of the error that is read off it, where the release's steps bend faster than that.

A step of Adam moves every entry by lr m / (sqrt(v) + 1e-8), for one mini-batch lr g / (|g| + 1e-8): a sign. The
derivative, lr 1e-8 / (|g| + 1e-8)^2, is next to nothing at most entries, which change by 2 lr all the same once g
changes its sign, and up to 1e8 lr at entries near 0, which change by lr at most. So J says too much where the noise is
above lr, and too little where it is far below. An error v is drawn from the posterior N(0, (H / sigma^2 + C^-1)^-1)
that is read off J, and r(x + v) - r(x) held against J v, which is about sigma in every direction that J says is told.

Over networks with tanh, ReLU and sigmoid, untrained and trained on digits, the part of J v that happened was 0.95 or
more (once 0.56) for gradients, means and steps of SGD wherever a tenth of the input or more was revealed; for one step
of Adam 0.6 at a noise of lr, 0.3 to 0.4 at 3 lr and 0.1 to 0.2 at 10 lr, and at lr / 100 the upload moved by 250 to 410
times J v.

Smooth steps and networks bend over the width of the prior only, for which `riskaudit.audit.uploads` has its tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from riskaudit.audit.credibility import LIKELY_FACTOR
from riskaudit.audit.evidence import NEGLIGIBLE_HIDDEN
from riskaudit.jacobian import Jacobian
from riskaudit.release.local_training import LocalTrainingRelease
from riskaudit.sensitivity import Linearisation

# The part of what J says that has to happen, and errors that are drawn.
LEAST_PART, DRAWS = 0.5, 2


def width_doubts(jacobian: Jacobian, at: Linearisation, owners: Sequence[int], claimed: Sequence[float]) -> list[str]:
    """Why J isn't believed at every upload; empty strings where it is.

    Args:
        jacobian: J at U uploads.
        at: the same linearised, of every input that occurs once.
        owners: of each sample of the uploads, its input's place there.
        claimed: the largest revealed fraction that is read off J, of every upload.
    """
    release, batch = jacobian.release, jacobian.batch
    if not isinstance(release, LocalTrainingRelease) or release.training.optimizer != "adam":
        return [""] * batch.num_uploads
    parts, times = [], []
    with torch.no_grad():
        before = release.mean(batch).detach().double()
        for number in range(DRAWS):
            error = at.blocks(at.posterior_draw(number))[list(owners)]
            said = jacobian.matvec(error.reshape(batch.num_uploads, -1)).detach().double()
            moved = batch.with_inputs(batch.inputs + error.reshape(batch.inputs.shape))
            change = release.mean(moved).detach().double() - before
            length = said.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
            parts.append((change * said).sum(1) / length.square())
            times.append(change.norm(dim=1) / length)
    rows = zip(torch.stack(parts).mean(0).tolist(), torch.stack(times).amin(0).tolist(), claimed, strict=True)
    return [_doubt(part, factor, revealed) for part, factor, revealed in rows]


def _doubt(part: float, factor: float, claimed: float) -> str:
    # Not "below" and "above": what isn't a number says nothing good.
    if not factor <= LIKELY_FACTOR:
        what = f"the upload moves by {factor:.3g} times what its derivative says: it tells more than that shows"
    elif claimed > NEGLIGIBLE_HIDDEN and not part >= LEAST_PART:
        what = f"no more than {max(0.0, part):.0%} of what its derivative says happens: it tells less than that shows"
    else:
        return ""
    return (
        f"over the error that would be left {what}, since Adam's steps are nearly the signs of the gradient; nothing "
        "read off the derivative can be believed at this noise; train with SGD (optimizer=sgd)"
    )
