"""What a model costs on this machine, beside other ways to run it: ``edgeseq bench`` (docs/performance.md).

``runner.measure`` is the command as a function. Rows are cases in the registries of ``cases``, ``peers`` and
``figures``; each runs in a process of its own (``worker``), and the parent goes round them in blocks, so that a clock
that drifts hits all of them alike. This package imports nothing by itself: a worker imports what its own case needs.
"""
