"""Attention is opened down to its projections, which are linear layers."""

from __future__ import annotations

import torch.nn.functional as F

from riskaudit.jacobian.structured.registry import register_composite

register_composite(F.multi_head_attention_forward)
