"""Solvers: eigenvalues and inverses of batched operators, one file each beside its registry."""
