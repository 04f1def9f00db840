"""Diffusion mathematics you can trust, on whatever array library you have.

`Diffusion` holds the known process, `Denoiser` reads a network, `Gaussian` is what both give. Time is the paper's:
``x_0`` is data, ``x_T`` is noise, steps are ``t = 1..T``. Importing this loads NumPy only.
"""
