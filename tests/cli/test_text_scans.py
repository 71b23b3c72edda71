"""Scans of Hugging Face folders: what they print and write, without a word of the texts, and what they refuse."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import text_cases
from scan_cases import loaded_modules, words

from riskaudit.policy import Policy
from riskaudit.results import AuditResult
from riskaudit.studies.verify.record import VerifyStudy

# Words of the texts that no report has of itself.
WORDS = ("fever", "patient", "lunch", "wound", "infection")


@lru_cache
def texts() -> Path:
    return text_cases.write_texts(Path(mkdtemp(prefix="riskaudit-texts-")) / "texts.csv")


def scan_folder(command, *options: str, kind: str = "bert", formats=("json",), limit: int | None = 2, **folder):
    return command(
        *words(*options, checkpoint=text_cases.saved(kind, **folder), data=texts(), formats=formats, limit=limit)
    )


def test_a_scan_shows_positions_and_no_words(command) -> None:
    outcome = scan_folder(command, "--release", "gaussian:0.1", formats=("json", "html", "md", "csv"))
    assert outcome.code == 0
    result = outcome.result
    assert (result.prior.kind, result.data.text.untried) == ("vocabulary", 0)
    for row, sentence in zip(result.samples, text_cases.SENTENCES, strict=False):
        count = len(sentence.split()) + 2
        assert [each.position for each in row.positions] == list(range(count))
        assert [each.special for each in row.positions] == [True, *[False] * (count - 2), True]
        own = [each.token_recovery.value for each in row.positions if not each.special]
        assert row.proxies["token_recovery"].value == pytest.approx(sum(own) / len(own))
        assert row.proxies["token_recovery"].low <= row.proxies["token_recovery"].high
    pages = [(outcome.folder / name).read_text() for name in ("audit.html", "audit.md", "samples.csv", "audit.json")]
    printed = "".join(pages) + outcome.out + outcome.err
    assert "Tokens, position by position" in printed
    # A text of which little is revealed may have all of its tokens told: the first page says both.
    verdict = pages[1].partition("## ")[2].partition("\n## ")[0]
    assert "Token recovery" in verdict
    assert "Revealed fraction" in verdict
    assert not [word for word in WORDS if word in printed]
    assert AuditResult.from_json(result.to_json()) == result


def test_words_are_shown_on_demand(command) -> None:
    outcome = scan_folder(command, "--release", "gaussian:0.1", "--show-samples", formats=("json", "html"))
    assert [each.token for each in outcome.result.samples[0].positions][1:3] == ["the", "patient"]
    page = (outcome.folder / "audit.html").read_text()
    assert "patient" in page
    assert "Private inputs are shown" in page
    assert (outcome.folder / "audit.json").stat().st_mode & 0o077 == 0


def test_levels_and_limits_go_by_tokens(command) -> None:
    """Noise that leaves most of an embedding's variance, and tells tokens all the same."""
    result = scan_folder(command, "--release", "gaussian:0.3", kind="gpt2").result
    for row in result.samples:
        told = row.proxies["token_recovery"].high
        assert told > row.proxies["revealed_fraction"].value
        assert row.verdict == ("high" if told > 0.5 else "medium" if told >= 0.1 else "low")
    told = max(row.proxies["token_recovery"].high for row in result.samples)
    revealed = max(row.proxies["revealed_fraction"].value for row in result.samples)
    assert Policy(max_revealed=(told + revealed) / 2).decide(result).decision == "block"
    assert Policy(max_revealed=min(1.0, told + 1e-6)).decide(result).decision == "allow"
    for need in result.noise_needed:
        stds = [
            each.noise_std[f"{need.max_revealed:g}"]
            for row in result.samples
            for each in row.positions
            if not each.special
        ]
        assert need.std >= max(stds)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--release", "laplace:0.1"), id="laplace"),
        pytest.param(
            ("--release", "mean:2,gaussian:0.1", "--attacker", "outsider"), id="outsider", marks=pytest.mark.slow
        ),
        pytest.param(
            ("--release", "gaussian:0.1", "--proxies", "revealed_fraction,posterior_rmse"), id="not asked for"
        ),
    ],
)
def test_nothing_protects_where_tokens_are_not_known(command, options) -> None:
    result = scan_folder(command, *options).result
    assert result.data.doubt is not None
    assert "token" in result.data.doubt
    assert not [row for row in result.samples if row.verdict == "low"]
    assert result.noise_needed == []
    assert Policy(max_revealed=1.0).decide(result).decision != "allow"


def test_tokens_in_the_clear_are_counted_over_the_vocabulary(command, tmp_path: Path) -> None:
    file = text_cases.write_texts(tmp_path / "short.csv", ("no fever", "well again"), (0, 1))
    result = command(*words("--release", "gradient", checkpoint=text_cases.saved("bert"), data=file)).result
    found = {finding.id: finding for finding in result.checks if finding.status == "leak"}
    for check, false in (("embedding-rows", "false_rows"), ("token-span", "false_tokens")):
        assert found[check].sample_ids == ["0", "1"]
        assert found[check].details[false] == {"0": 0, "1": 0}
        assert found[check].details["vocabulary"] == {"0": 60, "1": 60}
    assert found["embedding-rows"].layer == "bert.embeddings.word_embeddings"


@pytest.mark.slow
def test_a_span_that_holds_the_vocabulary_tells_nothing(command) -> None:
    """After a layer norm seven tokens fill the plane that all tokens of a width of eight lie in."""
    result = scan_folder(command, "--release", "gradient").result
    assert {finding.status for finding in result.checks if finding.id == "token-span"} == {"clear"}


@pytest.mark.slow
def test_positions_are_bracketed_by_iterations(command) -> None:
    exact, bracketed = (
        scan_folder(command, "--release", "gaussian:0.1", "--solver", solver, limit=1).result.samples[0]
        for solver in ("dense", "lanczos")
    )
    for one, other in zip(exact.positions, bracketed.positions, strict=True):
        assert one.revealed_fraction.status == "exact"
        assert other.revealed_fraction.low - 1e-9 <= one.revealed_fraction.value <= other.revealed_fraction.high + 1e-9
        assert one.token_recovery == other.token_recovery


@pytest.mark.parametrize(
    ("broken", "said"),
    [("tokenizer.json", "no tokenizer"), ("config.json", "expected a file"), ("model.safetensors", "holds no weights")],
)
def test_a_folder_without_a_part_is_refused(command, tmp_path: Path, broken: str, said: str) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(text_cases.saved("bert"), folder)
    (folder / broken).unlink()
    outcome = command(*words(checkpoint=folder, data=texts()))
    assert outcome.code == 2
    assert said in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert outcome.audit is None


def test_labels_beyond_the_classes_are_refused(command, tmp_path: Path) -> None:
    file = text_cases.write_texts(tmp_path / "far.csv", text_cases.SENTENCES[:2], (0, 7))
    outcome = command(*words(checkpoint=text_cases.saved("bert"), data=file))
    assert outcome.code == 2
    assert "3 classes" in outcome.err


@pytest.mark.slow
def test_other_scans_load_no_transformers() -> None:
    code = "from riskaudit.cli.app import run\nimport riskaudit\nrun(['list'])\nriskaudit.load_samples"
    assert loaded_modules(["transformers", "tokenizers", "peft"], code) == []


def verify_folder(command, *options: str, kind: str = "bert"):
    formats = ["--format=json", "--format=html"]
    return command(
        "verify", str(text_cases.saved(kind)), "--data", str(texts()), "--limit", "2", "--out", "out", *formats,
        "--proxies", "token_recovery,gradient_norm", "--no-checks", "--quiet", "--attack", "tag", "--attack-steps", "3",
        *options,
    )  # fmt: skip


def test_attacks_take_texts_of_several_lengths_and_show_no_words(command) -> None:
    outcome = verify_folder(command, "--release", "gaussian:0.01")
    assert outcome.code == 0
    rows = outcome.result.studies.get(VerifyStudy).attacks
    for row, sentence in zip(rows, text_cases.SENTENCES, strict=False):
        private = len(sentence.split())
        # Of the tokenizer's own tokens nothing is asked.
        assert [right is None for right in row.tokens_right] == [True, *[False] * private, True]
        assert row.metrics["token_accuracy"] == pytest.approx(sum(filter(None, row.tokens_right)) / private)
        assert row.metrics["rougeL"] is not None
        assert row.tokens is None
    pages = [(outcome.folder / name).read_text() for name in ("audit.html", "audit.json")]
    printed = "".join(pages) + outcome.out + outcome.err
    assert "Tokens told by attacks" in printed
    assert not [word for word in WORDS if word in printed]


@pytest.mark.slow
def test_reconstructed_words_are_shown_on_demand(command) -> None:
    outcome = verify_folder(command, "--release", "gaussian:0.01", "--show-samples")
    row = outcome.result.studies.get(VerifyStudy).attacks[0]
    assert len(row.tokens) == len(text_cases.SENTENCES[0].split()) + 2
    assert "Reconstructed tokens" in (outcome.folder / "audit.html").read_text()


@pytest.mark.slow
def test_texts_of_several_lengths_calibrate(command) -> None:
    outcome = command(
        "calibrate", str(text_cases.saved("bert")), "--data", str(texts()), "--limit", "3", "--out", "texts.json",
        "--coverage", "0.5", "--noise-std", "0.01", "--attack", "gauss-newton", "--solver", "dense", "--quiet",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
