"""``category-columns``: which categories of a table's columns occur, by what the first layer's gradient has for each.

Of a fully connected layer that sees the input, the rows of dW = D^T X at the inputs of a category are D^T Z C and
db = D^T Z 1, where Z [n, K] says which sample has which of the K codes C [K, width], shifted and scaled as the layer
sees them: so D^T Z [units, K] follows from both by linear algebra, and its column of a category is 0 where no sample
has it. With one-hot codes of 0 and 1 it is the gradient's own column. Of a sample alone one column is left: its
category. Of a batch they are the set of categories that occur. Where no bias leaves, codes have to be independent.

A category is missed where its samples have no signal at any unit; one is made up where rounding or removed entries
leave something: what is found is compared with the truth, and where it isn't, nothing is said to be in the clear. Steps
of Adam aren't sums of gradients, so that only one-hot columns stay 0 under them.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.checks.base import Check, Finding, not_applicable, register
from riskaudit.checks.upload import FullyConnected, SentUpload
from riskaudit.results.checks import Recovery
from riskaudit.tables import CategoryInputs

# Least singular value of what is solved for, relative to the largest.
INDEPENDENT = 1e-9


@register
@final
class CategoryColumns(Check):
    """See the module."""

    id: ClassVar[str] = "category-columns"
    title: ClassVar[str] = "Categories by the columns of a layer's gradient"
    summary: ClassVar[str] = "The server learns a sample's category in a column, or which categories an upload holds."
    remedy: ClassVar[str] = "Noise must be on all of the first layer's weights; or send means of many samples."
    source: ClassVar[str] = "Vero et al. (TabLeak), ICML 2023; exact for one layer, docs/tables.md"
    recovers: ClassVar[Recovery] = "categories"

    @override
    def run(self, upload: SentUpload) -> list[Finding]:
        encoding, count = upload.encoding, len(upload.batch)
        categories = [] if encoding is None else encoding.categories
        if not categories:
            return not_applicable("the inputs are no table whose categories an encoding declares")
        dimension = upload.batch.inputs[0].numel()
        layers = [
            layer
            for layer in upload.fully_connected
            if layer.weight is not None and layer.input_map is not None and layer.inputs.shape == (count, dimension)
        ]
        if not layers:
            return not_applicable("no fully connected layer that sees the input leaves its weight")
        return [_finding(upload, layer, categories) for layer in layers]


def _finding(upload: SentUpload, layer: FullyConnected, categories: list[CategoryInputs]) -> Finding:
    if upload.noise_std > 0:
        reason = "the noise fills every column; what is still recognised is said column by column"
        return Finding("clear", layer.name, exactness="predicted", reason=reason)
    found, false, hidden = dict[str, float](), 0, 0
    for category in categories:
        codes = torch.as_tensor(category.codes).to(layer.inputs)
        truth = {int((codes - own).abs().amax(1).argmin()) for own in upload.batch.inputs.flatten(1)[:, category.span]}
        present = _present(upload, layer, category, codes)
        if present is None:
            hidden += 1
        elif present != truth:
            false += 1
        elif len(truth) < len(codes):
            found[category.name] = float(len(truth))
    details = {"columns": len(categories), "false_columns": false, "not_determined": hidden}
    if not found:
        reason = "every category occurs, or what the columns hold isn't the categories that are there"
        return Finding("clear", layer.name, details=details, reason=reason)
    positions = range(len(upload.batch))
    return Finding("leak", layer.name, positions, clear_from_std=0.0, details={**details, "categories": found})


def _present(upload: SentUpload, layer: FullyConnected, category: CategoryInputs, codes: Tensor) -> set[int] | None:
    """Categories for which something is left; None where the gradient doesn't determine them."""
    assert layer.weight is not None
    assert layer.input_map is not None
    span = category.span
    seen = codes * layer.input_map.scale[span] + layer.input_map.shift[span]
    entries = layer.weight[:, span]
    if layer.bias is not None:
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
        entries = torch.cat([entries, layer.bias[:, None]], dim=1)
    values = torch.linalg.svdvals(seen)
    if len(values) < len(seen) or float(values[-1]) <= INDEPENDENT * float(values[0]):
        return None
    # entries = sums seen
    sums = entries @ torch.linalg.pinv(seen)
    sizes = sums.abs().amax(0)
    largest = max(float(layer.weight.abs().max()), float(sizes.max()))
    return set(torch.nonzero(sizes > upload.negligible * largest).flatten().tolist())
