"""Exact values that the library's own oracle, `tinyddpm.verify._truth`, does not need: in decimal arithmetic as well."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np

Matrix = list[list[Decimal]]


def kl_full(mean1: Any, cov1: Any, mean2: Any, cov2: Any) -> Decimal:
    """[log|S2|/|S1| - d + tr(S2^-1 S1) + (m2 - m1)^T S2^-1 (m2 - m1)] / 2."""
    s1, s2 = ([[Decimal(float(c)) for c in row] for row in np.asarray(cov)] for cov in (cov1, cov2))
    gap = [Decimal(float(m2)) - Decimal(float(m1)) for m1, m2 in zip(mean1, mean2, strict=True)]
    solved, det2 = _solve(s2, [[*row, g] for row, g in zip(s1, gap, strict=True)])
    _, det1 = _solve(s1, [[] for _ in s1])
    d = len(gap)
    trace = sum(solved[i][i] for i in range(d))
    return ((det2 / det1).ln() - d + trace + sum(gap[i] * solved[i][d] for i in range(d))) / 2


def _solve(a: Matrix, b: Matrix) -> tuple[Matrix, Decimal]:
    """a^-1 b and det(a) of a positive definite `a`, by Gauss and Jordan's elimination."""
    rows, det = [[*left, *right] for left, right in zip(a, b, strict=True)], Decimal(1)
    for i in range(len(rows)):
        det *= rows[i][i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for j in range(len(rows)):
            if j != i:
                rows[j] = [x - rows[j][i] * y for x, y in zip(rows[j], rows[i], strict=True)]
    return [row[len(a) :] for row in rows], det
