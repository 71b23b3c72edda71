"""Rows for studies: those of an audit, with what they tell at any other noise, off the same spectra."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from study_cases import digits, network

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_client, audit_samples
from riskaudit.audit.client import Client, make_client
from riskaudit.audit.rows import BatchRows
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.results.verdicts import error_of
from riskaudit.sensitivity.information import ExactInformation
from riskaudit.studies.base import errors_at_noise_times, with_noise_times

FACTOR = 7.0


def client_of(release: str, samples: Samples | None = None, **settings: object) -> Client:
    given = AuditSettings(release=release, checks=False, **settings)  # type: ignore[arg-type]
    return make_client(Checkpoint.from_model(network()), digits(4) if samples is None else samples, given)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("release", "attacker"),
    [
        ("gradient", "informed"),
        ("laplace:0.003", "informed"),
        ("mean:2,gaussian:0.003", "informed"),
        ("mean:2,gaussian:0.003", "outsider"),
    ],
)
def test_errors_at_another_noise_are_those_of_an_audit_there(release: str, attacker: str) -> None:
    client = client_of(release, attacker=attacker)
    audited = audit_samples(client)
    assert audited.rows == audit_client(client).samples
    name = error_of(client.settings.attacker if client.is_joint else None)
    expected = [row.proxies[name].value for row in audit_client(with_noise_times(client, FACTOR)).samples]
    found = [None if each is None else each.value for each in audited.posterior_errors(FACTOR)]
    assert found == [pytest.approx(value, rel=1e-9) for value in expected]
    assert all(other > row.proxies[name].value for other, row in zip(found, audited.rows, strict=True))


def test_what_is_too_coarse_at_the_other_noise_is_audited_there() -> None:
    client = client_of("gaussian:1.0", solver="lanczos", max_matvecs=4)
    audited = audit_samples(client)
    exact = [row.proxies["posterior_rmse"].value for row in audit_samples(client_of("gaussian:0.7")).rows]
    near = errors_at_noise_times(client, audited, 0.7)
    for estimate, value in zip(near, exact, strict=True):
        low, high = estimate.ends
        assert low <= value * (1 + 1e-9)
        assert high >= value * (1 - 1e-9)
    exact = audit_samples(client_of("gaussian:0.001"))
    many = client_of("gaussian:1.0", solver="lanczos")
    coarse = audit_samples(many)
    assert any(each.reliable is None for each in coarse.posterior_errors(0.001))
    for estimate, row in zip(errors_at_noise_times(many, coarse, 0.001), exact.rows, strict=True):
        assert estimate.reliable == pytest.approx(row.proxies["posterior_rmse"].value, rel=0.3)


def test_a_failed_sample_tells_nothing_and_shifts_no_other() -> None:
    first, second = audit_samples(client_of("gaussian:0.003", digits(2))).rows
    failed = first.model_copy(update={"status": "failed"})
    told = ExactInformation(np.array([1.0, 2.0]), 0.3)
    assert BatchRows([failed, second], [told]).information_by_row == [None, told]
    assert BatchRows([first, second]).information_by_row == [None, None]


def test_uploads_with_copies_tell_of_the_samples_in_their_order() -> None:
    # The first upload has two inputs, the second one twice the same: they are audited in parts of one shape each.
    samples = digits(4)
    inputs, targets = samples.inputs.clone(), samples.targets.clone()
    inputs[1], targets[1] = inputs[0], targets[0]
    client = client_of("mean:2,gaussian:0.003", replace(samples, inputs=inputs, targets=targets))
    audited = audit_samples(client)
    own = [row.proxies["informed_posterior_rmse"].value for row in audited.rows]
    assert own[0] != pytest.approx(own[2])
    assert [each.value for each in audited.posterior_errors(1.0)] == [pytest.approx(value) for value in own]
