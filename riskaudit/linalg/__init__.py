"""Operators and solvers that know nothing of models, batched over samples.

Registries: `EIGENVALUE_SOLVERS` (``--solver``) and `INVERSE_SOLVERS` (``--inverse``).
"""

from riskaudit.linalg.active import Deadline
from riskaudit.linalg.certificates import lower_end, upper_end
from riskaudit.linalg.conjugate_gradient import ConjugateGradient
from riskaudit.linalg.dense import Dense, DenseInverse, Spectrum
from riskaudit.linalg.eigenvalues import EIGENVALUE_SOLVERS, EigenvalueSolver
from riskaudit.linalg.inverses import INVERSE_SOLVERS, InverseSolver
from riskaudit.linalg.lanczos import KrylovSpace, Lanczos, lanczos, largest_error
from riskaudit.linalg.least_squares import LeastSquares
from riskaudit.linalg.neumann import Neumann
from riskaudit.linalg.operators import GramFactor, GramOperator, LinearOperator, MatrixOperator
from riskaudit.linalg.power import Power
from riskaudit.linalg.quadrature import InverseForms, Quadrature, inverse_forms
from riskaudit.linalg.solution import Interval, Solution
from riskaudit.linalg.traces import TraceProbes, deflatable, effective_dimension_bounds, trace_interval
from riskaudit.linalg.tridiagonal import RitzPairs, Tridiagonal
from riskaudit.linalg.weighted_traces import WeightedTraces

__all__ = [
    "EIGENVALUE_SOLVERS",
    "INVERSE_SOLVERS",
    "ConjugateGradient",
    "Deadline",
    "Dense",
    "DenseInverse",
    "EigenvalueSolver",
    "GramFactor",
    "GramOperator",
    "Interval",
    "InverseForms",
    "InverseSolver",
    "KrylovSpace",
    "Lanczos",
    "LeastSquares",
    "LinearOperator",
    "MatrixOperator",
    "Neumann",
    "Power",
    "Quadrature",
    "RitzPairs",
    "Solution",
    "Spectrum",
    "TraceProbes",
    "Tridiagonal",
    "WeightedTraces",
    "deflatable",
    "effective_dimension_bounds",
    "inverse_forms",
    "lanczos",
    "largest_error",
    "lower_end",
    "trace_interval",
    "upper_end",
]
