"""What leaves the client: the gradient, then clipping, pruning, masking and noise."""

from riskaudit.release.noise import Noise
from riskaudit.release.parse import parse_steps
from riskaudit.release.release import Batch, Release, batch_norm_layers, is_random
from riskaudit.release.steps import STEPS, Clip, GaussianNoise, Gradient, LaplaceNoise, Mask, Prune, Step

__all__ = [
    "STEPS",
    "Batch",
    "Clip",
    "GaussianNoise",
    "Gradient",
    "LaplaceNoise",
    "Mask",
    "Noise",
    "Prune",
    "Release",
    "Step",
    "batch_norm_layers",
    "is_random",
    "parse_steps",
]
