"""The contract check: whether a stream file equals its offline model, for any chunking."""
