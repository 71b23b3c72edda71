"""Operators and solvers that know nothing of models, batched over samples.

Registries: `EIGENVALUE_SOLVERS` (``solver``) and `INVERSE_SOLVERS` (``inverse``).
"""

from riskaudit.linalg.active import Deadline
from riskaudit.linalg.krylov.blocks import BlockProbe, BlockTraces, by_block
from riskaudit.linalg.krylov.certificates import lower_end, upper_end
from riskaudit.linalg.krylov.deflation import Deflation, deflatable
from riskaudit.linalg.krylov.exponentials import Strengths, share_ends_by_exponentials
from riskaudit.linalg.krylov.lanczos import Finished, KrylovSpace, Lanczos, lanczos, largest_error
from riskaudit.linalg.krylov.preconditioned import PreconditionedOperator, RitzPreconditioner, least_solution_norm
from riskaudit.linalg.krylov.quadrature import InverseForms, Quadrature, inverse_forms
from riskaudit.linalg.krylov.traces import TraceProbes, effective_dimension_bounds, form_high, trace_interval
from riskaudit.linalg.krylov.tridiagonal import RitzPairs, Tridiagonal
from riskaudit.linalg.mixed_precision import MEASURING_PRODUCTS, MeasuredRounding, MixedPrecisionOperator
from riskaudit.linalg.operators import GramOperator, LinearOperator, MatrixOperator, watching_products
from riskaudit.linalg.solution import Interval, Solution
from riskaudit.linalg.solvers.conjugate_gradient import ConjugateGradient
from riskaudit.linalg.solvers.dense import Dense, DenseInverse, Spectrum
from riskaudit.linalg.solvers.eigenvalues import EIGENVALUE_SOLVERS, EigenvalueSolver
from riskaudit.linalg.solvers.inverses import INVERSE_SOLVERS, InverseSolver
from riskaudit.linalg.solvers.power import Power
from riskaudit.linalg.solvers.richardson import LeastSquares, Neumann

__all__ = [
    "EIGENVALUE_SOLVERS",
    "INVERSE_SOLVERS",
    "MEASURING_PRODUCTS",
    "BlockProbe",
    "BlockTraces",
    "ConjugateGradient",
    "Deadline",
    "Deflation",
    "Dense",
    "DenseInverse",
    "EigenvalueSolver",
    "Finished",
    "GramOperator",
    "Interval",
    "InverseForms",
    "InverseSolver",
    "KrylovSpace",
    "Lanczos",
    "LeastSquares",
    "LinearOperator",
    "MatrixOperator",
    "MeasuredRounding",
    "MixedPrecisionOperator",
    "Neumann",
    "Power",
    "PreconditionedOperator",
    "Quadrature",
    "RitzPairs",
    "RitzPreconditioner",
    "Solution",
    "Spectrum",
    "Strengths",
    "TraceProbes",
    "Tridiagonal",
    "by_block",
    "deflatable",
    "effective_dimension_bounds",
    "form_high",
    "inverse_forms",
    "lanczos",
    "largest_error",
    "least_solution_norm",
    "lower_end",
    "share_ends_by_exponentials",
    "trace_interval",
    "upper_end",
    "watching_products",
]
