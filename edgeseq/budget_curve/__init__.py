"""The budget curve: what every step of delay buys for a bidirectional model on one's own data, and what it costs.

`budget` streams the model with each pair of a lookahead and a chunk, and measures how near the outputs come to the
offline model's, how often they are right, how late they are, and the compute of a sample. `sequences` reads the data,
`replay` runs and times, `curve` holds the result and chooses, `plot` draws.

The package is not named after the function: ``edgeseq.budget`` is the function, and a module of that name would take
its place once it is imported.
"""

from edgeseq.budget_curve.curve import BudgetCurve, Row
from edgeseq.budget_curve.run import budget

__all__ = ["BudgetCurve", "Row", "budget"]
