"""Audits over several draws of a bottleneck's noise: of every number the riskiest stands, beside how much draws differ.

In training the noise of a variational bottleneck (PRECODE) is drawn anew in every pass, so that what an upload gives
away is itself random. Given a draw it is a function of the inputs, and every number is conditional on the draw. Which
one a client will make isn't known: nothing milder than the riskiest of those that were looked at is claimed, which may
still be milder than some other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from riskaudit.audit.rows import AuditContext, BatchRows
from riskaudit.audit.worse import with_verdict, worse_row
from riskaudit.copying import copy_model
from riskaudit.inputs.architectures.precode import gaussian_draws
from riskaudit.release import Release, make_release
from riskaudit.results import DrawSpread, SampleRow


def other_draws(release: Release) -> Sequence[int]:
    """The further draws that a model names; none without a bottleneck, or with one draw."""
    return next((layer.others for layer in gaussian_draws(release.model)), ())


def at_other_draws(release: Release) -> list[Release]:
    """The same release at each of `other_draws`."""
    releases = []
    for number in other_draws(release):
        model = copy_model(release.model)
        for layer in gaussian_draws(model):
            layer.redraw(number)
        releases.append(make_release(model, release.loss, release.spec))
    return releases


def over_draws(context: AuditContext, draws: Sequence[BatchRows]) -> BatchRows:
    """Rows of the same samples at several draws, as one: of every number the riskiest.

    Args:
        context: of the audit.
        draws: the rows at every draw, in one order.
    """
    first = draws[0]
    rows, known = list(first.rows), first.information_by_row
    for other in draws[1:]:
        for place, (row, information) in enumerate(zip(other.rows, other.information_by_row, strict=True)):
            if row.status == "failed" or rows[place].status == "failed":
                rows[place], known[place] = (row if row.status == "failed" else rows[place]), None
                continue
            rows[place], changed = worse_row(context, rows[place], row)
            if context.headline in changed:
                known[place] = information
    return replace(
        first,
        rows=[_with_spread(context, row, [each.rows[place] for each in draws]) for place, row in enumerate(rows)],
        information=[each for each in known if each is not None],
        matvecs=sum(each.matvecs for each in draws),
    )


def _with_spread(context: AuditContext, row: SampleRow, draws: Sequence[SampleRow]) -> SampleRow:
    """A row with the least, mean and largest value of every proxy over draws, where all of them are known.

    What isn't assessed at some draw isn't assessed.
    """
    if row.status == "failed":
        return row
    spread, proxies = dict[str, DrawSpread](), dict(row.proxies)
    for name, riskiest in row.proxies.items():
        estimates = [each.proxies[name] for each in draws]
        values = [estimate.value for estimate in estimates if estimate.value is not None]
        if len(values) == len(draws):
            spread[name] = DrawSpread(low=min(values), mean=sum(values) / len(values), high=max(values))
        proxies[name] = next((estimate for estimate in estimates if not estimate.assessed), riskiest)
    return with_verdict(context, row.model_copy(update={"proxies": proxies, "over_draws": spread}))
