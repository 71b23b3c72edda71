"""Speed and memory of H = J^T J products, and of what is computed with them, beside published ways to do it.

``python -m benchmarks.operator`` compares one product, ``python -m benchmarks.scan`` the largest eigenvalue,
streams of samples and dense spectra. Both print Markdown tables. Machines are noisy, so every number is a
median over rounds in which the contestants take turns, and what is compared is their ratio within a round.
"""
