"""Architectures by name: each file registers what it defines; importing this package registers all."""

from riskaudit.inputs.architectures import convolutional, linear, mlp, model_collections, precode, resnet
from riskaudit.inputs.architectures.registry import architecture_names, get_architecture

__all__ = [
    "architecture_names",
    "convolutional",
    "get_architecture",
    "linear",
    "mlp",
    "model_collections",
    "precode",
    "resnet",
]
