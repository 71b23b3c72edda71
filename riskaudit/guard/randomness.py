"""Randomness that nobody can repeat: noise that can be drawn again can be taken off again."""

from __future__ import annotations

import secrets

import torch


def fresh_generator() -> torch.Generator:
    """A CPU generator seeded from the system's randomness."""
    return torch.Generator().manual_seed(secrets.randbits(63))
