"""J of a release by its layers: shared weights, all samples of a batch at once, no vector of the parameters' size."""

from riskaudit.jacobian.structured.operator import StructuredJacobian
from riskaudit.jacobian.structured.recording import UnsupportedLayer
from riskaudit.jacobian.structured.signals import Layout, find_layout

__all__ = ["Layout", "StructuredJacobian", "UnsupportedLayer", "find_layout"]
