"""Every error that riskaudit raises on purpose.

    RiskauditError                 could not audit; the message is one sentence for the user
    ├── InputError                 what the user handed in is missing, broken or hostile
    │   ├── CheckpointError        the checkpoint file or its weights
    │   ├── ArchitectureError      the model that the weights belong to
    │   ├── SamplesError           the data file, its pixels or its labels
    │   ├── PriorError             a prior file, or data that no prior can be fitted to
    │   └── UserCodeError          a ``file.py:name`` that can't be loaded or fails
    ├── ReleaseError               the release pipeline
    │   └── CoupledReleaseError    one sample's release depends on the other samples
    ├── SettingsError              an option's value, or options that exclude each other
    ├── EngineError                processes that work is spread over end before they answer
    ├── RunError                   the folder of a run, or inputs that changed since it was created
    ├── OutputError                the place that results should go to
    ├── ResultError                an audit.json that can't be read
    └── GuardError                 an upload that can't be reviewed, a ledger or a log that can't be used

Each message says what was expected, what was found, and what to do, and names the file, layer or
option. The command line prints it and exits with code 2.
"""

from __future__ import annotations


class RiskauditError(Exception):
    """Base of all errors that a caller can mend; ``str(error)`` is one sentence for the user."""


class InputError(RiskauditError):
    """What the user handed in is missing, broken or hostile."""


class CheckpointError(InputError):
    """A checkpoint that can't be read, or weights that can't be used."""


class ArchitectureError(InputError):
    """No model, or no single model, fits the weights."""


class SamplesError(InputError):
    """Samples that can't be read or that the model can't take."""


class PriorError(InputError):
    """A prior file that can't be used, or data that no prior can be fitted to."""


class UserCodeError(InputError):
    """A ``file.py:name`` that can't be loaded, isn't callable, or fails."""


class ReleaseError(RiskauditError):
    """A release pipeline that can't be parsed or has no meaning."""


class CoupledReleaseError(ReleaseError):
    """One sample's release depends on the other samples, so a per-sample audit would be wrong."""


class SettingsError(RiskauditError):
    """An option's value is out of range, or options exclude each other."""


class EngineError(RiskauditError):
    """A process that was given work ended without an answer, and again when another one was given it."""


class RunError(RiskauditError):
    """A run's folder can't be used, or what it audits or computes with isn't what it was created with."""


class OutputError(RiskauditError):
    """Results can't be written where they should go."""


class ResultError(RiskauditError):
    """An audit.json that is missing, broken, or of an unknown schema."""


class GuardError(RiskauditError):
    """An upload that can't be reviewed, or a ledger or log that can't be used; nothing is sent then."""
