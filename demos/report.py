"""The page about the comparison: ``python -m demos.report runs/demo/metrics.json`` writes report.html and pictures.

Owns the words, the tables and the page; `demos.figures` draws. The page is one file: its style and its pictures stand
in it, and it asks no server for anything. Refuses nothing: a figure that could not be measured is a dash.

Invariant: every number on the page comes from the metrics, and every text from there is escaped.
"""

from __future__ import annotations

import argparse
import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from demos.figures import Metrics, duration, number, save_overview, svg
from edgeseq.budget_curve import BudgetCurve

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, its value (None: a dash), which way is better if any, how it is written."""

    heading: str
    value: Callable[[Figures], float | None]
    best: Callable[[Sequence[float]], float] | None = None
    write: Callable[[float | None], str] = number


def count(value: float | None) -> str:
    """A whole number; a dash for None.

    Example:
        >>> count(12763.5), count(None)
        ('12,764', '–')
    """
    return "–" if value is None else f"{value:,.0f}"


FELT = (
    Column("frames right, %", lambda m: 100 * m["frame_accuracy"], max),
    Column("felt latency, median, s", lambda m: m["felt_latency_s"]["median"], min),
    Column("felt latency, p90, s", lambda m: m["felt_latency_s"]["p90"], min),
    Column("changes never found, %", lambda m: 100 * m["changes_missed_share"], min),
    Column("label flips an hour", lambda m: m["flips_per_hour"], min),
    Column("future samples needed, median", lambda m: m["future_samples"]["median"], min, count),
    Column("future samples needed, most", lambda m: m["future_samples"]["max"], min, count),
)
COST = (
    Column("compute a call, p50, µs", lambda m: m["compute_per_call_us"]["p50"]),
    Column("a call, p99, µs", lambda m: m["compute_per_call_us"]["p99"]),
    Column("a call, p99.9, µs", lambda m: m["compute_per_call_us"]["p99_9"]),
    Column("samples labelled by a call", lambda m: m["samples_per_call"], None, count),
    Column("compute a sample, p50, µs", lambda m: m["compute_per_sample_us"]["p50"], min),
    Column("CPU-seconds an hour of data", lambda m: m["cpu_s_per_hour"], min),
    Column("time in use, %", lambda m: 100 * m["utilisation"], min),
    Column("falls behind, s a second", lambda m: m["falls_behind_s_per_s"]),
    Column("calls measured", lambda m: m["calls_measured"], None, count),
)

BUDGET = (
    Column("delay, slowest, ms", lambda m: m["delay_ms"], None, count),
    Column("delay, mean, ms", lambda m: m["mean_delay_ms"], None, count),
    Column("frames right, %", lambda m: 100 * m["accuracy"], max),
    Column("as the offline model, %", lambda m: 100 * m["agreement"]),
    Column("largest difference", lambda m: m["max_difference"]),
    Column("mean difference", lambda m: m["mean_difference"]),
    Column("compute a sample, p50, µs", lambda m: m["p50_us"], min),
    Column("a sample, p99, µs", lambda m: m["p99_us"]),
    Column("CPU-seconds an hour of data", lambda m: m["cpu_s_per_hour"], min),
)


def table(methods: Sequence[Figures], columns: Sequence[Column]) -> str:
    """A table with one row per method; the best of a column is bold, ties too.

    Example:
        >>> column = Column("late, s", lambda m: m["late"], min)
        >>> print(table([{"name": "a<b", "late": 0.5}, {"name": "c", "late": None}], [column]))
        <div class="scroll"><table>
        <tr><th>method</th><th>late, s</th></tr>
        <tr><th>a&lt;b</th><td><strong>0.500</strong></td></tr>
        <tr><th>c</th><td>–</td></tr>
        </table></div>
    """
    values = [[column.value(method) for column in columns] for method in methods]
    rows = ["<tr><th>method</th>" + "".join(f"<th>{html.escape(c.heading)}</th>" for c in columns) + "</tr>"]
    best = [_best(column, of_all) for column, of_all in zip(columns, zip(*values, strict=True), strict=True)]
    for method, row in zip(methods, values, strict=True):
        words = [column.write(value) for column, value in zip(columns, row, strict=True)]
        cells = "".join(
            f"<td><strong>{w}</strong></td>" if w == top else f"<td>{w}</td>"
            for w, top in zip(words, best, strict=True)
        )
        rows.append(f"<tr><th>{html.escape(str(method['name']))}</th>{cells}</tr>")
    return "\n".join(['<div class="scroll"><table>', *rows, "</table></div>"])


def _best(column: Column, values: Sequence[float | None]) -> str | None:
    """The best value as it is written: two that read the same are equally good."""
    known = [value for value in values if value is not None]
    return column.write(column.best(known)) if column.best and known else None


def headline(metrics: Metrics) -> str:
    """The finding in one sentence, with its numbers."""
    stream = next(m for m in metrics["methods"] if m["key"] == "stream")
    times = metrics["interleaved"]["times_the_step"]
    found = stream["felt_latency_s"]["median"]
    when = "never holds a right label" if found is None else f"shows the right label {duration(found)} after a change"
    spends = f"spends {number(stream['compute_per_sample_us']['p50'])} µs on a sample (medians)"
    return (
        f"The streaming TCN {when} and {spends}; running its window again takes {number(times['window'])} times that "
        f"in ONNX Runtime, {number(times['keras'])} times in Keras predict."
    )


def second_line(metrics: Metrics) -> str:
    """The other side of the trade: the method that is most often right, and what that costs in time."""
    stream = next(m for m in metrics["methods"] if m["key"] == "stream")
    best = max(metrics["methods"], key=lambda m: m["frame_accuracy"])
    stream_right, best_right = (f"{100 * m['frame_accuracy']:.1f}\u00a0%" for m in (stream, best))
    majority_rate = f"{100 * metrics['data']['majority_rate']:.1f}\u00a0%"
    majority = f"Always naming the most frequent exercise would be right in {majority_rate}."
    if best["frame_accuracy"] <= stream["frame_accuracy"]:
        return f"No method is more often right than the stream, in {stream_right} of the frames. {majority}"
    return (
        f"Most often right is “{best['name']}”: {best_right} of the frames against the stream's {stream_right}. Its "
        f"label of a new exercise comes after {duration(best['felt_latency_s']['median'])} (median). {majority}"
    )


def _paragraph(*sentences: str) -> str:
    return f"<p>{' '.join(sentences)}</p>"


def _exactness(metrics: Metrics) -> str:
    exact, turns, pace = metrics["exactness"], metrics["interleaved"], metrics["at_real_pace"]
    us, calls = _each(number, turns["median_us"]), _each(count, turns["calls"])
    return _paragraph(
        f"Over {count(exact['samples'])} samples of unseen subjects the streamed TCN differed from its offline model",
        f"by at most {exact['max_difference_step']:.1g} sample by sample and {exact['max_difference_chunks']:.1g} in",
        f"chunks of random sizes (probabilities; the run stops above {exact['tolerance']:g}).",
        "So the three ways of running the TCN give the same labels, and differ in cost alone.",
    ) + _paragraph(
        f"They took turns on the same samples in one run: a step took {us['step']} µs, the window {us['window']} µs in",
        f"ONNX Runtime and {us['keras']} µs in Keras predict",
        f"(medians of {calls['step']}, {calls['window']} and {calls['keras']} calls).",
        f"At the sensor's real pace, with the processor idle for {1000 * pace['idle_s']:g} ms before each call, a step",
        f"took {number(pace['median_us']['step'])} µs and the window {number(pace['median_us']['window'])} µs,",
        f"{number(pace['times_the_step']['window'])} times as long",
        f"(medians of {count(pace['calls']['step'])} calls).",
    )


def _each(write: Callable[[float | None], str], values: Mapping[str, float]) -> dict[str, str]:
    return {name: write(value) for name, value in values.items()}


def _measured(metrics: Metrics) -> str:
    data, settings, past = metrics["data"], metrics["settings"], metrics["receptive_field"][0]
    return _paragraph(
        f"{data['sessions']} sessions of {len(data['groups'])} people whom no model had seen",
        f"(subjects {', '.join(map(str, data['groups']))}), {data['hours'] * 60:.0f} minutes at {data['rate_hz']:g}",
        f"samples a second, {data['changes']} changes of exercise.",
        "Samples arrive on a simulated clock at the sensor's rate; the compute of the calls is measured, and a call",
        "waits for the one before it.",
        "<b>Felt latency</b> is the time from the first sample of a new exercise until the first right label that then",
        f"holds for {settings['hold_s']:g} s is on the screen; changes never found are counted apart.",
        f"<b>Label flips</b> compare with {number(data['changes_per_hour'])} true changes an hour.",
        f"The TCN looks back {past} samples ({past / data['rate_hz']:.1f} s).",
        f"The BiLSTM's window is {settings['window_s']:g} s; each run labels the samples that came since the last, so",
        "the newest of them has seen no future and the oldest most.",
        "A BiLSTM stream sees a bounded number of later samples; the step that ends a block does the work of all its",
        "labels, and the compute of a sample is its share of the block's.",
        "<b>Time in use</b> is compute divided by the time that the data took; above 100 % a method never catches up.",
        "CPU-seconds count all threads.",
    )


_LIMITS = """<ul>
<li>The compute is that of the machine below, shared with whatever else it ran; it is no edge device. Trust the ratios,
which were measured in one run.</li>
<li>The sessions are spliced from recordings of one exercise each. A joint is abrupt, which makes the change easier to
see than a natural one, and it comes without the pause that a person makes, which makes it harder.</li>
<li>The labels are the models' own, without smoothing. Smoothing trades flips for latency.</li>
<li>The felt latency of the offline run is the wait for the end of the session: it grows with the session. So does that
of a method which falls behind.</li>
<li>Keras predict and the TCN's window in ONNX Runtime were run on a part of the samples. Their outputs equalled the
stream's there, so its labels stand for theirs, with compute drawn from the measured calls.</li>
<li>A dash stands where there were too few calls for that percentile.</li>
</ul>"""


def _machine(metrics: Metrics) -> str:
    machine, seeds = metrics["machine"], metrics["seeds"]
    versions = ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; models run on one thread in ONNX Runtime, "
        "Keras as it comes",
        versions,
        *(_model_words(name, model) for name, model in metrics["models"].items()),
        "seeds: " + ", ".join(f"{name} {seed}" for name, seed in seeds.items()),
    ]
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _model_words(name: str, model: Figures) -> str:
    sizes = ", ".join(f"{file} {size / 1000:,.0f} kB" for file, size in model["file_bytes"].items())
    return (
        f"{name}: {model['parameters']:,} parameters, trained in {model['train_s']:.0f} s "
        f"({model['epochs_run']} epochs, seed {model['seed']}); {sizes}"
    )


def render(metrics: Metrics) -> str:
    """The whole page as one HTML document."""
    body = "\n".join([*_finding(metrics), *_evidence(metrics), *_small_print(metrics)])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>edgeseq: how late is a label, and what does it cost?</title><style>{_CSS}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _finding(metrics: Metrics) -> list[str]:
    return [
        f"<h1>{html.escape(headline(metrics))}</h1>",
        f'<p class="lead">{html.escape(second_line(metrics))}</p>',
        _figure(metrics, "trade_off", "Up and to the left is better. The cost is that of one hour of sensor data."),
    ]


def _evidence(metrics: Metrics) -> list[str]:
    seen = (
        "Each band shows the label on the screen at that moment, not the label that the method gave to that moment "
        "later: where a colour starts late, the person waited. The two dashed changes were picked by a rule: the pair "
        "whose felt latencies in the stream are nearest to its median. The lines above are the first three channels, "
        "in the sensor's own units."
    )
    compute = (
        "Point: median. Bar: the middle half of the calls. Line: from the 1st to the 99th percentile, where enough "
        "calls were measured. The compute of a call is shared by the samples that it labels."
    )
    return [
        "<h2>What a person feels</h2>",
        table(metrics["methods"], FELT),
        _figure(metrics, "timeline", seen) if metrics["timeline"] else "",
        "<h2>What it costs</h2>",
        table(metrics["methods"], COST),
        _figure(metrics, "compute", compute),
        *_waiting(metrics),
        "<h2>The same labels</h2>",
        _exactness(metrics),
    ]


def _waiting(metrics: Metrics) -> list[str]:
    """The budget's curve: what each way of letting the BiLSTM wait gives and costs."""
    curve = BudgetCurve.from_dict(metrics["budget"])
    caption = (
        "The same trained BiLSTM, given a bounded lookahead by edgeseq streamify. Every point is one lookahead and one "
        "size of the blocks in which labels come; the delay is that of the slowest label."
    )
    words = (
        "A stream with a bounded lookahead is an approximation of the offline model: its backward half sees so many "
        "later samples, and no more."
    )
    return [
        "<h2>What waiting buys</h2>",
        _figure(metrics, "budget", caption),
        table([asdict(row) for row in curve.rows], BUDGET),
        _paragraph(words, html.escape(curve.verdict[:1].upper() + curve.verdict[1:]) + "."),
    ]


def _small_print(metrics: Metrics) -> list[str]:
    return [
        "<h2>How it was measured</h2>",
        _measured(metrics),
        _definitions({m["name"]: m["how"] for m in metrics["methods"]}),
        "<h2>What it does not say</h2>",
        _LIMITS,
        "<h2>Machine, versions, models</h2>",
        _machine(metrics),
        "<p>Run it yourself: <code>make demo</code>, or on models that you have "
        "<code>python -m demos.latency runs/demo/models -o runs/demo</code>.</p>",
    ]


def _definitions(words: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in words.items()) + "</dl>"


def _figure(metrics: Metrics, which: str, caption: str) -> str:
    words, picture = html.escape(caption), svg(metrics, which)
    return (
        f'<figure><div class="scroll picture" role="img" aria-label="{words}">{picture}</div>'
        f"<figcaption>{words}</figcaption></figure>"
    )


_CSS = """
:root { color: #1a1a1a; background: #fff; font: 17px/1.55 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif }
body { margin: 0 }
main { max-width: 1100px; margin: 0 auto; padding: 2.2rem 1.2rem 4rem }
h1 { font-size: clamp(1.35rem, 1rem + 1.6vw, 1.9rem); line-height: 1.22; margin: 0 0 .8rem; letter-spacing: -.01em }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .7rem }
p, ul, dl { max-width: 46rem }
.lead { font-size: 1.1rem; color: #444 }
li { margin: .35rem 0 }
dt { font-weight: 600 }
dd { margin: 0 0 .5rem }
code { background: #f3f3f3; padding: .1em .35em; border-radius: 3px; font-size: .9em }
figure { margin: 1.6rem 0 }
figcaption { color: #555; font-size: .92rem; max-width: 46rem }
.scroll { overflow-x: auto }
.picture svg { display: block; width: 100%; min-width: 680px; height: auto }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; width: 100% }
th, td { padding: .42rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4 }
tr:first-child th { vertical-align: bottom; font-weight: 500; color: #555; white-space: normal; min-width: 3.9rem;
  line-height: 1.25; border-bottom: 1.5px solid #1a1a1a }
th:first-child { text-align: left; position: sticky; left: 0; background: #fff; font-weight: 600 }
td strong { font-weight: 700; box-shadow: inset 0 -.14em #56B4E9 }
""".strip()


def write_report(metrics: Metrics, out: Path) -> None:
    """Write report.html, latency.png and budget.png into a folder that exists."""
    (out / "report.html").write_text(render(metrics), encoding="utf-8")
    save_overview(metrics, out / "latency.png", headline(metrics))
    BudgetCurve.from_dict(metrics["budget"]).save_plot(out / "budget.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report of a metrics.json beside it; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m demos.report", description="Draw the report of a comparison.")
    parser.add_argument("metrics", type=Path, help="metrics.json, as demos.latency writes it")
    options = parser.parse_args(arguments)
    write_report(json.loads(options.metrics.read_text(encoding="utf-8")), options.metrics.parent)
    print(options.metrics.parent / "report.html")


if __name__ == "__main__":
    main()
