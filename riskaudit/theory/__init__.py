"""What theorems say of attacks on special networks, beside the exact numbers: for study, never as protection."""

from riskaudit.theory.two_layer import LowerBounds, Problem, Slopes, fit_slopes, lower_bounds

__all__ = ["LowerBounds", "Problem", "Slopes", "fit_slopes", "lower_bounds"]
