"""Arithmetic below the public formulas: double-double numbers, the weights of a pair (t, s), the decoder's bins."""
