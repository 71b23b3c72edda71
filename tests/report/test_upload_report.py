"""Reports of uploads of several samples: whose numbers decide, what the crowd protects, what a scheme sends."""

from __future__ import annotations

import csv
import io
import tomllib
from statistics import median

import pytest
from report_cases import PRIOR_STD, build
from report_reading import Report, words
from upload_cases import CROWD, SIZE, revealed_pair, uploads

from riskaudit.document.blocks import Callout, DefinitionList, Snippet
from riskaudit.document.figures import to_svg
from riskaudit.document.plots import Pair, PairPlot
from riskaudit.policy import Policy
from riskaudit.report import render
from riskaudit.report.sections.protect import Recommendation
from riskaudit.results.facts import Facts

SPECS = {
    "FedSGD": "gradient,mean:4,gaussian:0.01",
    "FedAvg": "local:epochs=2:batch=2:lr=0.1:momentum=0.9,gaussian:0.01",
    "Secure aggregation": "gradient,mean:2,secagg:2,gaussian:0.01",
    "Shared part": "gradient,mean:4,share:fc.*,gaussian:0.01",
    "ATS": "ats:7-4-15:0,gradient,mean:4,gaussian:0.01",
    "Soteria": "gradient,soteria:80.0:fc,mean:4,gaussian:0.01",
    "Dropout of entries": "gradient,mean:4,dropout:0.5,gaussian:0.01",
}


@pytest.fixture(scope="module")
def informed():
    return uploads()


@pytest.fixture(scope="module")
def outsider():
    return uploads(attacker="outsider")


def report_of(result, baseline=None):
    return Report.of(result, baseline)


def cells(table, title):
    """A column's cells by the text of their row's first cell."""
    place = [column.title for column in table.columns].index(title)
    return {row[0].text: row[place] for row in table.rows}


def cards(report):
    return dict(pair for block in report.blocks(DefinitionList, "threat-model") for pair in block.items)


# Whose numbers decide


@pytest.mark.parametrize("attacker", ["informed", "outsider"])
def test_every_section_goes_by_the_attacker(attacker):
    result = uploads(attacker=attacker)
    facts, report = Facts(result), report_of(result)
    headline = "informed_revealed_fraction" if attacker == "informed" else "revealed_fraction"
    values = {row.id: row.proxies[headline].value for row in result.samples}
    assert (facts.headline, facts.ranking_proxy) == (headline, headline)
    assert [row.id for row in facts.ranked] == sorted(values, key=lambda each: -values[each])
    drawn = report.figures["revealed"].plot.dots
    assert sorted(dot.value for dot in drawn) == sorted(values.values())
    errors = [PRIOR_STD * (1 - value) ** 0.5 for value in values.values()]
    assert sorted(dot.value for dot in report.figures["rmse"].plot.dots) == pytest.approx(sorted(errors))
    shown = cells(report.tables["samples"], facts.title(headline))
    assert {name: cell.sort for name, cell in shown.items()} == values
    spans = report.figures["classes"].plot.spans
    assert max(span.maximum for span in spans) == max(values.values())
    protection = cells(report.tables["least-protected"], "Protection: posterior error, lower end")
    assert min(cell.sort for cell in protection.values()) == pytest.approx(min(errors))


def test_per_sample_reports_have_no_second_attacker():
    report = report_of(build(8))
    assert Facts(build(8)).headline == "revealed_fraction"
    assert not {"crowd", "classmates", "ceiling", "attackers", "uploads"} & set(report.tables)
    assert "informed" not in report.text.lower()
    assert "upload" in cells(report.tables["dpia"], "What this audit contributes")["Processing"].text.lower()


def test_the_box_names_both_attackers_and_who_decides(informed, outsider):
    for result, first in ((informed, "informed"), (outsider, "outsider")):
        labels = [label for label, _ in report_of(result).verdict.facts]
        assert next(label for label in labels if label.startswith("Revealed fraction")).endswith(first)
        assert sum(label.startswith(("Revealed fraction", "Posterior error")) for label in labels) == 4
        assert dict(report_of(result).verdict.facts)["Decided by"].startswith(first)


def test_limits_and_verdicts_go_by_the_attacker(informed, outsider):
    values = [row.proxies["informed_revealed_fraction"].value for row in informed.samples]
    limit = max(values) * 0.95
    assert Policy(max_revealed=limit).decide(informed).decision == "block"
    assert Policy(max_revealed=limit).decide(outsider).decision == "allow"
    for result, attacker in ((informed, "informed"), (outsider, "outsider")):
        assert f"the {attacker} attacker" in Policy(max_revealed=limit).decide(result).reasons[-1]
    assert "attacker" not in " ".join(Policy(max_revealed=limit).decide(build(4)).reasons)
    most = {row.id: row.verdict for row in informed.samples}
    least = {row.id: row.verdict for row in outsider.samples}
    order = ("low", "medium", "high")
    assert all(order.index(most[name]) >= order.index(least[name]) for name in most)
    assert most != least


def test_an_audit_without_the_attackers_numbers_is_not_assessed(informed):
    rows = [
        row.model_copy(
            update={"proxies": {name: each for name, each in row.proxies.items() if not name.startswith("informed")}}
        )
        for row in informed.samples
    ]
    result = informed.model_copy(update={"samples": rows})
    report = report_of(result)
    assert report.verdict.title == "Not assessed"
    titles = [block.title for block in report.blocks(Callout, "how-much-leaks")]
    assert any("crowd" in title and "not assessed" in title for title in titles)
    assert Policy(max_revealed=0.99).decide(result).decision == "block"


def test_csv_has_uploads_and_classmates(informed):
    rows = list(csv.DictReader(io.StringIO(render(informed, ("csv",))["samples.csv"].decode())))
    assert [int(row["upload"]) for row in rows] == [row.upload for row in informed.samples]
    assert [int(row["classmates"]) for row in rows] == [row.classmates for row in informed.samples]
    first = informed.samples[0].proxies["informed_revealed_fraction"].value
    assert float(rows[0]["informed_revealed_fraction_value"]) == first
    plain = render(build(2), ("csv",))["samples.csv"].decode().splitlines()[0].split(",")
    assert not {"upload", "classmates"} & set(plain)


def test_a_baseline_of_single_samples_is_compared_with_the_same_attacker(informed, outsider):
    alone = build(12, 3, spread=0.0)
    for now, before, ids in (
        (informed, alone, ("informed_revealed_fraction", "revealed_fraction")),
        (outsider, informed, ("revealed_fraction", "revealed_fraction")),
        (informed, outsider, ("informed_revealed_fraction", "informed_revealed_fraction")),
        (alone, informed, ("revealed_fraction", "informed_revealed_fraction")),
    ):
        changes = cells(report_of(now, before).tables["changed-samples"], "Change")
        for row, earlier in zip(now.samples, before.samples, strict=True):
            expected = row.proxies[ids[0]].value - earlier.proxies[ids[1]].value
            assert changes[row.id].sort == pytest.approx(expected, abs=1e-12)


# What the crowd protects


def test_informed_beside_outsider_for_each_sample(informed):
    report = report_of(informed)
    table = report.tables["crowd"]
    revealed, others = cells(table, "Revealed, informed"), cells(table, "Revealed, outsider")
    protected, classmates = cells(table, "Protected by the crowd"), cells(table, "Classmates")
    for row in informed.samples:
        value = row.proxies["informed_revealed_fraction"].value
        assert revealed[row.id].sort == value
        assert others[row.id].sort == pytest.approx(value * CROWD[row.classmates])
        assert protected[row.id].sort == pytest.approx(value * (1 - CROWD[row.classmates]))
        assert classmates[row.id].sort == row.classmates
    pairs = report.figures["crowd"].plot.pairs
    assert [pair.values[0] for pair in pairs] == sorted((pair.values[0] for pair in pairs), reverse=True)
    assert all(pair.values[0] > pair.values[1] for pair in pairs)


def test_means_by_classmates(informed):
    table = report_of(informed).tables["classmates"]
    means = cells(table, "Mean revealed, outsider")
    for number in (0, 1):
        rows = [row for row in informed.samples if row.classmates == number]
        mean = sum(row.proxies["revealed_fraction"].value for row in rows) / len(rows)
        assert means[str(number)].sort == pytest.approx(mean)
    assert {name: cell.text for name, cell in cells(table, "Samples").items()} == {
        str(number): str(sum(row.classmates == number for row in informed.samples)) for number in (0, 1)
    }


def test_targets_without_classes_have_no_classmates(informed):
    rows = [row.model_copy(update={"classmates": None, "target": None}) for row in informed.samples]
    report = report_of(informed.model_copy(update={"samples": rows}))
    assert "classmates" not in report.tables
    assert {cell.tone for cell in cells(report.tables["crowd"], "Classmates").values()} == {"unknown"}


@pytest.mark.parametrize(
    ("entries", "words_of"), [(500, "no sample"), (2000, "not all 4"), (10_000, "protects nobody")]
)
def test_the_ceiling_is_the_released_numbers_or_all_coordinates(entries, words_of):
    result = uploads(release={"num_entries": entries})
    report = report_of(result)
    coordinates = SIZE * 784
    most = cells(report.tables["ceiling"], "Pinned down at most")
    share = cells(report.tables["ceiling"], "Share of them")
    assert most[str(SIZE)].sort == min(entries, coordinates)
    assert share[str(SIZE)].sort == pytest.approx(min(1.0, entries / coordinates))
    assert all(float(cell.sort) <= entries for cell in most.values())
    assert min(cell.sort for cell in share.values()) < 0.5
    text = report.text_of("how-much-leaks")
    assert words_of in text
    sums = [
        784 * sum(row.proxies["revealed_fraction"].value for row in result.samples if row.upload == number)
        for number in range(3)
    ]
    assert max(sums) > 0
    assert f"{min(entries, coordinates, max(sums)):,.0f}" in text


def test_an_unknown_sample_leaves_the_sum_of_its_upload_unsaid():
    result = uploads(SIZE)
    assert "add up to" in report_of(result).text_of("how-much-leaks").split("no more for an outsider")[1]
    failed = result.samples[0].model_copy(
        update={"proxies": result.samples[0].proxies | revealed_pair_unknown(), "status": "not_converged"}
    )
    partial = result.model_copy(update={"samples": [failed, *result.samples[1:]]})
    rest = report_of(partial).text_of("how-much-leaks").split("no more for an outsider")[1]
    assert "add up to" not in rest.split("Order and copies")[0]


def revealed_pair_unknown():
    known = revealed_pair(0.5, 0.4)
    return {name: each.model_copy(update={"value": None, "status": "not_converged"}) for name, each in known.items()}


def test_intervals_are_drawn_and_bound_what_the_crowd_protects():
    result = uploads(spread=0.2)
    report = report_of(result)
    for pair in report.figures["crowd"].plot.pairs:
        assert all(ends is not None and ends[0] < ends[1] for ends in pair.ends)
    protected = cells(report.tables["crowd"], "Protected by the crowd")
    assert all("to" in cell.detail for cell in protected.values())
    # With intervals of a fifth on either side a crowd that takes a tenth away can't be told from none.
    alone = [row.id for row in result.samples if row.classmates == 0]
    assert all(protected[name].detail.startswith("0 to") for name in alone)


def test_medians_of_both_attackers_stand_in_the_finding(informed):
    title = report_of(informed).figures["crowd"].title
    for name in ("informed_revealed_fraction", "revealed_fraction"):
        assert f"{median(row.proxies[name].value for row in informed.samples):.3f}" in title


@pytest.mark.parametrize(("batch_norm", "factor", "told"), [("batch", 4, True), ("batch", 2, False), (None, 4, False)])
def test_a_map_error_far_above_the_posterior_error_is_explained(batch_norm, factor, told):
    base = uploads(release={"batch_norm": batch_norm})
    row = base.samples[5]
    far = row.proxies["posterior_rmse"].model_copy(update={"value": factor * row.proxies["posterior_rmse"].value})
    samples = [
        each.model_copy(
            update={"proxies": each.proxies | {"map_rmse": far if each is row else each.proxies["posterior_rmse"]}}
        )
        for each in base.samples
    ]
    report = report_of(base.model_copy(update={"samples": samples}))
    boxes = [block for block in report.blocks(Callout, "how-much-leaks") if "MAP error" in block.title]
    assert bool(boxes) is told
    if told:
        assert f"Samples {row.id}." in words(boxes)


# What a scheme sends


@pytest.mark.parametrize(("name", "spec"), SPECS.items(), ids=SPECS)
def test_every_scheme_has_its_card(name, spec):
    report = report_of(uploads(spec=spec))
    shown = cards(report)
    assert name in shown
    assert ("FedAvg" in shown) == (name == "FedAvg")
    assert ("FedSGD" in shown) == (name != "FedAvg")
    scope = report.text_of("threat-model")
    assert ("Several local steps between uploads" in scope) == (name != "FedAvg")
    assert ("Settings of the training" in scope) == (name == "FedAvg")


def test_the_card_of_local_training_has_its_numbers():
    card = cards(report_of(uploads(spec=SPECS["FedAvg"])))["FedAvg"]
    for number in ("2 epochs", "mini-batches of 2 out of 4 samples", "4 steps", "0.1", "0.9"):
        assert number in card


def test_secure_aggregation_names_who_stands_in_for_whom():
    report = report_of(uploads(spec=SPECS["Secure aggregation"]))
    table = report.tables["uploads"]
    shown = [[cell.text for cell in row[:4]] for row in table.rows[:2]]
    assert shown == [["0", "0", "2", "0, 1"], ["0", "1", "2", "2, 3"]]
    assert len(table.rows) == 6
    assert "Client" not in [column.title for column in report_of(uploads()).tables["uploads"].columns]


def test_running_statistics_that_are_sent_are_out_of_scope():
    for batch_norm, told in (("batch", True), ("running", False), (None, False)):
        text = report_of(uploads(release={"batch_norm": batch_norm})).text_of("threat-model")
        assert ("Running statistics of batch norm that are sent" in text) is told


def test_a_release_that_cannot_be_read_still_has_a_report():
    report = report_of(uploads(release={"spec": "local:from=another:version"}))
    assert "FedAvg" not in cards(report)
    assert Recommendation(Facts(uploads(release={"spec": "???"}))).release is None


def test_the_recommended_configuration_keeps_attacker_and_batch_norm():
    report = report_of(uploads(attacker="outsider", release={"batch_norm": "batch"}))
    (text,) = [block.code for block in report.blocks(Snippet) if "tool.riskaudit" in block.code]
    table = tomllib.loads(text)["tool"]["riskaudit"]
    assert (table["attacker"], table["batch_norm"]) == ("outsider", "batch")
    assert table["release"].startswith("mean:4,gaussian:")
    assert set(table) == {"release", "seed", "attacker", "batch_norm"}


def test_no_upload_is_called_the_gradient_of_one_sample():
    for spec in SPECS.values():
        text = report_of(uploads(spec=spec)).text.lower()
        assert "one sample's gradient" not in text
        assert "sample's gradient" not in text


@pytest.mark.parametrize("number", [3, 60])
def test_pairs_are_drawn_with_their_bars(number):
    pairs = [Pair(f"s{place}", (0.9, 0.4), ((0.8, 0.95), None)) for place in range(number - 1)]
    pairs.append(Pair("open", (None, 0.2), ((0.5, 0.7), (0.1, 0.3))))
    svg = to_svg(PairPlot("x", "sample", ("informed", "outsider"), tuple(pairs), (), (0.0, 1.0)), "pairs", "screen")
    assert ("s0" in svg) == (number == 3)
    assert "informed" in svg
    assert svg.count("<use") >= 2 * number - 1


def test_every_format_renders(informed):
    files = render(informed, ("html", "md", "csv", "json"))
    assert set(files) == {"audit.html", "audit.md", "samples.csv", "audit.json"}
    assert "What the crowd protects" in files["audit.md"].decode()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_noise_far_above_the_upload_itself_is_not_recommended(optimizer):
    audited = uploads(spec=f"local:epochs=1:batch=2:lr=0.1:optimizer={optimizer},gaussian:0.01")
    norm = max(row.proxies["gradient_norm"].value for row in audited.samples)

    def needing(std):
        rows = [
            row.model_copy(update={"noise_std_for_target": row.noise_std_for_target.model_copy(update={"std": std})})
            for row in audited.samples
        ]
        return Recommendation(Facts(audited.model_copy(update={"samples": rows})))

    assert needing(9 * norm).obstacle is None
    assert needing(9 * norm).release is not None
    assert needing(11 * norm).release is None
    assert "send nothing" in needing(11 * norm).obstacle
    # Whoever is on SGD is not told to change to it.
    assert ("SGD" in needing(11 * norm).obstacle) == (optimizer == "adam")


@pytest.mark.parametrize("audited", ["informed", "outsider"])
def test_a_policy_may_say_by_itself_whose_numbers_count(audited):
    result = uploads(attacker=audited)
    for attacker, headline in (("informed", "informed_revealed_fraction"), ("outsider", "revealed_fraction")):
        limit = max(row.proxies[headline].value for row in result.samples)
        for slack, decided in ((1e-9, "allow"), (-1e-3, "block")):
            outcome = Policy(max_revealed=limit + slack, attacker=attacker).decide(result)
            assert outcome.decision == decided
            assert any(attacker in reason for reason in outcome.reasons)
    limit = max(row.proxies["informed_revealed_fraction"].value for row in result.samples) - 1e-3
    assert Policy(max_revealed=limit).decide(result).decision == ("block" if audited == "informed" else "allow")
