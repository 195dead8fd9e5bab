"""Demonstrations on real data: what edgeseq's models do, and what they cost. Run one with ``python -m demos.NAME``."""
