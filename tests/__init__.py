"""Tests; a package, so that `tests.export.families` is ours and not that of some installed package."""
