"""Architectures by name: each file registers what it defines; importing this package registers all."""

from riskaudit.inputs.architectures import convbig, convnet, lenet, mlp, model_collections, resnet
from riskaudit.inputs.architectures.registry import architecture_names, get_architecture

__all__ = [
    "architecture_names",
    "convbig",
    "convnet",
    "get_architecture",
    "lenet",
    "mlp",
    "model_collections",
    "resnet",
]
