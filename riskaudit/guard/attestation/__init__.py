"""Attestation: is what is about to leave what was declared?

- `declaration`: what was declared, and `lint`: what in it is hardly meant.
- `vectors`: what is about to leave, as it lies in its file; `contract`: what may be in it.
- `norms`, `noise`: the tests, with their error rates; `parts`: the entries that they are of.
- `attest`: all of it on one upload; `leaving`: the same in a guard's review.
"""
