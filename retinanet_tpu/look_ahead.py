"""Bounded look-ahead over a thread pool."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_ordered(
    workers: concurrent.futures.Executor,
    fn: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    ahead: int,
) -> Iterator[_Result]:
    """Yields the result of each item in order, computed ahead in threads.

    Executor.map submits all items at once. This function holds at most `ahead` + 1 of
    them and their results in memory.

    Args:
      workers: The threads that call the function.
      fn: The function of one item. It must be thread-safe. Its exceptions are raised
        here, in the place of the result.
      items: The arguments of the function, read one by one in the caller's thread.
      ahead: The number of items that are submitted before the first result is awaited.
    """
    pending: collections.deque[concurrent.futures.Future[_Result]] = collections.deque()
    for item in items:
        pending.append(workers.submit(fn, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
