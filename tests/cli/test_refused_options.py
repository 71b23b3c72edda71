"""Options that make no sense and places that can't be written: exit 2, one sentence, and nothing written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scan_cases import CHECKPOINT, words

OPTIONS = {
    "unknown-step": (["--release", "clip:1.0,blur:3"], "release step 2 ('blur:3')"),
    "misspelt-step": (["--release", "gausian:0.1"], "did you mean 'gaussian'?"),
    "negative-noise": (["--release", "gaussian:-0.1"], "gaussian:STD"),
    "nan-noise": (["--release", "gaussian:nan"], "gaussian:STD"),
    "empty-release": (["--release", ""], "release step 1"),
    "noise-with-underscore": (["--release", "gaussian:0_01"], "found '0_01'"),
    "limit-with-underscore": (["--max-revealed", "0_1"], "'0_1' is not a number"),
    "samples-with-underscore": (["--limit", "1_0"], "'1_0' is not a number"),
    "mean-with-underscore": (["--mean", "0_1"], "numbers separated by commas, found '0_1'"),
    "prior-of-other-digits": (["--prior-std", "٣"], "is not a number"),
    "clip-after-noise": (["--release", "gaussian:0.1,clip:1"], "put it before the noise"),
    "samples-that-uploads-do-not-divide": (["--release", "mean:3", "--limit", "8"], "uploads of 3 divide, found 8"),
    "mean-of-more-than-there-are": (["--release", "mean:9"], "expected 9 samples at least"),
    "mean-of-one-sample": (["--release", "mean:4", "--limit", "1"], "found 1;"),
    "mean-of-none": (["--release", "mean:0"], "a whole number above 0 as N (or all), found '0'"),
    "two-means": (["--release", "mean:2,mean:2"], "leave this one out"),
    "mean-of-noise": (["--release", "gaussian:0.1,mean:2"], "put it before the noise"),
    "local-with-mean": (["--release", "local:epochs=1:batch=2:lr=0.1,mean:2"], "leave the mean out"),
    "local-without-values": (["--release", "local"], "found no epochs and no batch and no lr"),
    "momentum-1": (["--release", "local:epochs=1:batch=2:lr=0.1:momentum=1"], "0 <= M < 1, found '1'"),
    **{
        f"lr-{rate}": (["--release", f"local:epochs=1:batch=2:lr={rate}"], f"a number above 0, found '{rate}'")
        for rate in ("0", "-0.1", "nan", "inf", "fast")
    },
    "weight-decay": (["--release", "local:epochs=1:batch=2:lr=0.1:weight_decay=-1"], "W >= 0, found '-1'"),
    "optimizer": (["--release", "local:epochs=1:batch=2:lr=0.1:optimizer=lion"], "sgd or adam, found 'lion'"),
    "adam-with-momentum": (
        ["--release", "local:epochs=1:batch=2:lr=0.1:optimizer=adam:momentum=0.9"],
        "momentum with optimizer=sgd only",
    ),
    "too-many-epochs": (["--release", "local:epochs=999999999:batch=2:lr=0.1"], "at most 100,000 steps, found"),
    "epochs-0": (["--release", "local:epochs=0:batch=2:lr=0.1"], "expected epochs with a whole number above 0"),
    "batch-0": (["--release", "local:epochs=1:batch=0:lr=0.1"], "expected batch with a whole number above 0, or all"),
    "pattern-that-matches-nothing": (["--release", "mean:2,share:hed.*"], "found 'hed.*' in 'share:hed.*'"),
    "secure-aggregation-of-one": (["--release", "mean:2,secagg:1"], "two clients at least as K"),
    "more-clients-than-samples": (["--release", "local:epochs=1:batch=2:lr=0.1,secagg:9"], "expected 9 samples"),
    "secure-aggregation-of-samples": (["--release", "secagg:2"], "expected the clients' uploads before it"),
    "soteria-101": (["--release", "soteria:101"], "0 <= Q <= 100, found '101'"),
    "soteria-of-no-layer": (["--release", "soteria:80:conv9"], "expected one of the linear layers"),
    "model-defense": (["--model-defense", "precog"], "--model-defense to be precode or precode:DRAW"),
    "dropout-1": (["--release", "mean:2,dropout:1"], "0 <= P < 1, found '1'"),
    "dropout-of-samples": (["--release", "dropout:0.5"], "put it after mean:N or local training"),
    "attacker": (["--release", "mean:2", "--attacker", "friend"], "informed, outsider, found 'friend'"),
    "attacker-of-single-samples": (["--attacker", "outsider"], "needs a release in which several samples leave"),
    "batch-norm": (["--release", "mean:2", "--batch-norm", "frozen"], "running, batch, found 'frozen'"),
    "batch-norm-of-single-samples": (["--batch-norm", "batch"], "needs a release in which several samples leave"),
    "batch-norm-without-any": (["--release", "mean:2", "--batch-norm", "batch"], "expected a model with batch norm"),
    "training-that-diverges": (["--release", "local:epochs=1:batch=2:lr=1e300,gaussian:0.1", "--quiet"], "not finite"),
    "negative-reference-noise": (["--reference-noise", "-1"], "--reference-noise above 0"),
    "limit-0": (["--limit", "0"], "--limit of at least 1"),
    "limit-word": (["--limit", "many"], "--limit"),
    "solver": (["--solver", "magic"], "auto, dense, lanczos, power"),
    "inverse": (["--inverse", "magic"], "neumann"),
    "inverse-dense-with-lanczos": (["--inverse", "dense", "--solver", "lanczos"], "--solver dense"),
    "dtype": (["--dtype", "float16"], "float32, float64"),
    "device": (["--device", "tpu"], "auto, cpu, cuda"),
    "format": (["--format", "docx"], "docx"),
    "formats-in-one-word": (["--format", "html,pdf"], "give the option once for each"),
    "mean-without-std": (["--mean", "0.5"], "--std"),
    "std-without-mean": (["--std", "0.5"], "--mean"),
    "std-0": (["--mean", "0.5", "--std", "0"], "std"),
    "mean-word": (["--mean", "grey", "--std", "1"], "--mean"),
    "mean-per-colour": (["--mean", "0.1,0.2,0.3", "--std", "1,1,1"], "1"),
    "prior-std-0": (["--prior-std", "0"], "--prior-std"),
    "target-rmse": (["--target-rmse", "-0.1"], "--target-rmse"),
    "thresholds-crossed": (["--high-above", "0.1", "--medium-above", "0.5"], "--medium-above <= --high-above"),
    "batch-size": (["--batch-size", "0"], "--batch-size"),
    "max-matvecs": (["--max-matvecs", "0"], "--max-matvecs"),
    "solver-tolerance": (["--solver-tolerance", "2"], "--solver-tolerance"),
    "tolerance": (["--tolerance", "0.1", "--tolerance", "0"], "--tolerance above 0"),
    "prior-missing": (["--prior", "missing.safetensors"], "missing.safetensors"),
    "prior-mean-of-data": (["--prior", "data", "--prior-mean", "0.5"], "--prior-mean belongs to the isotropic prior"),
    "prior-std-of-class": (["--prior", "class", "--prior-std", "0.5"], "--prior-std belongs to the isotropic prior"),
    "confidence": (["--confidence", "1"], "--confidence"),
    "precision": (["--precision", "0"], "--precision above 0"),
    "budget": (["--budget", "-1"], "--budget above 0"),
    "budget-for-dense": (["--budget", "9", "--solver", "dense"], "leave out --solver dense"),
    "proxies": (["--proxies", "i2f,magic"], "posterior_rmse"),
    "proxies-none": (["--proxies", ","], "at least one proxy"),
    "seed": (["--seed", "-1"], "--seed"),
    "loss": (["--loss", "hinge"], "cross-entropy, bce, mse"),
    "arch": (["--arch", "lenett"], "did you mean lenet?"),
    "arch-that-does-not-fit": (["--arch", "mlp"], "don't fit mlp"),
    "arch-file": (["--arch", "nothing.py:build"], "nothing.py"),
    "max-revealed": (["--max-revealed", "1.5"], "max_revealed between 0 and 1"),
    "min-rmse": (["--min-rmse", "nan"], "min_rmse"),
    "unknown-option": (["--maximum", "3"], "--maximum"),
    "policy-missing": (["--policy", "missing.toml"], "missing.toml"),
    "baseline-missing": (["--baseline", "missing.json"], "missing.json"),
    "config-missing": (["--config", "missing.toml"], "missing.toml"),
}

FILES = {
    "policy-not-toml": ("--policy", "limits.toml", "max_revealed =", "expected TOML"),
    "policy-empty": ("--policy", "limits.toml", "", "expected policy limits"),
    "policy-empty-table": ("--policy", "limits.toml", "[policy]", "expected policy limits"),
    "policy-unknown-limit": ("--policy", "limits.toml", "[policy]\nmax_leak = 1", "found 'max_leak'"),
    "policy-word": ("--policy", "limits.toml", "max_revealed = 'little'", "expected a number"),
    "policy-true": ("--policy", "limits.toml", "max_revealed = true", "expected a number"),
    "baseline-not-json": ("--baseline", "old.json", "<html>", "expected an audit as JSON"),
    "baseline-no-audit": ("--baseline", "old.json", '{"a": 1}', "schema_version"),
    "baseline-of-the-future": ("--baseline", "old.json", '{"schema_version": 2}', "found 2"),
    "baseline-incomplete": ("--baseline", "old.json", '{"schema_version": 1}', "does not follow schema 1"),
    "config-unknown-key": ("--config", "own.toml", "colour = 'red'", "found 'colour'"),
    "config-checkpoint": ("--config", "own.toml", "checkpoint = 'x.pt'", "found 'checkpoint'"),
    "config-bad-value": ("--config", "own.toml", "seed = 'many'", "--seed"),
    "config-bad-policy": ("--config", "own.toml", "[policy]\nmax_leak = 1", "found 'max_leak'"),
    "config-not-toml": ("--config", "own.toml", "{}", "expected TOML"),
}


@pytest.fixture
def refuse(command, tmp_path) -> Callable[..., str]:
    """Run a scan that must be refused; returns its sentence."""

    def check(*options: str, **sources) -> str:
        before = set(tmp_path.rglob("*"))
        outcome = command(*words(*options, **sources))
        assert (outcome.code, outcome.out) == (2, ""), outcome
        assert outcome.err.startswith("riskaudit: ")
        assert outcome.err.count("\n") == 1
        assert not outcome.err.startswith("riskaudit: unexpected")
        assert set(tmp_path.rglob("*")) == before
        return outcome.err

    return check


@pytest.mark.parametrize("case", OPTIONS)
def test_option(refuse, case) -> None:
    options, expected = OPTIONS[case]
    assert expected in refuse(*options)


@pytest.mark.parametrize("case", FILES)
def test_option_naming_a_file(refuse, tmp_path, case) -> None:
    option, name, content, expected = FILES[case]
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert expected in refuse(option, str(tmp_path / name))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_no_cuda_device(refuse, device) -> None:
    assert "use --device cpu" in refuse("--device", device)


def test_out_below_a_file(refuse, tmp_path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert "choose another --out" in refuse(out=tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_out_is_a_file(refuse, tmp_path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert "expected a folder" in refuse(out=tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["thesis.tex", ".hidden", "audit.json.bak"])
def test_out_holds_something_else(refuse, tmp_path, name) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine", encoding="utf-8")
    assert repr(name) in refuse(out=tmp_path / "out")
    assert (tmp_path / "out" / name).read_text(encoding="utf-8") == "mine"


def test_out_holds_a_folder_named_like_a_result(refuse, tmp_path) -> None:
    (tmp_path / "out" / "audit.json").mkdir(parents=True)
    (tmp_path / "out" / "audit.json" / "thesis.tex").write_text("mine", encoding="utf-8")
    refuse(out=tmp_path / "out")
    assert (tmp_path / "out" / "audit.json" / "thesis.tex").exists()


def test_a_failed_audit_makes_no_parents_of_out(refuse) -> None:
    refuse("--solver", "magic", out="reports/today/out")


def test_a_failed_audit_without_out_makes_no_reports_folder(command, tmp_path) -> None:
    assert command("scan", CHECKPOINT, "--data", "missing.npz").code == 2
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["scan"], "Missing argument 'CHECKPOINT'"),
        (["scan", "model.pt"], "--data"),
        (["sacn"], "No such command 'sacn'"),
        (["scan", "model.pt", "--data"], "--data"),
        (["list", "colours"], "architectures"),
        (["report"], "AUDIT.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_command_line_that_is_not_whole(command, arguments, expected) -> None:
    outcome = command(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("riskaudit: ")
    assert outcome.err.count("\n") == 1
    assert expected in outcome.err
