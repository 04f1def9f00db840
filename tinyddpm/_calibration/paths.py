"""The plan of least cost, exactly, by dynamic programming [Watson et al. 2021].

``costs[t, s]`` is the cost of the step from t to s >= 1, infinite unless t > s, and ``last[t]`` that of the step from t to 0;
``last[0]`` is infinite.
"""

from __future__ import annotations

import numpy as np

from tinyddpm._arrays.namespace import Table


def shortest(costs: Table, last: Table) -> tuple[int, ...]:
    """The best plan of any length."""
    best, ends = last.copy(), np.zeros(len(last), np.int64)
    for t in range(2, len(last)):
        through = costs[t, :t] + best[:t]
        s = int(np.argmin(through))
        if through[s] < best[t]:
            best[t], ends[t] = through[s], s
    plan = [len(last) - 1]
    while plan[-1]:
        plan.append(int(ends[plan[-1]]))
    return tuple(plan)


def of_length(costs: Table, last: Table, steps: int) -> tuple[int, ...]:
    """The best plan of so many steps: k steps from t are a step to some s and the best k - 1 from there."""
    best, ends, through = last, [], np.empty_like(costs)
    rows = np.arange(len(last))
    for _ in range(steps - 1):
        np.add(costs, best, out=through)
        ends.append(through.argmin(axis=1).astype(np.int32))
        best = through[rows, ends[-1]]
    plan = [len(last) - 1]
    for end in reversed(ends):
        plan.append(int(end[plan[-1]]))
    return (*plan, 0)
