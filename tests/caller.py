"""A caller's twelve mistakes, one a line, for tests/test_caller_types.py; type checkers read this file, nothing runs it."""

import numpy as np

from tinyddpm import Denoiser, Diffusion, losses

d = Diffusion()
x = np.zeros((2, 3))
den = Denoiser(lambda x_t, t: x_t)
den.variance + 1  # mistake
d.sample(den, (2, 3), sampler="euler")  # mistake
Denoiser(lambda x_t, t: x_t, predicts="epsilon")  # mistake
d.convert(x, x, 3, "eps", "x_0")  # mistake
losses.weighted(d, den, x, 3, x, "best")  # mistake
d.timesteps(5, "odd")  # mistake
d.q_sample("x0", 3, x)  # mistake
d.q_sample(x, 1.5, x)  # mistake
d.q_sample(x, 3)  # mistake
d.sample(lambda x_t, t: x_t, (2, 3))  # mistake
d.sample(den, (2, 3), step=10)  # mistake
d.betas  # mistake
reveal_type(d.q_sample(x, 3, x))
