"""The settings of an audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from riskaudit.errors import SettingsError
from riskaudit.settings import (
    CHECKED,
    INPUTS,
    POLICY,
    PRIOR,
    RELEASE,
    SOLVERS,
    Count,
    Positive,
    Probability,
    Seed,
    Settings,
    Share,
    one_of,
    option,
)

if TYPE_CHECKING:
    from typing import Self

    import torch

# The policy checks its limits.
Limit = Annotated[float, Field(allow_inf_nan=True)]
PRIOR_NAMES = ("isotropic", "data", "class")


@dataclass(frozen=True, config=CHECKED)
class AuditSettings(Settings):
    """Everything that decides the numbers besides the model and the data.

    The noise that is recommended meets ``max_revealed`` and ``min_rmse`` besides the thresholds; what to do about a
    sample beyond them is the policy's business. With a ``budget`` iterations stop in time with the intervals that they
    have.
    """

    loss: Annotated[str, option("cross-entropy, bce, mse, or file.py:function.", INPUTS, file=True)] = "cross-entropy"
    release: Annotated[
        str,
        option('What leaves the client, left to right, e.g. "clip:1.0,gaussian:0.01" (see riskaudit list).', RELEASE),
    ] = "gradient"
    reference_noise: Annotated[Positive, option("Noise std at which an undefended release is ranked.", RELEASE)] = 1e-3
    prior: Annotated[
        str,
        option(
            "What the attacker knows of inputs: isotropic, data or class (fitted to the audited data), or a FILE "
            "that riskaudit prior fit wrote.",
            PRIOR,
            file=True,
        ),
    ] = "isotropic"
    calibration: Annotated[
        str | None,
        option(
            "File of riskaudit calibrate for this model, release, noise and prior: intervals with stated coverage.",
            PRIOR,
            file=True,
        ),
    ] = None
    prior_mean: Annotated[
        float | None, option("Isotropic prior: mean of one input coordinate (default: the data's).", PRIOR)
    ] = None
    prior_std: Annotated[
        Positive | None, option("Isotropic prior: standard deviation likewise (default: the data's).", PRIOR)
    ] = None
    target_rmse: Annotated[
        Positive | None, option("Error that enough noise should force (default: half the prior's std).", PRIOR)
    ] = None
    high: Annotated[Share, option('Verdict "high" above this revealed fraction.', PRIOR, flags=("--high-above",))] = 0.5
    medium: Annotated[
        Share, option('Verdict "medium" from this revealed fraction on.', PRIOR, flags=("--medium-above",))
    ] = 0.1
    max_revealed: Annotated[Limit | None, option("Exit with 1 if a sample's revealed fraction is larger.", POLICY)] = (
        None
    )
    min_rmse: Annotated[Limit | None, option("Exit with 1 if a sample's posterior error is smaller.", POLICY)] = None
    solver: Annotated[str, option("auto, dense, lanczos or power.", SOLVERS)] = "auto"
    inverse: Annotated[str, option("auto, dense, cg, neumann or least-squares.", SOLVERS)] = "auto"
    solver_tolerance: Annotated[
        Probability, option("Relative error at which a solver stops.", SOLVERS, record="tolerance")
    ] = 1e-6
    tolerances: Annotated[
        tuple[Positive, ...],
        option(
            "RMSE within which a reconstruction counts as a success; repeatable (default: 0.05, 0.1, 0.2).",
            PRIOR,
            flags=("--tolerance",),
        ),
    ] = (0.05, 0.1, 0.2)
    max_matvecs: Annotated[
        Count | None,
        option("Products per sample and iteration (default: 50, or 1000 with a named solver or a precision).", SOLVERS),
    ] = None
    confidence: Annotated[
        Probability,
        option("With which certified ends hold, for all samples together.", SOLVERS, record="confidence"),
    ] = 0.99
    dtype: Annotated[Literal["float32", "float64"], option("float32 or float64.", SOLVERS, record="dtype")] = "float64"
    device: Annotated[str, option("auto, cpu, cuda or cuda:NUMBER.", SOLVERS)] = "auto"
    precision: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None,
        option(
            "Relative width that certified intervals should have (default: 0.2 where that is cheap).",
            SOLVERS,
            record="precision",
        ),
    ] = None
    budget: Annotated[
        Positive | None,
        option(
            "Seconds for all samples; what is not narrowed by then keeps its honest interval.",
            SOLVERS,
            record="budget_seconds",
        ),
    ] = None
    proxies: Annotated[
        tuple[str, ...] | None,
        option("Only these, separated by commas (see riskaudit list; default: all).", SOLVERS, commas=True),
    ] = None
    batch_size: Annotated[Count | None, option("Samples in memory at once, at most (default: what fits).", SOLVERS)] = (
        None
    )
    seed: Annotated[Seed, option("Seed of every random draw.", SOLVERS, record="seed")] = 0

    @field_validator("tolerances")
    @classmethod
    def _ascending(cls, tolerances: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(tolerances)))

    @model_validator(mode="after")
    def _check(self) -> Self:
        """What concerns registered names and several fields.

        Raises:
            SettingsError: an unknown name, or settings that exclude each other.
            ReleaseError: a release that can't be read.
        """
        from riskaudit.release.grammar import ReleaseSpec

        ReleaseSpec.parse(self.release)
        if not self.prior:
            raise SettingsError(f"expected `prior` to be {', '.join(PRIOR_NAMES)} or a file, found nothing")
        for name in ("prior_mean", "prior_std"):
            if getattr(self, name) is not None and self.prior != "isotropic":
                raise SettingsError(
                    f"`{name}` belongs to the isotropic prior, but `prior` is {self.prior}; leave one of them out"
                )
        if self.medium > self.high:
            raise SettingsError(f"expected 0 <= `medium` <= `high` <= 1, found {self.medium:g} and {self.high:g}")
        self._check_names()
        if self.inverse == "dense" and self.solver not in ("auto", "dense"):
            raise SettingsError(
                f"`inverse=dense` needs all eigenvalues, but `solver` is {self.solver}; choose `solver=dense` as well"
            )
        if self.budget is not None and "dense" in (self.solver, self.inverse):
            raise SettingsError("`budget` needs iterations that can stop early; leave out `solver=dense`")
        return self

    def _check_names(self) -> None:
        # The registries load torch, for which the default settings needn't wait.
        if (self.solver, self.inverse) != ("auto", "auto"):
            from riskaudit.linalg import EIGENVALUE_SOLVERS, INVERSE_SOLVERS

            one_of("solver", self.solver, {"auto", *EIGENVALUE_SOLVERS})
            one_of("inverse", self.inverse, {"auto", *INVERSE_SOLVERS})
        if self.proxies is not None:
            from riskaudit.proxies import PROXIES

            if not self.proxies:
                raise SettingsError("expected `proxies` to name at least one proxy, found none")
            for proxy in self.proxies:
                one_of("proxies", proxy, PROXIES)

    def wanted(self) -> frozenset[str]:
        """Ids of the proxies to compute."""
        from riskaudit.proxies import PROXIES

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
        import torch

        return {"float32": torch.float32, "float64": torch.float64}[self.dtype]

    def torch_device(self) -> torch.device:
        """The device to work on.

        Raises:
            SettingsError: no such device here.
        """
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            device = torch.device("meta")
        if device.type not in ("cpu", "cuda"):
            raise SettingsError(f"expected `device` to be auto, cpu, cuda or cuda:NUMBER, found {self.device!r}")
        if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
            raise SettingsError(
                f"`device={self.device}` was asked for, but this machine shows {torch.cuda.device_count()} "
                "CUDA devices; use `device=cpu`"
            )
        return device
