"""Audits, inspections and attestations are rendered in the formats that are asked for, each once."""

from __future__ import annotations

import cases
import pytest
import received_cases
from attestation_cases import DECLARED, clean_update, noisy

import riskaudit
from riskaudit.errors import SettingsError
from riskaudit.inputs import Samples
from riskaudit.report.attestation import render_attestation
from riskaudit.report.inspection import render_inspection


@pytest.fixture(scope="module")
def inspection():
    batch = cases.digits(4)
    samples = Samples(batch.inputs, batch.targets, ("a", "b", "c", "d"))
    return riskaudit.inspect_received(received_cases.mlp(), samples)


@pytest.fixture(scope="module")
def attestation():
    return riskaudit.attest(noisy(clean_update()), DECLARED)


def test_in_the_order_asked_for_and_each_once(inspection, attestation) -> None:
    names = list(render_inspection(inspection, ["sarif", "html", "sarif"]))
    assert names == ["inspection.sarif", "inspection.html"]
    files = render_attestation(attestation, ["sarif", "json"])
    assert list(files) == ["attestation.sarif", "attestation.json"]
    assert files["attestation.json"].decode() == attestation.to_json()


def test_unknown_formats_name_the_known(inspection, attestation) -> None:
    with pytest.raises(SettingsError, match="expected a report format out of html, json, sarif, found 'pdf'"):
        render_inspection(inspection, ["json", "pdf"])
    with pytest.raises(SettingsError, match="expected a report format out of json, sarif, found 'html'"):
        render_attestation(attestation, ["html"])
