"""Advancing many streams at once: which calls serve them, in which threads, and what changes when all succeeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock

import numpy as np

from edgeseq.errors import ModelFileError
from edgeseq.model_file import NEVER, Description
from edgeseq.runtime.due import OutputRows
from edgeseq.runtime.inputs import Array
from edgeseq.runtime.lanes import Ladder, Rung
from edgeseq.runtime.model_source import Source
from edgeseq.runtime.pool_calls import FastCalls, Part, StepGraphCalls
from edgeseq.runtime.pool_rings import RingSlab
from edgeseq.runtime.pool_slab import PlainSlab, Slab
from edgeseq.runtime.pool_table import PoolTable

_LONGEST_CALL = 512  # samples, as in a Stream: so the memory of one call stays bounded
_FEW = (
    32  # streams of a slab: fewer are copied into a call with those of other slabs, which then costs less than its own
)
Which = Array | slice
"""Streams of a group, by their numbers."""
Change = Callable[[], None]
"""Lets states be what a call made of them. Doing it twice is doing it once."""


@dataclass
class Group:
    """Streams that take as many samples: their places in rising order, and (n, T, C) of each input.

    ``ends`` are how many samples their sequences have, where they are ending.
    """

    places: Array
    fed: Array
    chunks: Sequence[Array]
    ends: Array | None = None

    @property
    def n_samples(self) -> int:
        """T."""
        return int(self.chunks[0].shape[1])

    def one(self, i: int) -> Group:
        """A group of one of its streams."""
        part = slice(i, i + 1)
        ends = None if self.ends is None else self.ends[part]
        return Group(self.places[part], self.fed[part], [x[part] for x in self.chunks], ends)


class Moves:
    """The calls of one pool. They change no state that a stream reads; the changes that they give back do."""

    def __init__(self, source: Source, table: PoolTable[Slab], outputs: Sequence[OutputRows], shards: int) -> None:
        self._d: Description = source.description
        self._table, self._outputs = table, outputs
        self.step_graph = StepGraphCalls(source)
        self.fast: FastCalls | None = None
        self._shards = shards
        self._executor = ThreadPoolExecutor(shards, "edgeseq-pool") if shards > 1 else None
        self._at_work = [Lock() for _ in range(shards)]
        self._call = 0  # a thread that still has work of an older one drops it

    def use_fast_form(self, source: Source) -> None:
        """Let single steps run on the fast form.

        Raises:
            ModelFileError: it cannot serve a pool.
        """
        if source.description.fast is None:
            raise ModelFileError("the file holds no fast form")
        self.fast = FastCalls(source, source.description.fast, self._table.slab_size)

    def new_slab(self) -> Slab:
        """An empty slab."""
        if self.fast is not None:
            return RingSlab(self.fast.layout)
        return PlainSlab(self._d, self._table.slab_size)

    def initial(self, n: int) -> list[Array]:
        """The states of so many new streams."""
        return [np.full((n, *spec.shape), spec.initial, spec.dtype) for spec in self._d.state]

    def settle(self) -> None:
        """Wait for what an interrupted call left under way."""
        self._call += 1
        if self._executor is not None:
            for lock in self._at_work:
                with lock:
                    pass

    def run(self, groups: Sequence[Group]) -> tuple[list[list[Array]], list[Change]]:
        """Of each group, the rows of each output, (n, rows, K); and the changes that make these moves true.

        Whatever is raised, by whichever call, nothing was changed.
        """
        jobs: list[Callable[[int], None]] = []
        changes: list[Change] = []
        given = []
        for group in groups:
            n, calls = len(group.places), group.n_samples // self._d.granule
            rows = [np.empty((n, calls * out.rows_a_call, *out.port.shape), out.port.dtype) for out in self._outputs]
            given.append(rows)
            on_fast_form, on_step_graph = self._divided(group)
            if on_fast_form is not None:
                jobs += self._fast_jobs(group, on_fast_form, rows, changes)
            if on_step_graph is not None:
                jobs += self._step_graph_jobs(group, on_step_graph, rows, changes)
        self._work(jobs)
        return given, changes

    def _divided(self, group: Group) -> tuple[Which | None, Which | None]:
        """Which of the streams go on the fast form, and which on the step graph: it depends on the stream alone."""
        n = len(group.places)
        everyone = slice(0, n) if n else None
        if self.fast is None or group.n_samples != 1 or group.ends is not None:
            return None, everyone
        started = group.fed >= self.fast.form.start
        if started.all():
            return everyone, None
        return (np.flatnonzero(started) if started.any() else None), np.flatnonzero(~started)

    def _fast_jobs(
        self, group: Group, streams: Which, rows: list[Array], changes: list[Change]
    ) -> list[Callable[[int], None]]:
        fast = self.fast
        assert fast is not None

        def job(rung: Rung, which: Which, parts: list[Part]) -> Callable[[int], None]:
            def work(shard: int) -> None:
                samples = [x[which, 0] for x in group.chunks]
                results, carried = fast.run(shard, rung, parts, group.fed[which], samples)
                for all_rows, y in zip(rows, results, strict=True):
                    all_rows[which, 0] = y
                if carried:
                    changes.append(lambda: _carry(parts, carried))

            return work

        jobs, scattered = [], []
        for slab, of_slab, places in self._ring_parts(group.places[streams]):
            which = _some(streams, of_slab)
            if len(places) < _FEW:
                scattered.append(np.arange(len(group.places))[which])
                continue
            for rung, some in fast.ladder.calls(len(places)):
                here = places[some]
                jobs.append(job(rung, _some(which, some), [(slab, slice(len(here)), here)]))
        if scattered:
            together = np.concatenate(scattered)
            for rung, some in fast.ladder.calls(len(together)):
                which = together[some]
                jobs.append(job(rung, which, self._ring_parts(group.places[which])))
        return jobs

    def _ring_parts(self, places: Array) -> list[Part]:
        parts = []
        for slab, part, here in self._table.by_slab(places):
            assert isinstance(slab, RingSlab)
            parts.append((slab, part, here))
        return parts

    def _step_graph_jobs(
        self, group: Group, streams: Which, rows: list[Array], changes: list[Change]
    ) -> list[Callable[[int], None]]:
        group_fed = group.fed[streams]
        pieces = self._pieces(int(group_fed[0]), group.n_samples)
        ladder = self.step_graph.ladder(group.n_samples) if len(pieces) == 1 else Ladder((Rung(1),))

        def job(rung: Rung, which: Which) -> Callable[[int], None]:
            def work(_shard: int) -> None:
                places, fed = group.places[which], group.fed[which]
                ends = np.full(len(places), NEVER, np.int64) if group.ends is None else group.ends[which]
                states, done = self.states(places, fed), 0
                for piece in pieces:
                    chunks = [x[which, piece] for x in group.chunks]
                    results, states = self.step_graph.run(rung, states, chunks, ends)
                    for all_rows, y in zip(rows, results, strict=True):
                        # Of each output, a piece has its share of the rows.
                        start = done * all_rows.shape[1] // group.n_samples
                        all_rows[which, start : start + y.shape[1]] = y
                    done = piece.stop
                changes.append(lambda: self.set_states(places, fed + group.n_samples, states))

            return work

        return [job(rung, _some(streams, some)) for rung, some in ladder.calls(len(group_fed))]

    def _pieces(self, fed: int, n_samples: int) -> list[slice]:
        """The calls for so many samples: none is too long, and none reaches across a cut."""
        longest = max(1, _LONGEST_CALL // self._d.granule) * self._d.granule
        cuts = {cut - fed for cut in self._d.cuts if 0 < cut - fed < n_samples}
        bounds = sorted({*range(0, n_samples, longest), *cuts, n_samples})
        return [slice(a, b) for a, b in pairwise(bounds)]

    def cuts_within(self, fed: int, n_samples: int) -> tuple[int, ...]:
        """Where a chunk is cut. Streams of one group are cut alike."""
        return tuple(cut - fed for cut in self._d.cuts if 0 < cut - fed < n_samples)

    def states(self, places: Array, fed: Array) -> list[Array]:
        """The states of the step graph of streams in rising order, (n, ...) each."""
        if not len(places):
            return self.initial(0)
        parts = [slab.read(here, fed[part]) for slab, part, here in self._table.by_slab(places)]
        return parts[0] if len(parts) == 1 else [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def set_states(self, places: Array, fed: Array, states: Sequence[Array]) -> None:
        """Let these be the states of streams in rising order."""
        for slab, part, here in self._table.by_slab(places):
            slab.write(here, fed[part], [state[part] for state in states])

    def _work(self, jobs: list[Callable[[int], None]]) -> None:
        """Do all jobs, dealt to the shards; whatever fails, none is under way when this ends."""
        if self._executor is None or len(jobs) == 1:
            for job in jobs:
                job(0)
            return
        hands = [jobs[i :: self._shards] for i in range(min(self._shards, len(jobs)))]
        under_way = [self._executor.submit(self._do_all, hand, shard, self._call) for shard, hand in enumerate(hands)]
        wait(under_way)
        for each in under_way:
            each.result()

    def _do_all(self, jobs: Sequence[Callable[[int], None]], shard: int, call: int) -> None:
        with self._at_work[shard]:
            for job in jobs:
                if self._call != call:
                    return
                job(shard)


def _some(which: Which, part: slice) -> Which:
    """Some of these streams."""
    return slice(which.start + part.start, which.start + part.stop) if isinstance(which, slice) else which[part]


def _carry(parts: Sequence[Part], carried: Sequence[Array]) -> None:
    for slab, part, places in parts:
        slab.carry(places, [state[part] for state in carried])
