"""An option is one field of a model: its flag, help, default, check, TOML key and place in the record follow."""

from __future__ import annotations

import pytest
import typer
from pydantic.dataclasses import dataclass

from riskaudit.cli.invocation import recorded_command
from riskaudit.cli.models import SubjectOptions
from riskaudit.cli.options import command, in_options
from riskaudit.errors import SettingsError
from riskaudit.settings import CHECKED, Positive, Settings, option


@dataclass(frozen=True, config=CHECKED)
class Growth(Settings):
    """Options that no command of the application has."""

    rate: Positive = option(0.5, "How fast.", "Release", flags=("--growth-rate",))
    sizes: tuple[float, ...] = option((1.0,), "How large.", flags=("--size",))
    words: tuple[str, ...] | None = option(None, "What.", commas=True)
    upward: bool = option(True, "Where to.", choices={"up": True, "down": False})
    secret: bool = option(False, "Untold.", recorded=False)


@pytest.fixture
def grown(tmp_path, monkeypatch):
    """The command line of a command with these options; returns the options and the recorded command."""
    monkeypatch.chdir(tmp_path)
    for name in ("model.pt", "data.npz"):
        (tmp_path / name).touch()
    seen = []

    @command
    def grow(ctx: typer.Context, growth: Growth, subject: SubjectOptions) -> int:
        """Grow."""
        seen.append((growth, recorded_command(ctx)))
        return 0

    app = typer.Typer()
    app.command("grow")(grow)
    app.callback()(lambda: None)
    application = typer.main.get_command(app)

    def run(*arguments: str) -> tuple[Growth, str]:
        application(args=["grow", "model.pt", "--data", "data.npz", *arguments], standalone_mode=False)
        return seen[-1]

    run.parameters = {parameter.name: parameter for parameter in application.commands["grow"].params}
    return run


def test_the_flag_the_help_and_the_default(grown) -> None:
    rate = grown.parameters["rate"]
    assert (rate.opts, rate.help, rate.default) == (["--growth-rate"], "How fast.", 0.5)
    assert grown()[0] == Growth()


def test_values_as_the_model_has_them(grown) -> None:
    growth, recorded = grown(
        "--growth-rate", "2", "--size", "3", "--size", "4", "--words", "a, b", "--upward", "down", "--secret"
    )
    assert growth == Growth(2.0, (3.0, 4.0), ("a", "b"), upward=False, secret=True)
    options = "--growth-rate 2.0 --size 3.0 --size 4.0 --words 'a, b' --upward down"
    assert recorded == f"riskaudit grow model.pt --data data.npz {options}"


def test_the_check_names_the_option(grown) -> None:
    with pytest.raises(SettingsError, match=r"--growth-rate above 0, .*-1"):
        grown("--growth-rate", "-1")


def test_the_key_in_a_file(grown, tmp_path) -> None:
    (tmp_path / "riskaudit.toml").write_text("growth-rate = 3.0\nsize = [5.0]\n", encoding="utf-8")
    assert grown()[0] == Growth(3.0, (5.0,))
    assert grown("--growth-rate", "4")[0].rate == 4.0


def test_sentences_name_options() -> None:
    flags = {"names": "--attack", "arch": "--arch"}
    sentence = "`names` is wrong, use `arch=file.py:factory`, not `model.state_dict()` or `other=1`"
    expected = "--attack is wrong, use --arch file.py:factory, not `model.state_dict()` or `other=1`"
    assert in_options(sentence, flags) == expected
