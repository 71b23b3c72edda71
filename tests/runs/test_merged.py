"""What is merged from shards is what one audit says, to the last bit, whoever worked."""

from __future__ import annotations

import json

import pytest
from run_cases import LIMIT, audited, create, leave_lease, numbers, work_here

import riskaudit
from riskaudit.audit.shards import AuditShard
from riskaudit.errors import RunError, SamplesError
from riskaudit.policy import Policy
from riskaudit.runs.encoding import decode, encode
from riskaudit.runs.folder import RunFolder

OPTIONS = {
    "dense": {},
    "brackets": {"solver": "lanczos", "max_matvecs": 12},
    "data prior": {"prior": "data", "solver": "lanczos", "max_matvecs": 4, "limit": 21, "proxies": ("map_rmse",)},
    "dense class prior": {"prior": "class", "limit": 21},
    "undefended": {"release": "gradient", "proxies": ("gradient_norm", "i2f")},
    "uploads": {"release": "mean:2,gaussian:0.01"},
    "brackets of uploads": {
        "release": "mean:2,gaussian:0.01",
        "solver": "lanczos",
        "max_matvecs": 8,
        "attacker": "outsider",
    },
    "no checks": {"checks": False},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.slow) if each == "brackets of uploads" else each for each in OPTIONS]
)
def test_equal_to_one_audit(tmp_path, name) -> None:
    options = OPTIONS[name]
    shard = options.get("limit", LIMIT) // 3
    run = create(tmp_path / "run", shard=shard, **options)
    work_here(tmp_path / "run")
    (merged,), whole = run.merge(), audited(batch_size=shard, **options)
    assert numbers(merged) == numbers(whole)
    assert merged.created_at == run.manifest.created_at
    assert (merged.cost.seconds, merged.cost.peak_memory_bytes) == (None, None)
    assert merged.cost.matvecs == whole.cost.matvecs


def test_rows_through_json_are_the_same(tmp_path) -> None:
    create(tmp_path / "run", **OPTIONS["brackets of uploads"])
    work_here(tmp_path / "run", 1)
    folder = RunFolder.open(tmp_path / "run")
    _, document = folder.store.read(folder.unit(1))
    again = encode(*decode(document))
    assert json.dumps(again) == json.dumps(document)
    assert {each["class"] for each in document["objects"]} > {"BlockTraces", "BlockProbe", "Tridiagonal"}


@pytest.mark.slow
def test_the_order_of_work_doesn_t_matter(tmp_path) -> None:
    run = create(tmp_path / "run")
    for shard in (2, 0, 1):
        work_here(tmp_path / "run", shard)
    first = run.merge()[0].to_json()
    for path in (tmp_path / "run" / "shards").iterdir():
        path.unlink()
    # A worker that died at one of them, and one that gave one back.
    leave_lease(tmp_path / "run", 1, 1, ended="died")
    leave_lease(tmp_path / "run", 2, 1, ended="released")
    work_here(tmp_path / "run")
    assert run.merge()[0].to_json() == first
    assert list((tmp_path / "run" / "leases").iterdir()) == []


def test_several_checkpoints(tmp_path) -> None:
    from scan_cases import CHECKPOINT, DATA

    other = tmp_path / "other.safetensors"
    other.write_bytes(CHECKPOINT.read_bytes())
    run = riskaudit.Run.create(tmp_path / "run", [CHECKPOINT, other], DATA, limit=2, shard=2, release="gaussian:0.01")
    work_here(tmp_path / "run")
    first, second = run.merge()
    assert [first.checkpoint.name, second.checkpoint.name] == ["digits-lenet.safetensors", "other.safetensors"]
    assert first.samples == second.samples


def test_a_shard_holds_whole_uploads_and_whole_batches(tmp_path) -> None:
    run = create(tmp_path / "uploads", release="mean:3,gaussian:0.01", shard=2)
    assert [unit.size for unit in run.manifest.units] == [3, 3]
    run = create(tmp_path / "batches", batch_size=2, shard=5)
    assert [unit.size for unit in run.manifest.units] == [4, 2]


def fail(monkeypatch, position: int) -> None:
    """Let the audit of a sample fail, whatever batch it is in."""
    run = AuditShard.run

    def failing(shard, client):
        if position in shard.indices:
            raise RuntimeError("private 0.123")
        return run(shard, client)

    monkeypatch.setattr(AuditShard, "run", failing)


def test_a_sample_that_fails_twice_is_a_row_with_a_reason(tmp_path, monkeypatch) -> None:
    run, whole = create(tmp_path / "run"), audited()
    fail(monkeypatch, 3)
    work_here(tmp_path / "run")
    (merged,) = run.merge()
    assert [row.status for row in merged.samples].count("failed") == 1
    row = merged.samples[3]
    assert (row.status, row.verdict) == ("failed", "not_assessed")
    assert "RuntimeError" in row.reason
    assert "0.123" not in merged.to_json()
    assert any("but for rounding" in warning for warning in merged.warnings)
    assert [shard.batch for shard in run.status().shards] == [2, 1, 2]
    assert [shard.failed for shard in run.status().shards] == [0, 1, 0]
    assert run.status().failed_samples == 1
    for position in set(range(LIMIT)) - {3}:
        ours, theirs = merged.samples[position].proxies, whole.samples[position].proxies
        for proxy, estimate in theirs.items():
            assert ours[proxy].value == pytest.approx(estimate.value, rel=1e-9)


def test_a_sample_that_ends_its_process_twice_is_a_row_with_a_reason(tmp_path) -> None:
    run = create(tmp_path / "run")
    leave_lease(tmp_path / "run", 0, 1, ended="died")
    leave_lease(tmp_path / "run", 0, 2, ended="died")
    leave_lease(tmp_path / "run", 0, 3, ended="died", upload=1)
    leave_lease(tmp_path / "run", 0, 4, ended="died", upload=1)
    work_here(tmp_path / "run")
    (merged,) = run.merge()
    assert [row.status == "failed" for row in merged.samples] == [False, True, False, False, False, False]
    failed = [finding for finding in merged.checks if finding.status == "failed"]
    assert failed
    assert all(finding.sample_ids in ([], ["1"]) for finding in failed)


def test_out_of_memory_halves_the_batch(tmp_path, monkeypatch) -> None:
    run = create(tmp_path / "run", shard=4)
    plain = AuditShard.run

    def small(shard, client):
        if shard.size > 1:
            from riskaudit.errors import SettingsError

            raise SettingsError("out of memory") from MemoryError()
        return plain(shard, client)

    monkeypatch.setattr(AuditShard, "run", small)
    work_here(tmp_path / "run")
    assert [shard.batch for shard in run.status().shards] == [1, 1]
    (merged,) = run.merge()
    assert {row.status for row in merged.samples} == {"exact"}


def test_nothing_at_all_is_refused(tmp_path, monkeypatch) -> None:
    run = create(tmp_path / "run", limit=1)
    fail(monkeypatch, 0)
    work_here(tmp_path / "run")
    with pytest.raises(SamplesError):
        run.merge()


def test_a_part_counts_the_rest_as_not_assessed(tmp_path) -> None:
    run = create(tmp_path / "run")
    work_here(tmp_path / "run", 1)
    with pytest.raises(RunError, match=r"2 of 3 shards with 4 samples"):
        run.merge()
    (part,) = run.merge(partial=True)
    assert [row.verdict == "not_assessed" for row in part.samples] == [True, True, False, False, True, True]
    assert part.data.num_unaudited == 4
    assert part.noise_needed == []
    assert part.noise_curve == []
    whole = audited()
    assert part.samples[2:4] == whole.samples[2:4]
    # However much a policy lets go without a number, what nobody looked at isn't allowed.
    lenient = Policy(max_revealed=1.0, max_unassessed=1.0)
    assert lenient.decide(whole).decision == "allow"
    assert lenient.decide(part).decision == "block"
    forbids = Policy(forbid_checks=("labels",), max_unassessed=1.0)
    assert forbids.decide(part).decision == "block"
    assert riskaudit.AuditResult.from_json(part.to_json()) == part
