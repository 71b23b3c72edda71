"""Rows of a table go through a shard's file to the last bit, and what its columns tell at any noise with them."""

from __future__ import annotations

import json
from pathlib import Path

from table_cases import network, samples_of

from riskaudit.audit import AuditSettings
from riskaudit.audit.client import make_client
from riskaudit.audit.shards import audit_shards, plan_audit
from riskaudit.runs.encoding import decode, encode


def test_a_shard_of_a_table_comes_back(tmp_path: Path) -> None:
    client = make_client(network(14), samples_of(tmp_path, 3), AuditSettings(release="gaussian:0.1"))
    (shard,) = audit_shards(client, plan_audit(client, None, 1, show_samples=False))
    rows = shard.run(client)
    again, _ = decode(json.loads(json.dumps(encode(rows, []))))
    assert again.rows == rows.rows
    for own, other in zip(rows.information, again.information, strict=True):
        for sigma in (1e-3, 0.3, 20.0):
            assert own.revealed(sigma) == other.revealed(sigma)
            assert own.error(sigma) == other.error(sigma)
        assert own.noise_for(0.3) == other.noise_for(0.3)
