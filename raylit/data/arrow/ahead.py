"""Making items ahead in a thread, while those before are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """Make some items in a thread while those before are used; begins at once.

    Args:
        items: what is made, one after the other.
        depth: how many at most are made and not yet used.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="raylit-data")
    futures = deque(pool.submit(next, items, None) for _ in range(depth))
    return _given(pool, futures, items)


def _given(
    pool: ThreadPoolExecutor, futures: deque[Future[T | None]], items: Iterator[T]
) -> Iterator[T]:
    try:
        while (item := futures.popleft().result()) is not None:
            futures.append(pool.submit(next, items, None))
            yield item
            del item  # else it would be in memory beside the next
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
