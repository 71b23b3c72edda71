"""What the user hands in: checkpoints, samples, losses; each checked at this border and nowhere else."""

from riskaudit.inputs.architectures import architecture_names
from riskaudit.inputs.checkpoints import CHECKPOINT_FORMATS, Checkpoint, load_checkpoint
from riskaudit.inputs.compatibility import check_compatibility, fit_together
from riskaudit.inputs.losses import LOSSES, Loss, load_loss
from riskaudit.inputs.readers.tables import infer_encoding
from riskaudit.inputs.reading import class_list
from riskaudit.inputs.samples import SAMPLE_FORMATS, Samples, load_samples

__all__ = [
    "CHECKPOINT_FORMATS",
    "LOSSES",
    "SAMPLE_FORMATS",
    "Checkpoint",
    "Loss",
    "Samples",
    "architecture_names",
    "check_compatibility",
    "class_list",
    "fit_together",
    "infer_encoding",
    "load_checkpoint",
    "load_loss",
    "load_samples",
]
