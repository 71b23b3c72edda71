"""A run as jobs of submitit, whose local executor stands in for SLURM."""

from __future__ import annotations

import pytest
from run_cases import create, create_of_another_model, numbers, work_here

pytest.importorskip("submitit", reason="submitit is not installed")

from riskaudit.errors import EngineError, SettingsError
from riskaudit.runs.engines.slurm import Job


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_jobs(tmp_path) -> None:
    run = create(tmp_path / "run", limit=8)
    run.execute("slurm", workers=2, job={"timeout_min": "30"})
    whole = create(tmp_path / "whole", limit=8)
    work_here(tmp_path / "whole")
    assert numbers(run.merge()[0]) == numbers(whole.merge()[0])
    # Finished already: nothing is submitted.
    jobs = sorted((tmp_path / "run" / "slurm").iterdir())
    run.execute("slurm")
    assert sorted((tmp_path / "run" / "slurm").iterdir()) == jobs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_job_says_reaches_the_caller(tmp_path) -> None:
    run = create_of_another_model(tmp_path)
    with pytest.raises(EngineError, match=r"model\.safetensors isn't the file"):
        run.execute("slurm")


def test_a_requeued_job_goes_on(tmp_path) -> None:
    again = Job().checkpoint("run", 3)
    assert isinstance(again.function, Job)
    assert (again.args, again.kwargs) == (("run", 3), {})


def test_parameters_that_submitit_doesn_t_know(tmp_path) -> None:
    run = create(tmp_path / "run", limit=2)
    with pytest.raises(SettingsError, match=r"`job`"):
        run.execute("slurm", job={"partitio": "gpu"})


def test_options_of_another_engine(tmp_path) -> None:
    run = create(tmp_path / "run", limit=2)
    with pytest.raises(SettingsError, match=r"`address` belongs to `engine=ray`"):
        run.execute(address="127.0.0.1:1")
    with pytest.raises(SettingsError, match=r"`job` belongs to `engine=slurm`"):
        run.execute("ray", job={"timeout_min": "3"})
    with pytest.raises(SettingsError, match=r"`engine`"):
        run.execute("dask")
