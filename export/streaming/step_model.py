"""From an offline ONNX graph to its streaming step graph.

``streamify`` walks the offline graph and lets the rule of each operator write its step form. Refuses a graph that has
no exact step form, naming the node, the reason and a way out. The law: the rows that the step graph gives, one chunk
after another, but for the first ``delay`` ones, equal the offline model's rows (``law="equal"``), or, behind a pool or
a last-step selection, its output on the samples so far (``law="prefix"``); chunks have any multiple of ``granule``
samples.

The graph is walked several times: once to learn the granule, once for each phase to learn which one gives outputs
soonest and how deep the masks must reach, once to learn how long the histories are that share a state, and once to
write it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgeseq.errors import ConfigError, NotStreamableError
from edgeseq.export.graph.edit import constant
from edgeseq.export.streaming.axes import is_batch_size
from edgeseq.export.streaming.merged_rules import MERGED
from edgeseq.export.streaming.registry import REARRANGE
from edgeseq.export.streaming.rules import RULES, Argument
from edgeseq.export.streaming.step_graph import BlockSizes, Plan, StepGraph, TimeAxis, Timed, refuse
from edgeseq.export.streaming.time_axis import Axes, Reading, TimeAxes, arranged, described, names_settle, readings
from edgeseq.export.streaming.windows import due
from edgeseq.fast_form import FastForm
from edgeseq.lookahead import Lookahead
from edgeseq.model_file import Law, StateSpec, Timing

_KEPT = {ir.DataType.FLOAT, ir.DataType.BOOL, None}
_PHASES = 64  # of a granule longer than this, the first ones are tried
_TAKES_WHAT_IS_BEFORE = {"Conv", "MaxPool", "AveragePool", "Slice", "Transpose", "Squeeze", "Unsqueeze"}
_LONGEST = 100_000  # samples until which a model is looked for to be defined
_MOST = 100_000  # of an option: what is kept, or run at once, must fit into memory


@dataclass(frozen=True)
class StepModel:
    """A step graph and what the analysis found out about it; see ``edgeseq.model_file`` for the fields."""

    model: ir.Model
    timings: tuple[Timing, ...]
    state: tuple[StateSpec, ...]
    granule: int
    phase: int
    cuts: tuple[int, ...]
    end: str | None
    lookahead: Lookahead | None = None
    axes: Mapping[str, Axes] = field(default_factory=dict)
    settled: int = 0  # rows from which on nothing stands before the sequence any more, in any tensor that is masked
    fast: FastForm | None = None
    not_fast: str | None = None


@dataclass(frozen=True)
class Options:
    """What the user promises or asks for.

    ``pooling_window``: a pool over time sees its last so many rows alone; the law of such an output is "window".
    ``length_modulo=(modulus, remainder)``: every sequence has ``remainder`` samples modulo ``modulus``, so that "same"
    padding with a stride streams. The file keeps the promise, and a stream that was fed another number of samples
    refuses to flush; its rows until then are those of a sequence that keeps it. ``lookahead`` and ``chunk``: recurrent
    layers that run backwards see so many steps behind a block of ``chunk`` steps; the law of what depends on one is
    "lookahead".

    Raises:
        ConfigError: one of them is out of range.
    """

    pooling_window: int | None = None
    length_modulo: tuple[int, int] | None = None
    lookahead: int | None = None
    chunk: int = 1

    def __post_init__(self) -> None:
        window, promise = self.pooling_window, self.length_modulo
        for name, value, least, of in (
            ("lookahead", self.lookahead, 0, "steps"),
            ("chunk", self.chunk, 1, "steps"),
            ("pooling_window", window, 1, "rows"),
        ):
            may_be_none = "" if name == "chunk" else ", or None"
            if not (_is_whole(value, least, _MOST) or (value is None and may_be_none)):
                raise ConfigError(
                    f"{name}: expected a number of {of} from {least} to {_MOST}{may_be_none}, got {value!r}"
                )
        if self.lookahead is None and self.chunk != 1:
            raise ConfigError("chunk: it is the block of a bounded lookahead; give lookahead, too")
        if promise is not None and not _is_promise(promise):
            raise ConfigError(
                "length_modulo: expected (modulus, remainder), whole numbers with 0 <= remainder < modulus <= "
                f"{_MOST}, got {promise!r}"
            )


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_promise(value: object) -> bool:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return False
    modulus, remainder = value
    return _is_whole(modulus, 1, _MOST) and _is_whole(remainder, 0, modulus - 1)


def streamify(
    offline: ir.Model,
    time_axis: TimeAxes = None,
    *,
    pooling_window: int | None = None,
    length_modulo: tuple[int, int] | None = None,
    lookahead: int | None = None,
    chunk: int = 1,
) -> StepModel:
    """Derive the step graph of an offline graph.

    The step graph takes the inputs' next T samples, (batch, T[, C]), wherever batch and time are offline, and the
    states; it gives (batch, rows, K) for each output, and the next states. ``StepModel.axes`` says where the offline
    graph's inputs and outputs have the two.

    Args:
        offline: the graph; it is left as it is.
        time_axis: the axis of time, of every input or by an input's name; found if not given.
        pooling_window: see ``Options``.
        length_modulo: see ``Options``.
        lookahead: see ``Options``.
        chunk: see ``Options``.

    Raises:
        ConfigError: an option is out of range, or has no use in the model, or ``time_axis`` names an input or an axis
            that the model does not have.
        NotStreamableError: some output depends on later samples without bound, an operator has no rule, or more than
            one axis may be time.
    """
    options = Options(pooling_window, length_modulo, lookahead, chunk)
    found: list[tuple[Reading, StepModel]] = []
    refused: list[NotStreamableError] = []
    for reading in (possible := readings(offline.graph, time_axis)):
        try:
            step = _derive(arranged(offline, reading, length_modulo), reading, options)
        except NotStreamableError as error:
            refused.append(error)
            continue
        # Only what convolutions, recurrences and pools do to an axis says that it is time.
        if len(possible) == 1 or _uses_time(step):
            return step
        found.append((reading, step))
    if not found:
        raise refused[0]
    likeliest, step = found[0]
    if len(found) > 1 and not names_settle(offline.graph, likeliest):
        raise NotStreamableError(
            f"more than one axis may be time, and the names of the sizes do not say which; give "
            f"{described([reading for reading, _ in found])}"
        )
    return step


def _uses_time(step: StepModel) -> bool:
    return bool(step.state) or any(timing.law != "equal" or timing.rows for timing in step.timings)


def _derive(offline: ir.Model, reading: Reading, options: Options) -> StepModel:
    sizes = None if options.lookahead is None else BlockSizes(options.chunk, options.lookahead)
    plan = Plan(pooling_window=options.pooling_window, length_modulo=options.length_modulo, lookahead=sizes)
    trial = _Walk(offline, plan).step
    if sizes is not None and not trial.lookahead_layers:
        raise ConfigError("lookahead: the model has no recurrent layer that runs backwards; leave it out")
    if options.pooling_window is not None and not trial.windowed:
        raise ConfigError("pooling_window: the model has no pool over time; leave it out")
    granule = trial.granule
    drafts = [
        _Walk(offline, replace(trial.plan, granule=granule, phase=phase)) for phase in range(min(granule, _PHASES))
    ]
    best = min(drafts, key=lambda walk: (max(t.lookahead for t in walk.timings()), walk.step.plan.phase))
    shared = _Walk(offline, replace(best.step.plan, depths=best.step.depths, histories=best.step.histories))
    step = _Walk(offline, replace(shared.step.plan, histories=shared.step.histories)).finish()
    return replace(step, axes={**reading, **step.axes})


class _Walk:
    """One pass over the offline graph, with what is known before it in ``plan``."""

    def __init__(self, offline: ir.Model, plan: Plan) -> None:
        self._offline = offline
        graph = offline.graph
        self._samples = [ir.val(value.name, shape=value.shape, type=value.type) for value in graph.inputs]
        self.step = StepGraph(plan, self._samples[0])
        self._known: dict[ir.Value, Timed | ir.Value] = {}
        self._approximate: set[ir.Value] = set()  # of the offline graph: what depends on a bounded lookahead
        for value, sample in zip(graph.inputs, self._samples, strict=True):
            # The zeros of the phase, and those of flush(), are the padding of the first layer.
            timed = Timed(sample, axis=1, delay=plan.phase, blank=True, rank=len(value.shape or ()))
            self._know(value, timed)
        self._kept_as_float: list[NotStreamableError] = []  # told if nothing else is: masks that sum tell more
        for node in graph:
            self._write(node)
        self._results = [self._result(value) for value in graph.outputs]
        if self._kept_as_float:
            raise self._kept_as_float[0]

    def _know(self, value: ir.Value, timed: Timed) -> None:
        self._known[value] = timed
        self.step.knows_dtype(timed.value, value.dtype)
        sizes = self._rest(value, timed)
        if all(isinstance(n, int) for n in sizes):
            self.step.knows_sizes(timed.value, [n for n in sizes if isinstance(n, int)])

    @staticmethod
    def _rest(value: ir.Value, timed: Timed) -> list[int | ir.SymbolicDim]:
        """The offline tensor's sizes but for batch and time."""
        taken = {timed.drop(timed.batch), None if timed.gone else timed.axis}
        return [n for axis, n in enumerate(value.shape or ()) if axis not in taken]

    def _write(self, node: ir.Node) -> None:
        arguments = [self._argument(node, value) for value in node.inputs]
        nested = any(a.type is ir.AttributeType.GRAPH for a in node.attributes.values())  # and may read what is outside
        if not any(isinstance(a, Timed) for a in arguments) and not nested:
            inputs = [a for a in arguments if not isinstance(a, Timed)]
            self._known.update(zip(node.outputs, self.step.copy(node, inputs), strict=True))  # made of constants alone
            return
        rules = MERGED if any(isinstance(a, Timed) and a.merged for a in arguments) else RULES
        rule = rules.get(node.op_type) if node.domain == "" else None
        if rule is None and rules is MERGED and node.op_type in RULES:
            raise refuse(node, "it works on a tensor whose batch and time are one axis", REARRANGE)
        if rule is None:
            raise refuse(
                node, "no streaming rule is known for this operator", "see docs/streaming.md for those that stream"
            )
        if is_batch_size(node):
            self._known[node.outputs[0]] = self.step.batch_size()
            return
        n_kept = self._n_kept()
        if node.op_type not in _TAKES_WHAT_IS_BEFORE:
            arguments = [due(self.step, a) if isinstance(a, Timed) else a for a in arguments]
        n_bounded = len(self.step.lookahead_layers)
        written = rule(self.step, node, arguments)
        if self._n_kept() > n_kept or node.op_type == "Pad":
            self._check_kept(node, arguments)
        if len(self.step.lookahead_layers) > n_bounded or not self._approximate.isdisjoint(node.inputs):
            self._approximate.update(node.outputs)
        for value, timed in zip(node.outputs, written, strict=False):
            if timed is not None and (value.is_graph_output() or list(value.uses())):
                if value.shape is None:
                    raise refuse(node, "the rank of its output is unknown", "run ONNX shape inference on the model")
                self._know(value, replace(timed, rank=len(value.shape)))

    def _n_kept(self) -> int:
        return len(self.step.states) + len(self.step.histories)

    def _check_kept(self, node: ir.Node, arguments: Sequence[Argument]) -> None:
        """Note what is kept from call to call and is neither float32 nor a mask: no state is."""
        for value, argument in zip(node.inputs, arguments, strict=True):
            if value is not None and isinstance(argument, Timed) and value.dtype not in _KEPT:
                reason = (
                    f"it needs earlier rows of {value.name!r}, of {value.dtype}, and a stream keeps rows of float32"
                )
                fix = "put a Cast to float32 before it, or export the model in float32"
                self._kept_as_float.append(refuse(node, f"{reason} alone", fix))

    def _argument(self, node: ir.Node, value: ir.Value | None) -> Argument:
        if value is None or value in self._known:
            return None if value is None else self._known[value]
        fixed = constant(value)
        if fixed is None:
            raise refuse(node, f"its input {value.name!r} has no step form", "use another output of that operator")
        return self.step.constant(fixed, value.name)

    def _result(self, value: ir.Value) -> Timed:
        result = self._known.get(value)
        if not isinstance(result, Timed):
            raise NotStreamableError(f"output {value.name!r} does not depend on the input over time")
        if result.backwards:
            raise NotStreamableError(
                f"output {value.name!r} runs backwards, so its first step needs the last sample; reverse it back"
            )
        if result.merged:
            raise NotStreamableError(
                f"output {value.name!r} has batch and time as one axis, so the rows of a sequence would not stay "
                "together in a stream; reshape it to (batch, time, channels)"
            )
        if value in self._approximate and result.offline is not TimeAxis.FULL:
            raise NotStreamableError(
                f"output {value.name!r} pools over time, or takes the last step, behind a recurrent layer that runs "
                "backwards, and a bounded lookahead is for outputs at every step; run it offline"
            )
        self.step.takes_whole_rows(result.hop)
        return due(self.step, result)

    def timings(self) -> tuple[Timing, ...]:
        """Of each output: what it is to time, for the file."""
        ports = self._offline.graph.outputs
        return tuple(
            self._timing(result, approximate=port in self._approximate)
            for result, port in zip(self._results, ports, strict=True)
        )

    def _timing(self, x: Timed, *, approximate: bool) -> Timing:
        plan = self.step.plan
        # A row comes with the call that completes its granule: the first row of a granule waits for the rest of it.
        lookahead = math.ceil(plan.granule - 1 - plan.phase + x.delay * x.hop)
        pooled = x.offline is not TimeAxis.FULL
        past = None if x.past is None else max(0, math.ceil(x.past))
        law: Law = "window" if pooled and self.step.windowed else "prefix" if pooled else "equal"
        return Timing(
            receptive_field=(past, max(0, math.ceil(x.future))),
            law="lookahead" if approximate else law,
            lookahead=max(0, lookahead),
            hop=(x.hop.numerator, x.hop.denominator),
            delay=x.delay,
            rows=x.rows,
            shortest=self._shortest(),
        )

    def _shortest(self) -> int:
        """How many samples it takes for every tensor to have a row."""
        counts = {Timing((None, 0), rows=x.rows) for x in self._known.values() if isinstance(x, Timed)}
        return next((n for n in range(1, _LONGEST) if all(t.count_rows(n) for t in counts)), _LONGEST)

    def finish(self) -> StepModel:
        """Write the ports and tidy up."""
        step, graph = self.step, self._offline.graph
        outputs: list[ir.Value] = []
        named: list[tuple[ir.Value, str | None, ir.Shape | None, ir.TypeProtocol | None]] = []
        for x, port in zip(self._results, graph.outputs, strict=True):
            shape = ir.Shape(["batch", f"{port.name}_rows", *self._rest(port, x)])
            named.append((self._batch_first(x), port.name, shape, port.type))
        named += [(step.successors[s], spec.output, s.shape, s.type) for s, spec in step.states.items()]
        for value, name, sizes, like in named:
            # A port needs a tensor of its own; two states that are carried alike, or a copied input, get an Identity.
            own = value if value.producer() is not None and value not in outputs else step.op("Identity", value)
            own.name, own.shape, own.type = name, sizes, like
            outputs.append(own)
        end = [] if step.end is None else [step.end]
        model = ir.Model(
            ir.Graph(
                [*self._samples, *end, *step.states],
                outputs,
                nodes=step.nodes,
                initializers=list(step.initializers.values()),
                opset_imports=dict(graph.opset_imports),
                name=f"{graph.name}.stream",
            ),
            ir_version=self._offline.ir_version,
            producer_name="edgeseq",
        )
        _tidy(model)
        return StepModel(
            model=model,
            timings=self.timings(),
            state=tuple(step.states.values()),
            granule=step.plan.granule,
            phase=step.plan.phase,
            cuts=tuple(sorted(step.cuts)),
            end=None if step.end is None else step.end.name,
            lookahead=self._lookahead(),
            settled=max(step.depths.values(), default=0),
            axes={
                str(port.name): Axes(batch=x.drop(x.batch), time=None if x.gone else x.axis)
                for x, port in zip(self._results, graph.outputs, strict=True)
            },
        )

    def _lookahead(self) -> Lookahead | None:
        sizes = self.step.plan.lookahead
        return None if sizes is None else Lookahead(sizes.steps, sizes.chunk, tuple(self.step.lookahead_layers))

    def _batch_first(self, x: Timed) -> ir.Value:
        if x.axes == (0, 1):
            return x.value
        rest = [axis for axis in range(x.rank + x.gone) if axis not in x.axes]
        return self.step.op("Transpose", x.value, perm=[*x.axes, *rest])


def _tidy(model: ir.Model) -> None:
    # No identity elimination: it would let the body of a Scan give one tensor as two outputs, which ORT gets wrong.
    steps: Sequence[ir.passes.InPlacePass] = (
        passes.RemoveUnusedNodesPass(),
        passes.NameFixPass(),
        passes.ShapeInferencePass(),
    )
    for each in steps:
        each(model)
