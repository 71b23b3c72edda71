"""The settings of an audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from riskaudit.audit.subject import LossOptions
from riskaudit.errors import PriorError, SettingsError
from riskaudit.files import check_found
from riskaudit.settings import (
    CHECKED,
    POLICY,
    PRIOR,
    RELEASE,
    SOLVERS,
    Count,
    Positive,
    Probability,
    Seed,
    Share,
    one_of,
    option,
)

if TYPE_CHECKING:
    from typing import Self

    import torch

    from riskaudit.results import Thresholds

# The policy checks its limits.
Limit = Annotated[float, Field(allow_inf_nan=True)]
PRIOR_NAMES = ("isotropic", "data", "class", "vocabulary")


def find_prior(name: str) -> None:
    """Look for the file of a prior."""
    if name not in PRIOR_NAMES:
        check_found(name, PriorError)


def _find_calibration(path: str) -> None:
    """Read a calibration, only to see whether it can be."""
    from riskaudit.results import Calibration

    Calibration.load(path)


@dataclass(frozen=True, config=CHECKED)
class AuditSettings(LossOptions):
    """Everything that decides the numbers besides the model and the data.

    The noise that is recommended meets ``max_revealed`` and ``min_rmse`` besides the thresholds; what to do about a
    sample beyond them is the policy's business. With a ``budget`` iterations stop in time with the intervals that they
    have.
    """

    release: str = option(
        "gradient",
        'What leaves the client, left to right, e.g. "clip:1.0,gaussian:0.01" (see riskaudit list).',
        RELEASE,
    )
    model_defense: str | None = option(
        None,
        "Defence put into the model: precode[:DRAW[-LAST][:WEIGHT]], a variational bottleneck before the last layer, "
        "its noise by number (of several draws the riskiest stands), its divergence in the loss with that weight.",
        RELEASE,
        record="model_defense",
    )
    batch_norm: Literal["running", "batch"] | None = option(
        None,
        "Statistics of batch norm in an upload: running, or batch as in training (default: batch where several samples "
        "leave together, else running).",
        RELEASE,
    )
    attacker: Literal["informed", "outsider"] = option(
        "informed",
        "Whose numbers verdicts and limits go by where several samples leave together: informed (knows all others of "
        "the upload) or outsider (knows none).",
        RELEASE,
    )
    checks: bool = option(
        True, "Exact leak checks on what leaves (see riskaudit list).", RELEASE, flags=("--checks/--no-checks",)
    )
    reference_noise: Positive = option(0.001, "Noise std at which an undefended release is ranked.", RELEASE)
    prior: str | None = option(
        None,
        "What the attacker knows of inputs: isotropic, data or class (fitted to the audited data), vocabulary (the "
        "moments of a text model's embedding), or a FILE that riskaudit prior fit wrote (default: vocabulary for "
        "texts, else isotropic).",
        PRIOR,
        file=True,
        check=find_prior,
    )
    calibration: str | None = option(
        None,
        "File of riskaudit calibrate for this model, release, noise and prior: intervals with stated coverage.",
        PRIOR,
        file=True,
        check=_find_calibration,
    )
    prior_mean: float | None = option(
        None, "Isotropic prior: mean of one input coordinate (default: the data's).", PRIOR
    )
    prior_std: Positive | None = option(
        None, "Isotropic prior: standard deviation likewise (default: the data's).", PRIOR
    )
    target_rmse: Positive | None = option(
        None, "Error that enough noise should force (default: half the prior's std).", PRIOR
    )
    high: Share = option(0.5, 'Verdict "high" above this revealed fraction.', PRIOR, flags=("--high-above",))
    medium: Share = option(0.1, 'Verdict "medium" from this revealed fraction on.', PRIOR, flags=("--medium-above",))
    max_revealed: Limit | None = option(None, "Exit with 1 if a sample's revealed fraction is larger.", POLICY)
    min_rmse: Limit | None = option(None, "Exit with 1 if a sample's posterior error is smaller.", POLICY)
    solver: str = option("auto", "auto, dense, lanczos or power.", SOLVERS)
    inverse: str = option("auto", "auto, dense, cg, neumann or least-squares.", SOLVERS)
    solver_tolerance: Probability = option(
        1e-06, "Relative error at which a solver stops.", SOLVERS, record="tolerance"
    )
    tolerances: tuple[Positive, ...] = option(
        (0.05, 0.1, 0.2),
        "RMSE within which a reconstruction counts as a success; repeatable (default: 0.05, 0.1, 0.2).",
        PRIOR,
        flags=("--tolerance",),
    )
    max_matvecs: Count | None = option(
        None, "Products per sample and iteration (default: 50, or 1000 with a named solver or a precision).", SOLVERS
    )
    confidence: Probability = option(
        0.99, "With which certified ends hold, for all samples together.", SOLVERS, record="confidence"
    )
    dtype: Literal["auto", "float32", "float64", "mixed"] = option(
        "auto",
        "float64, mixed (float64, but products of Lanczos iterations in float32 where noise allows it), float32, or "
        "auto: mixed on CUDA, else float64.",
        SOLVERS,
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:NUMBER.", SOLVERS)
    precision: Annotated[float, Field(gt=0, le=1)] | None = option(
        None,
        "Relative width that certified intervals should have (default: 0.08 of the range of the revealed fraction, or "
        "0.25 where limits are given and kept or broken for certain).",
        SOLVERS,
        record="precision",
    )
    budget: Positive | None = option(
        None,
        "Seconds from the command's start, reading included, after which no product and no attack begins (leak checks "
        "and the report come on top; a study of several models takes as many for each): what is not narrowed by then "
        "keeps its honest interval or is not assessed, and attacks that don't fit are recorded as not run.",
        SOLVERS,
        record="budget_seconds",
    )
    proxies: tuple[str, ...] | None = option(
        None, "Only these, separated by commas (see riskaudit list; default: all).", SOLVERS, commas=True
    )
    batch_size: Count | None = option(None, "Samples in memory at once, at most (default: what fits).", SOLVERS)
    seed: Seed = option(0, "Seed of every random draw.", SOLVERS, record="seed")

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

        is_joint = ReleaseSpec.parse(self.release).is_joint
        for name, value in (("batch_norm", "batch"), ("attacker", "outsider")):
            if getattr(self, name) == value and not is_joint:
                raise SettingsError(
                    f"`{name}={value}` needs a release in which several samples leave together (mean:N or local:...), "
                    f"but `release` is {self.release}; leave `{name}` out"
                )
        if self.model_defense is not None:
            from riskaudit.inputs.model_defenses import parse_model_defense

            parse_model_defense(self.model_defense)
        if self.prior is not None and not self.prior:
            raise SettingsError(f"expected `prior` to be {', '.join(PRIOR_NAMES)} or a file, found nothing")
        for name in ("prior_mean", "prior_std"):
            if getattr(self, name) is not None and self.prior not in (None, "isotropic"):
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

    def prior_of(self, *, is_text: bool) -> str:
        """The prior's name or file, where it is left open that for such samples."""
        if self.prior is not None:
            return self.prior
        given = self.prior_mean is not None or self.prior_std is not None
        return "vocabulary" if is_text and not given else "isotropic"

    def wanted(self) -> frozenset[str]:
        """Ids of the proxies to compute: of uploads those of the informed attacker too, whom verdicts may go by."""
        from riskaudit.proxies import PROXIES

        if self.proxies is None:
            return frozenset(PROXIES)
        return frozenset(self.proxies) | {name for name in PROXIES if name.removeprefix("informed_") in self.proxies}

    def thresholds(self) -> Thresholds:
        """From where on a sample is of high and of medium risk."""
        from riskaudit.results import Thresholds

        return Thresholds(high=self.high, medium=self.medium)

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

    def chosen_dtype(self, device: torch.device) -> Literal["float64", "mixed", "float32"]:
        """``dtype``, where it is left open that for a device."""
        if self.dtype != "auto":
            return self.dtype
        return "mixed" if device.type == "cuda" else "float64"

    def torch_dtype(self) -> torch.dtype:
        """The dtype of the model, and of all but the products that may be in another."""
        import torch

        return torch.float32 if self.dtype == "float32" else torch.float64

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
