"""On the first page: the two numbers on a scale from a guess to an exact copy, and what such errors look like.

The examples are public images of MNIST. The attacker is the best one against white noise: what leaves tells every
pixel equally well, the prior is N(m, t^2) per pixel, and the estimate is the posterior's mean,

    xhat = m + w (x - m + s z),   w = 1 - r^2 / t^2,   s^2 = t^2 (1 - w) / w,   z ~ N(0, 1),

whose mean squared error over prior and noise is r^2. At r = t it is the prior's mean, at r = 0 the image.
"""

from __future__ import annotations

import io
from importlib.resources import files
from operator import itemgetter
from statistics import median

import numpy as np
from numpy.typing import NDArray

from riskaudit.document import tables
from riskaudit.document.blocks import Block, Figure, Gallery, Paragraph, Picture, Table
from riskaudit.document.plots import Reference, ScalePlot
from riskaudit.formatting import count, given, number, percent
from riskaudit.report.sections.leaks import figure_caption, sample_dots
from riskaudit.results.facts import Facts

# Mean and standard deviation of MNIST's pixels, black 0 and white 1.
DIGITS_MEAN, DIGITS_STD = 0.1307, 0.3081
_SEED = 0
# An error that readers can compare others with.
_COMPARED = 0.1


def scale_blocks(facts: Facts) -> list[Block]:
    """The scale and what its numbers mean, where errors are known."""
    guess = facts.result.prior.std
    return [_figure(facts, guess), _in_words(facts)] if facts.num_known(facts.error) and guess > 0 else []


def _in_words(facts: Facts) -> Paragraph:
    levels, unit = facts.result.settings.thresholds, "pixel" if _is_image(facts) else "input coordinate"
    return Paragraph(
        "The posterior error is how far the attacker's best reconstruction is off on average, per "
        f"{unit}: 0 is an exact copy. A guess from the prior is what the attacker has before anything is sent. The "
        "revealed fraction is the share of that guess's squared error that is gone: 0 nothing, 1 all; high is above "
        f"{given(levels.high)}, medium from {given(levels.medium)} on. Section 8 explains every term.",
        lead="In words.",
    )


def _is_image(facts: Facts) -> bool:
    data = facts.result.data
    return len(data.input_shape) == 3 and data.text is None and data.encoding is None


def _figure(facts: Facts, guess: float) -> Figure:
    def share(value: float) -> str:
        return percent(value / guess)

    exact = "pixel-exact" if _is_image(facts) else "exact"
    num_known = facts.num_known(facts.error)
    worst, middle = (facts.words(facts.error, statistic, share) for statistic in (min, median))
    start = "" if facts.result.release.defended else "At the reference noise, which the client doesn't add: "
    what = "the most exposed sample is" if num_known > 1 else "the sample is"
    title = f"{start}{what} left with {worst} of the error of a guess from the prior"
    title += f", the median one with {middle}" if num_known > 1 else ""
    return Figure(
        id="scale",
        title=title[0].upper() + title[1:],
        alt=(
            f"Scale of the posterior error from a guess from the prior, {number(guess)}, at the left to {exact}, 0, at "
            f"the right, with a dot for each of {count(num_known, 'sample')}, from {facts.words(facts.error, max)} to "
            f"{facts.words(facts.error, min)}."
        ),
        plot=ScalePlot(
            "posterior error (RMSE per coordinate, data units)",
            sample_dots(facts, facts.error, "rising"),
            Reference(guess, f"guess from the prior: {number(guess)}"),
            Reference(0.0, f"{exact}: 0"),
        ),
        table=_numbers(facts, guess, exact),
        caption=figure_caption(facts, facts.error),
    )


def _numbers(facts: Facts, guess: float, exact: str) -> Table:
    pairs = [(facts.error, max, min, number(guess), "0")]
    if facts.num_known(facts.headline):
        pairs.append((facts.headline, min, max, "0", "1"))
    titles = ("Number", "A guess from the prior", "Least exposed", "Median", "Most exposed", exact.capitalize())
    columns: tables.Columns[tuple[str, ...]] = [
        tables.text(title, itemgetter(place)) for place, title in enumerate(titles)
    ]
    rows = [
        (
            facts.title(proxy),
            none,
            facts.words(proxy, least),
            facts.words(proxy, median),
            facts.words(proxy, most),
            all_of_it,
        )
        for proxy, least, most, none, all_of_it in pairs
    ]
    return tables.table("scale", "The two numbers behind the verdict", rows, columns)


def example_blocks(facts: Facts) -> list[Block]:
    """What the audit's errors look like on public digits, where private images are shown."""
    low, high = facts.result.data.input_range
    shown = any(row.image_png is not None for row in facts.result.samples)
    if not shown or not facts.num_known(facts.error) or not _is_image(facts) or low < 0 or high > 1:
        return []
    errors = [("the image itself", 0.0)]
    ends = facts.cautious(facts.error)
    errors += [("most exposed", min(ends)), ("median", median(ends)), ("to compare with", _COMPARED)]
    digits = _digits()
    items = [
        Picture(f"RMSE {number(error)}" if error else "original", _png(estimate(digit, error)), words, alt=(
            f"Public MNIST digit, {'unchanged' if not error else f'estimated with an RMSE of {number(error)}'}"
        ))
        for digit in digits
        for words, error in errors
    ]  # fmt: skip
    return [
        Gallery(
            tuple(items),
            caption=(
                "Such errors on public digits of MNIST, no part of this audit, as if what leaves told every pixel "
                f"equally well. Real errors are spread otherwise; from {DIGITS_STD} on the digits' mean is left."
            ),
        )
    ]


def _digits() -> NDArray[np.float64]:
    from PIL import Image

    raw = (files("riskaudit.report.sections") / "mnist-digits.png").read_bytes()
    with Image.open(io.BytesIO(raw), formats=("PNG",)) as picture:
        both = np.asarray(picture, dtype=np.float64) / 255
    return np.stack(np.split(both, 2, axis=1))


def estimate(digit: NDArray[np.float64], rmse: float) -> NDArray[np.float64]:
    """The best attacker's estimate of a digit at an error, as the module says.

    Args:
        digit: [28, 28], in [0, 1].
        rmse: root of the mean squared error per pixel that it has on average, at least 0.

    Returns:
        [28, 28], not clipped.
    """
    weight = 1 - min(rmse / DIGITS_STD, 1.0) ** 2
    if weight == 0:
        return np.full_like(digit, DIGITS_MEAN)
    noise = np.random.default_rng(_SEED).standard_normal(digit.shape)
    spread = DIGITS_STD * np.sqrt((1 - weight) / weight)
    drawn: NDArray[np.float64] = DIGITS_MEAN + weight * (digit - DIGITS_MEAN + spread * noise)
    return drawn


def _png(pixels: NDArray[np.float64]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray((255 * pixels.clip(0, 1)).round().astype(np.uint8)).save(stream, format="PNG")
    return stream.getvalue()
