"""One call at a time: what a stream's state needs, and what costs no more than a lock that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from edgeseq.errors import StreamBusyError

_Args = TypeVarTuple("_Args")
_R = TypeVar("_R")


class Guard:
    """Lets one call in, and refuses others meanwhile: from other threads, and from a signal handler of this one.

    Whatever ends a call frees the guard, an interrupt at any moment too.

    Example:
        >>> guard = Guard()
        >>> guard.run("stream 'pump-7'", abs, -1)
        1
        >>> guard.run("stream 'pump-7'", lambda: guard.run("stream 'pump-7'", abs, -1))
        Traceback (most recent call last):
        edgeseq.errors.StreamBusyError: stream 'pump-7': ...
    """

    __slots__ = ("_inside", "_lock")

    def __init__(self) -> None:
        # It knows its owner, so whoever does not own it cannot free it: an interrupt may come between two lines below.
        self._lock = threading.RLock()
        self._inside = False

    def run(self, who: object, call: Callable[[*_Args], _R], *args: *_Args) -> _R:
        """``call(*args)``, alone. ``who`` is for the error.

        Raises:
            StreamBusyError: another call is inside. It goes on undisturbed, and this one did nothing.
        """
        inside = True
        try:
            if not self._lock.acquire(False):
                raise _busy(who)
            inside = self._inside
            if inside:
                raise _busy(who)
            self._inside = True
            result = call(*args)
            return result  # an interrupt behind the call must still be inside of the try
        finally:
            if not inside:
                self._inside = False
            try:  # noqa: SIM105 (contextlib.suppress would cost as much as all the rest)
                self._lock.release()
            except RuntimeError:  # it was not ours
                pass


def _busy(who: object) -> StreamBusyError:
    return StreamBusyError(
        f"{who}: another call is under way, in another thread or a signal handler; "
        "use a stream from one thread at a time, or put a lock around it"
    )
