"""Decoding on all cores, one image at a time on each, with results in order and the bits of a single thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from dynammo_core.data.decoded.progress import Counter
from dynammo_core.support.processes import usable_cores

T = TypeVar("T")
MOST_WORKERS = 16
"""More threads would decode little faster, and an image of 12 megapixels takes each of them 100 MB."""
AHEAD = 4
"""Images, for each thread, that may wait for their turn: a slow consumer must not let them pile up."""


def in_order(read: Callable[[int], T], indices: Sequence[int], workers: int | None = None) -> Iterator[T]:
    """Yield `read(index)` for each index, in order, computed by several threads.

    Args:
        read: decodes one image; called from several threads at once.
        indices: of the images.
        workers: threads; all usable cores by default, up to `MOST_WORKERS`.

    Raises:
        DataError: what `read` raises, of the first image in order that cannot be read.
    """
    workers = workers or min(usable_cores(), MOST_WORKERS)
    counter, waiting = Counter(len(indices)), deque[Future[T]]()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for index in indices:
                waiting.append(pool.submit(read, index))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.popleft().result()
                    counter.advance()
            while waiting:
                yield waiting.popleft().result()
                counter.advance()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
