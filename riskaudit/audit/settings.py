"""The options of an audit, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from riskaudit.errors import SettingsError
from riskaudit.linalg import EIGENVALUE_SOLVERS, INVERSE_SOLVERS
from riskaudit.proxies import PROXIES

DTYPES = {"float32": torch.float32, "float64": torch.float64}
PRIOR_NAMES = ("isotropic", "data", "class")
AUTO_MAX_MATVECS = 50
CHOSEN_MAX_MATVECS = 1000


@dataclass(frozen=True)
class AuditSettings:
    """Everything that decides the numbers besides the model and the data.

    Attributes:
        loss: registered name or ``file.py:function``.
        release: the pipeline, as ``--release`` takes it.
        reference_noise: Gaussian std per released entry at which an undefended release is ranked.
        prior: "isotropic", "data" or "class" (both fitted to the audited data), or a file of ``riskaudit prior fit``.
        calibration: file of ``riskaudit calibrate`` for this model, release, noise and prior; None for none.
        prior_mean: of the isotropic prior: mean of one input coordinate; None to take it from the audited data.
        prior_std: standard deviation likewise.
        target_rmse: error that noise_std_for_target should reach; None for half the prior's std.
        high: verdict "high" above this revealed fraction.
        medium: verdict "medium" from this revealed fraction on.
        max_revealed: a limit that the recommended noise should meet besides the thresholds; what to do about
            a sample beyond it is the policy's business.
        min_rmse: likewise for the posterior error.
        solver: "auto" or a registered eigenvalue solver.
        inverse: "auto" or a registered inverse.
        solver_tolerance: relative error at which an iteration has converged.
        tolerances: RMSEs, data units, for which the attacker's probability of success is worked out.
        max_matvecs: products per sample and iteration at most; None for 50, or 1000 where the user named a
            solver, an inverse or a precision.
        precision: relative width that certified intervals should have; None for 0.2 where it is cheap.
        budget: seconds for all samples; iterations stop in time with the intervals that they have. None for no limit.
        proxies: ids of the proxies wanted; None for all.
        confidence: with which certified ends hold, for all samples together.
        dtype: "float32" or "float64".
        device: "auto", "cpu", "cuda" or "cuda:i".
        batch_size: samples in memory at once, at most; None for as many as the free memory takes.
        seed: of every random draw.
    """

    loss: str = "cross-entropy"
    release: str = "gradient"
    reference_noise: float = 1e-3
    prior: str = "isotropic"
    calibration: str | None = None
    prior_mean: float | None = None
    prior_std: float | None = None
    target_rmse: float | None = None
    high: float = 0.5
    medium: float = 0.1
    max_revealed: float | None = None
    min_rmse: float | None = None
    solver: str = "auto"
    inverse: str = "auto"
    solver_tolerance: float = 1e-6
    tolerances: tuple[float, ...] = (0.05, 0.1, 0.2)
    max_matvecs: int | None = None
    confidence: float = 0.99
    dtype: str = "float64"
    device: str = "auto"
    precision: float | None = None
    budget: float | None = None
    proxies: tuple[str, ...] | None = None
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _positive("--reference-noise", self.reference_noise)
        if self.target_rmse is not None:
            _positive("--target-rmse", self.target_rmse)
        if self.prior_std is not None:
            _positive("--prior-std", self.prior_std)
        self._check_prior()
        for tolerance in self.tolerances:
            _positive("--tolerance", tolerance)
        if not 0 <= self.medium <= self.high <= 1:
            raise SettingsError(
                f"expected 0 <= --medium-above <= --high-above <= 1, found {self.medium:g} and {self.high:g}"
            )
        _known("--solver", self.solver, ["auto", *EIGENVALUE_SOLVERS])
        _known("--inverse", self.inverse, ["auto", *INVERSE_SOLVERS])
        _known("--dtype", self.dtype, list(DTYPES))
        if self.inverse == "dense" and self.solver not in ("auto", "dense"):
            raise SettingsError(
                f"--inverse dense needs all eigenvalues, but --solver is {self.solver}; choose --solver dense as well"
            )
        if not 0 < self.solver_tolerance < 1:
            raise SettingsError(f"expected --solver-tolerance between 0 and 1, found {self.solver_tolerance:g}")
        self._check_effort()
        if not 0 < self.confidence < 1:
            raise SettingsError(f"expected --confidence between 0 and 1, found {self.confidence:g}")
        for name, value in (("--batch-size", self.batch_size), ("--max-matvecs", self.max_matvecs)):
            if value is not None and value < 1:
                raise SettingsError(f"expected {name} of at least 1, found {value}")
        if not 0 <= self.seed < 2**63:
            raise SettingsError(f"expected --seed of at least 0, found {self.seed}")

    def _check_prior(self) -> None:
        if not self.prior:
            raise SettingsError(f"expected --prior to be {', '.join(PRIOR_NAMES)} or a file, found nothing")
        for name, value in (("--prior-mean", self.prior_mean), ("--prior-std", self.prior_std)):
            if value is not None and self.prior != "isotropic":
                raise SettingsError(
                    f"{name} belongs to the isotropic prior, but --prior is {self.prior}; leave one of them out"
                )

    def _check_effort(self) -> None:
        if self.precision is not None and not 0 < self.precision <= 1:
            raise SettingsError(f"expected --precision above 0 and at most 1, found {self.precision:g}")
        if self.budget is not None:
            _positive("--budget", self.budget)
            if "dense" in (self.solver, self.inverse):
                raise SettingsError("--budget needs iterations that can stop early; leave out --solver dense")
        if self.proxies is not None and not self.proxies:
            raise SettingsError("expected --proxies to name at least one proxy, found none")
        for proxy in self.proxies or ():
            _known("--proxies", proxy, list(PROXIES))

    def wanted(self) -> frozenset[str]:
        """Ids of the proxies to compute."""
        return frozenset(PROXIES if self.proxies is None else self.proxies)

    def least_errors(self, prior_std: float) -> dict[float, float]:
        """The posterior error that each of `revealed_limits` stands for, where it does."""
        return {} if self.min_rmse is None else {1 - (self.min_rmse / prior_std) ** 2: self.min_rmse}

    def revealed_limits(self, prior_std: float) -> list[float]:
        """Revealed fractions for which the noise needed is worked out: the thresholds and the limits."""
        limits = [self.high, self.medium]
        if self.max_revealed is not None:
            limits.append(self.max_revealed)
        if self.min_rmse is not None:
            # posterior_rmse = tau sqrt(1 - revealed_fraction)
            limits += self.least_errors(prior_std)
        return limits

    def torch_dtype(self) -> torch.dtype:
        """The dtype to work in."""
        return DTYPES[self.dtype]

    def torch_device(self) -> torch.device:
        """The device to work on.

        Raises:
            SettingsError: no such device here.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            device = torch.device("meta")
        if device.type not in ("cpu", "cuda"):
            raise SettingsError(f"expected --device auto, cpu, cuda or cuda:NUMBER, found {self.device!r}")
        if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
            raise SettingsError(
                f"--device {self.device} was asked for, but this machine shows {torch.cuda.device_count()} "
                "CUDA devices; use --device cpu"
            )
        return device


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise SettingsError(f"expected {name} above 0, found {value:g}")


def _known(name: str, value: str, known: list[str]) -> None:
    if value not in known:
        raise SettingsError(f"expected {name} to be one of {', '.join(known)}, found {value!r}")
