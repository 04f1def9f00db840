"""A schedule of your own: `schedules.from_alpha_bar` computes the betas of any alpha_bar, accurate to the last digits.

Here log SNR falls linearly, so that every octave of noise has the same number of steps. alpha_bar is the sigmoid of log SNR.
"""

from __future__ import annotations

import numpy as np

from tinyddpm import Diffusion, schedules


def straight(T: int, first: float = 10.0, last: float = -10.0) -> Diffusion:
    """Return the process of T steps whose log SNR falls linearly from `first` at t = 1 to `last` at t = T."""
    log_snr = np.linspace(first, last, T)
    return Diffusion(schedules.from_alpha_bar(1 / (1 + np.exp(-log_snr))))


def main() -> None:
    """Print the log SNR of a process of 50 steps."""
    d = straight(50)
    gaps = np.diff(d.log_snr[1:])
    print(d)
    print(f"log SNR from {d.log_snr[1]:.3f} to {d.log_snr[-1]:.3f}, in steps of {gaps.min():.6f} to {gaps.max():.6f}")


if __name__ == "__main__":
    main()
