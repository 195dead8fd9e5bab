"""Shared by the tests of sockets: what a test leaves open is that test's failure."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture
def nothing_left_open() -> Iterator[None]:
    """Collect what is left, so that a socket that nobody closed is a warning, and so an error, of its own test."""
    yield
    gc.collect()
