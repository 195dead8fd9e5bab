"""The fast form of a step graph: one sample of each stream at a call, on ring buffers."""
