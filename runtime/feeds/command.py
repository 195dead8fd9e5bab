"""``edgeseq run``: a run with its signals, metrics and live view."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack

from rich.console import Console

from edgeseq.errors import ConfigError
from edgeseq.runtime.clock import SensorClock
from edgeseq.runtime.feeds.address import Address
from edgeseq.runtime.feeds.metrics import serve_metrics
from edgeseq.runtime.feeds.registry import open_feed, open_sink
from edgeseq.runtime.feeds.report import RunReport
from edgeseq.runtime.feeds.runner import Run, RunSettings
from edgeseq.runtime.feeds.view import live_view
from edgeseq.runtime.model import Model


def make_clock(model: Model, rate_hz: float | None, **policies: object) -> SensorClock:
    """The clock that the options of the command line ask for, at the model's rate or at ``rate_hz``.

    Raises:
        ConfigError: nobody says the rate, or the options do not fit together.
    """
    rate = rate_hz or model.rate_hz
    if rate is None:
        raise ConfigError(f"run: the model {model.name!r} does not say its rate; give --rate-hz")
    chosen = {name: value for name, value in policies.items() if value is not None}
    return SensorClock(rate_hz=rate, **chosen)  # type: ignore[arg-type]


def run_until_stopped(model: Model, feed: str, sink: str, settings: RunSettings, *, metrics: str | None) -> RunReport:
    """Run until the feed ends, or SIGTERM or SIGINT comes: then what was read goes out, and the state is kept."""
    where_to = Address.parse(sink)
    run = Run(model, open_feed(feed, model), open_sink(where_to), settings)
    quiet = where_to.path == "-" or not sys.stdout.isatty()
    return asyncio.run(_run(run, metrics=metrics, view=not quiet))


async def _run(run: Run, *, metrics: str | None, view: bool) -> RunReport:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, run.stop)
    async with AsyncExitStack() as stack:
        if metrics is not None:
            server = await serve_metrics(metrics, lambda: run.now().prometheus())
            stack.callback(server.close)
        if view:
            await stack.enter_async_context(live_view(run.now, Console()))
        return await run


def tell(kind: str, message: str, n: int) -> None:
    """Say on stderr what was refused: the first of each kind, the 10th, the 100th and so on."""
    if str(n).strip("0") == "1":
        print(f"edgeseq: {kind} {n}: {message}", file=sys.stderr, flush=True)
