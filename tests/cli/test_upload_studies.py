"""Studies of uploads of several samples: each goes by the attacker by whom verdicts go, or says that it can't."""

from __future__ import annotations

import json

import pytest
from scan_cases import DATA, save_mlp

RELEASES = ("mean:2,gaussian:0.05", "local:epochs=2:batch=2:lr=0.1,gaussian:0.01")


@pytest.fixture
def study(command, tmp_path):
    model = save_mlp(tmp_path / "small.pt", (64, 6, 10))
    common = (
        "--data",
        str(DATA),
        "--arch",
        "mlp",
        "--limit",
        "4",
        "--format",
        "json",
        "--format",
        "md",
        "--out",
        "out",
    )

    def run(name, release, *arguments):
        return command("study", name, str(model), *common, "--release", release, *arguments)

    return run


def records_of(done):
    """The study's record, and the rows of the audit beside it by id."""
    assert done.code == 0, done.err
    document = json.loads((done.folder / "audit.json").read_text())
    (record,) = document["studies"].values()
    return record, {row["id"]: row["proxies"] for row in document["samples"]}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("attacker", ["informed", "outsider"])
def test_training_goes_by_the_attacker(study, release, attacker):
    record, rows = records_of(study("training", release, "--attacker", attacker))
    prefix = "informed_" if attacker == "informed" else ""
    for name in ("posterior_rmse", "revealed_fraction"):
        values = {row["sample_id"]: row[name]["value"] for row in record["rows"][-1]["samples"]}
        assert values == pytest.approx({key: each[prefix + name]["value"] for key, each in rows.items()}), name


@pytest.mark.parametrize("release", RELEASES)
def test_fairness_goes_by_the_attacker(study, release):
    record, rows = records_of(study("fairness", release))
    measured = {each["measure"]: each for each in record["distributions"]}
    values = [each["informed_revealed_fraction"]["value"] for each in rows.values()]
    assert measured["informed_revealed_fraction"]["worst"] == pytest.approx(max(values))


@pytest.mark.slow
@pytest.mark.parametrize("release", [RELEASES[0], pytest.param(RELEASES[1], marks=pytest.mark.slow)])
def test_initializations_are_ranked_by_the_attacker(study, release):
    record, rows = records_of(study("initialization", release, "--seeds", "1"))
    checkpoint = next(row for row in record["rows"] if row["initialization"] == "checkpoint")
    values = sorted(each["informed_posterior_rmse"]["value"] for each in rows.values())
    assert checkpoint["posterior_rmse"]["median"] == pytest.approx((values[1] + values[2]) / 2)


@pytest.mark.parametrize("release", RELEASES)
def test_directions_refuse_before_anything_is_audited(study, release):
    done = study("directions", release)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "--release" in done.err
    assert not done.folder.exists()
