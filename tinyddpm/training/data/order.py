"""Which images are held out, which stand in for those that were left out, and reading ahead in an order that is known."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["is_held_out", "read_ahead", "rows_before"]

_GOLDEN = 0.6180339887498949


def is_held_out(numbers: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Whether the images of these numbers are held out, which is the same whatever others there are."""
    return numbers * _GOLDEN % 1 >= 1 - share


def rows_before(numbers: NDArray[np.int64], left_out: int, count: int, held_out: float) -> NDArray[np.int64] | None:
    """The rows that stand for the `count` images to train on before `left_out` of all were: each its own, or the next one's.

    `numbers` are those of the images that there are. None if the missing ones were not left out.
    """
    if count <= len(numbers):
        return None
    before = np.arange(count + left_out + int(count * held_out / (1 - held_out)) + 2)
    before = before[~is_held_out(before, held_out)][:count]
    return np.searchsorted(numbers, before) % len(numbers) if np.isin(numbers, before).all() else None


def read_ahead(
    read: Callable[[Any], NDArray[np.float32]], orders: Iterable[Any], ahead: int
) -> Generator[NDArray[np.float32], None, None]:
    """What `read` gives for each of `orders`; a thread reads so many ahead."""
    if not ahead:
        yield from map(read, orders)
        return
    waiting = deque[Future[NDArray[np.float32]]]()
    with ThreadPoolExecutor(1, "tinyddpm-reader") as thread:
        try:
            for rows in orders:
                waiting.append(thread.submit(read, rows))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
