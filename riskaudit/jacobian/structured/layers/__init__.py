"""Layers whose part in H v is known: a contraction each, and the functions of torch that they stand for."""
