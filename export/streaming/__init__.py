"""From an offline graph to its step graph: the analysis, and one rule per operator."""
