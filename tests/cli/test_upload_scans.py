"""Scans of uploads of several samples, from the command line to the files."""

from __future__ import annotations

import json

import pytest
from scan_cases import save_mlp

RELEASE = ("--arch", "mlp", "--release", "mean:2,gaussian:0.05")


@pytest.fixture
def small(tmp_path):
    return save_mlp(tmp_path / "small.pt", (64, 6, 10))


def test_console_and_limit_go_by_the_attacker(scan, small):
    rows = scan(*RELEASE, checkpoint=small, limit=4).result.samples
    assert [(row.upload, row.classmates) for row in rows] == [(0, 0), (0, 0), (1, 0), (1, 0)]
    headlines = {"informed": "informed_revealed_fraction", "outsider": "revealed_fraction"}
    values = {who: {row.id: row.proxies[name].value for row in rows} for who, name in headlines.items()}
    most = {who: max(known.values()) for who, known in values.items()}
    assert most["outsider"] < most["informed"]
    limit = sum(most.values()) / 2
    for who, code in (("informed", 1), ("outsider", 0)):
        done = scan(*RELEASE, "--attacker", who, "--max-revealed", str(limit), checkpoint=small, limit=4)
        assert done.code == code
        assert done.result.policy.exceeded == [name for name, value in values[who].items() if value > limit]
        worst = max(values[who], key=lambda name: values[who][name])
        assert f"{who} attacker: worst sample {worst}:" in done.out


def test_report_of_an_upload_reads_its_own_file(command, scan, small):
    first = scan(*RELEASE, checkpoint=small, limit=4)
    again = command("report", str(first.folder / "audit.json"), "--out", "again", "--format", "json", "--format", "md")
    assert again.code == 0
    document = json.loads((first.folder.parent / "again" / "audit.json").read_text())
    assert document["samples"] == first.document["samples"]
    assert (document["release"]["coupling"], document["release"]["attacker"]) == ("joint", "informed")
