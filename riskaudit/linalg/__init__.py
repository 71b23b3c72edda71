"""Operators and solvers that know nothing of models, batched over samples.

Registries: `EIGENVALUE_SOLVERS` (``--solver``) and `INVERSE_SOLVERS` (``--inverse``).
"""

from riskaudit.linalg.conjugate_gradient import ConjugateGradient
from riskaudit.linalg.dense import Dense, DenseInverse, Spectrum
from riskaudit.linalg.eigenvalues import EIGENVALUE_SOLVERS, EigenvalueSolver
from riskaudit.linalg.inverses import INVERSE_SOLVERS, InverseSolver
from riskaudit.linalg.lanczos import Lanczos, LanczosProcess, RitzPairs
from riskaudit.linalg.least_squares import LeastSquares
from riskaudit.linalg.neumann import Neumann
from riskaudit.linalg.operators import GramOperator, LinearOperator, MatrixOperator
from riskaudit.linalg.power import Power
from riskaudit.linalg.solution import Solution

__all__ = [
    "EIGENVALUE_SOLVERS",
    "INVERSE_SOLVERS",
    "ConjugateGradient",
    "Dense",
    "DenseInverse",
    "EigenvalueSolver",
    "GramOperator",
    "InverseSolver",
    "Lanczos",
    "LanczosProcess",
    "LeastSquares",
    "LinearOperator",
    "MatrixOperator",
    "Neumann",
    "Power",
    "RitzPairs",
    "Solution",
    "Spectrum",
]
