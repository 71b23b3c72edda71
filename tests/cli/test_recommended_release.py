"""Section 5 recommends a release: the command that it prints runs as it is, and what it audits is within the limit."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest
from scan_cases import CHECKPOINT, DATA

LIMITS = {
    "revealed fraction": (["--max-revealed", "0.2"], "revealed_fraction", lambda value: value <= 0.2),
    "posterior error": (["--min-rmse", "0.3"], "posterior_rmse", lambda value: value >= 0.3),
    "verdict": ([], "revealed_fraction", lambda value: value <= 0.5),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("limits", "proxy", "within"), LIMITS.values(), ids=list(LIMITS))
def test_the_recommended_command_meets_the_limit(scan, command, tmp_path, limits, proxy, within) -> None:
    work = tmp_path / "work"
    for source in (CHECKPOINT, DATA):
        shutil.copy(source, work)
    options = ["--release", "clip:0.5,gaussian:0.0001", "--mean", "0.3", "--std", "0.4", "--limit", "10", *limits]
    first = command("scan", CHECKPOINT.name, "--data", DATA.name, *options, "--out", "out", "--format", "md")
    assert first.code == (1 if limits else 0), first.err
    text = (first.folder / "audit.md").read_text(encoding="utf-8")
    recommended = shlex.split(re.search(r"```\n(riskaudit scan .*)\n```", text)[1])
    assert recommended[0] == "riskaudit"
    # The one number on the terminal is that of the report.
    assert re.findall(r"recommended: gaussian noise of (\S+) per", first.out) == [recommended[-1].split(":")[-1]]
    assert {"--mean", "--std", "--limit", *limits} <= set(recommended)
    again = command(*recommended[1:], "--out", "out", "--format", "json", "--format", "md")
    assert again.code == 0, again.err
    assert again.result.release.spec.startswith("gradient,clip:0.5,gaussian:")
    values = again.values(proxy)
    assert all(within(value) for value in values)
    # Rounded up, not doubled: the neediest sample is near the limit.
    assert not all(within(value * (0.9 if proxy == "posterior_rmse" else 1.1)) for value in values)
