"""Releases of uploads that mean nothing, or not for these samples: exit code 2, one sentence, nothing written."""

from __future__ import annotations

import re

import pytest
import torch
from scan_cases import CHECKPOINT, DATA

NETWORK = """
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.Flatten(), nn.BatchNorm1d(18), nn.Tanh(), nn.Linear(18, 10))
"""
LOCAL = "local:epochs=1:batch=2:lr=0.1"


@pytest.fixture
def refusal(command):
    """The sentence that a scan of some samples is refused with."""

    def scan(release, *options, limit=4, checkpoint=CHECKPOINT):
        where = ("--data", str(DATA), "--limit", str(limit), "--out", "out", "--quiet")
        done = command("scan", str(checkpoint), *where, "--release", release, *options)
        assert done.code == 2, done.err
        assert done.out == ""
        assert done.err.count("\n") == 1
        assert done.err.startswith("riskaudit: ")
        assert not done.folder.exists()
        return done.err

    return scan


@pytest.mark.parametrize(
    ("release", "words"),
    [
        ("mean:3", "uploads of 3 divide, found 4"),
        ("mean:8", "expected 8 samples at least, .* found 4"),
        ("mean:0", "whole number above 0"),
        ("mean:2,secagg:3", "expected 6 samples at least, .* found 4"),
        (f"{LOCAL},secagg:3", "uploads of 3 divide, found 4"),
        ("mean:2,secagg:1", "two clients at least"),
        (f"{LOCAL}:momentum=1", "0 <= M < 1, found '1'"),
        ("local:epochs=1:batch=2:lr=0", "lr with a number above 0, found '0'"),
        ("local:epochs=1:batch=2:lr=inf", "lr with a number above 0, found 'inf'"),
        ("local:epochs=1:batch=2", "found no lr"),
        ("local:epochs=0:batch=2:lr=0.1", "epochs with a whole number above 0"),
        ("local:epochs=1:batch=0:lr=0.1", "batch with a whole number above 0, or all"),
        (f"{LOCAL}:optimizer=rmsprop", "sgd or adam, found 'rmsprop'"),
        (f"{LOCAL}:optimizer=adam:momentum=0.9", "momentum with optimizer=sgd only"),
        (f"{LOCAL}:nesterov=1", "key of epochs, batch, lr, .*found 'nesterov=1'"),
        ("mean:2,share:head.*", "found 'head.*' in 'share:head.*'"),
        ("share:head.*", "found 'head.*' in 'share:head.*'"),
        ("dropout:0.5", "put it after mean:N or local training"),
        (f"clip:1,{LOCAL}", "put it first"),
        (f"{LOCAL},mean:2", "leave the mean out"),
        ("gaussian:0.1,mean:2", "put it before the noise"),
        ("local:epochs=1:batch=2:lr=1e200", "lr=1e\\+200 .* lower lr"),
    ],
)
def test_what_a_description_or_the_samples_rule_out(refusal, release, words):
    assert re.search(words, refusal(release))


@pytest.mark.parametrize(
    ("release", "limit"), [("mean:1", 4), ("mean:all", 1), (LOCAL, 1), ("local:epochs=1:batch=3:lr=0.1", 4)]
)
def test_statistics_of_one_value(refusal, tmp_path, release, limit):
    (tmp_path / "network.py").write_text(NETWORK)
    scope = {}
    exec(NETWORK, scope)
    torch.save(scope["make"]().state_dict(), tmp_path / "network.pt")
    options = ("--arch", f"{tmp_path / 'network.py'}:make")
    sentence = refusal(release, *options, limit=limit, checkpoint=tmp_path / "network.pt")
    assert "found one in a batch of 1 sample" in sentence
    assert "--batch-norm running" in sentence


@pytest.mark.parametrize(
    ("release", "options", "words"),
    [
        ("mean:2", ("--batch-norm", "batch"), "leave --batch-norm out"),
        ("mean:2", ("--batch-norm", "train"), "one of running, batch, found 'train'"),
        ("mean:2", ("--attacker", "me"), "one of informed, outsider, found 'me'"),
        ("gradient", ("--attacker", "outsider"), "leave --attacker out"),
    ],
)
def test_options_that_do_not_fit(refusal, release, options, words):
    assert words in refusal(release, *options)
