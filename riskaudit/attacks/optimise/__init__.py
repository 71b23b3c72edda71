"""How attacks search, from the outside in. An attack by descent chooses one of each and calls `search.reconstruct`.

search               the course of every attack by descent: labels, starts, one minimisation, the best row per sample
starts               first guesses
objectives           matching distance plus weighted regularisers at R guesses: value and gradient
sampling             what an objective draws anew at every step: points of a ball, noise on the gradient
regularisers         what is penalised: total variation, the prior, pixels out of range, batch-norm statistics
minimisers           what minimisers share: rows that stop on their own
descent, lbfgs       Adam (signed or not), and L-BFGS
levenberg_marquardt  for ``gauss_newton`` and ``local``, which solve the matching problem itself
curvature            what its steps know of where the search has been
plain_coordinates    its descent where the prior's coordinates would make products stall
"""
