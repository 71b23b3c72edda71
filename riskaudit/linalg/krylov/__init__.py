"""Lanczos and what its coefficients certify: Ritz values, quadratures and traces with intervals."""
