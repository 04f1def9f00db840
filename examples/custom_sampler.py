"""A sampler of your own, made from the library's tables: DPM-Solver++(2S), with two network calls for each step.

Let a = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar) and lambda = log(a / sigma). A step from t to s with constant x_0 is
x_s = sigma_s/sigma_t x_t - a_s expm1(lambda_t - lambda_s) x_0. A second prediction of x_0, half-way between t and s, makes
the step second order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyddpm import Denoiser, Diffusion
from tinyddpm.analytic import GaussianData


def two_stage(d: Diffusion, denoiser: Denoiser, x: Any, steps: int) -> Any:
    """Return x_0, computed from x = x_T, an array (n, ...) of any library, in `steps` steps."""
    a, sigma, lam = d.sqrt_alpha_bar, d.sqrt_one_minus_alpha_bar, d.log_snr / 2

    def step(x: Any, x0: Any, t: int, s: int) -> Any:
        return float(sigma[s] / sigma[t]) * x - float(a[s] * np.expm1(lam[t] - lam[s])) * x0

    plan = d.timesteps(steps, spacing="log_snr")
    for t, s in zip(plan[:-1], plan[1:], strict=True):
        x0 = denoiser.x0(d, x, t)
        if 0 < s < t - 1:
            r = s + 1 + int(np.argmin(abs(lam[s + 1 : t] - (lam[s] + lam[t]) / 2)))  # nearest to half-way in log SNR
            g = float((lam[s] - lam[t]) / (lam[r] - lam[t])) / 2
            x0 = (1 - g) * x0 + g * denoiser.x0(d, step(x, x0, t, r), r)
        x = step(x, x0, t, s)
    return x


def main() -> None:
    """Compare the sampler with DDIM on Gaussian data, at the same number of network calls."""
    d, data = Diffusion(), GaussianData(mean=np.array([0.3, -0.2]), var=np.array([0.01, 0.04]))
    denoiser = Denoiser(data.net(d), clip_x0=False)
    x_T = np.random.default_rng(0).standard_normal((1000, 2))
    truth = d.sample(denoiser, x_T.shape, x_T=x_T, sampler="unipc")  # all 1000 steps
    for steps in (5, 10, 20):
        options: dict[str, Any] = {"timesteps": d.timesteps(2 * steps, "log_snr"), "sampler": "ddim"}
        ours, ddim = two_stage(d, denoiser, x_T, steps), d.sample(denoiser, x_T.shape, x_T=x_T, **options)
        print(f"{2 * steps:3} calls: error {abs(ours - truth).max():.1e}, DDIM's {abs(ddim - truth).max():.1e}")


if __name__ == "__main__":
    main()
