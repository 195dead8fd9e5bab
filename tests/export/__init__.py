"""Tests of edgeseq.export, and the catalogue of model families."""
