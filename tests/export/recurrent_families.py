"""Families of recurrent layers, of masks and of text: (name, build, options of the family)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras
from keras import layers as L  # noqa: N812

from edgeseq import bilstm_text_tagger
from tests.export.small_models import Build, Unmasked, attend, chain, function, time_distributed, tokens

Entry = tuple[str, Build] | tuple[str, Build, dict[str, Any]]


def _then_dense(layer: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return chain(layer(*arguments, **options), L.Dense(2))


def lone() -> Iterator[Entry]:
    cells: dict[str, Callable[..., Any]] = {
        "LSTM": L.LSTM,
        "GRU": L.GRU,
        "GRU(reset_after=False)": partial(L.GRU, reset_after=False),
        "SimpleRNN": L.SimpleRNN,
    }
    options: dict[str, dict[str, Any]] = {
        "": {},
        "last output": {"return_sequences": False},
        "go_backwards": {"go_backwards": True},
        "go_backwards, last output": {"go_backwards": True, "return_sequences": False},
        "no bias": {"use_bias": False},
        "dropout": {"dropout": 0.3, "recurrent_dropout": 0.3},
        **{
            f"activation={name!r}": {"activation": name}
            for name in ("sigmoid", "relu", "softsign", "hard_sigmoid", "linear", "elu", "leaky_relu")
        },
    }
    for (cell, make), (name, option) in itertools.product(cells.items(), options.items()):
        settings = {"return_sequences": True, **option}
        further = "activation=" in name and cell not in {"LSTM", "GRU"} and "hard" not in name
        yield (
            ", ".join(part for part in (cell, name) if part),
            partial(_then_dense, make, 6, **settings),
            {"extended": further},
        )
    for cell in ("LSTM", "GRU"):
        for name in ("hard_sigmoid", "tanh", "softsign"):
            yield (
                f"{cell}, recurrent_activation={name!r}",
                lambda c=cells[cell], n=name: chain(c(6, recurrent_activation=n, return_sequences=True), L.Dense(2)),
            )


def stacks_of_cells() -> Iterator[Entry]:
    for cell in (L.LSTMCell, L.GRUCell, L.SimpleRNNCell):
        yield f"RNN({cell.__name__})", lambda c=cell: chain(L.RNN(c(5), return_sequences=True), L.Dense(2))
    mixed = [L.LSTMCell, L.GRUCell, L.SimpleRNNCell]
    for name, option in (
        ("", {"return_sequences": True}),
        (", last output", {}),
        (", go_backwards", {"return_sequences": True, "go_backwards": True}),
    ):
        yield (
            f"RNN of three stacked cells{name}",
            lambda o=option: chain(L.RNN([c(n) for c, n in zip(mixed, (3, 5, 4), strict=True)], **o), L.Dense(2)),
        )
    yield (
        "Bidirectional(RNN of stacked cells)",
        lambda: chain(L.Bidirectional(L.RNN([L.LSTMCell(3), L.LSTMCell(4)], return_sequences=True)), L.Dense(2)),
    )
    yield "LSTM over LSTM", lambda: chain(L.LSTM(6, return_sequences=True), L.LSTM(3))


def _passed_states(layer: Callable[..., Any], n_states: int, *, two_way: bool = False) -> Any:
    def call(x: Any) -> Any:
        wrap = L.Bidirectional if two_way else (lambda inner: inner)
        encoded, *states = wrap(layer(5, return_sequences=True, return_state=True))(x)
        decoded = wrap(layer(5, return_sequences=True))(encoded, initial_state=states)
        assert len(states) == n_states * (2 if two_way else 1)
        return L.Concatenate()([decoded, encoded])

    return function(call)


def _stack_with_states(x: Any) -> Any:
    first = x[:, 0]
    given = [[L.Dense(3)(first), L.Dense(3)(first)], L.Dense(4)(first)]
    return L.RNN([L.LSTMCell(3), L.GRUCell(4)], return_sequences=True)(x, initial_state=given)


def states() -> Iterator[Entry]:
    for cell, n_states in ((L.LSTM, 2), (L.GRU, 1), (L.SimpleRNN, 1)):
        name = cell.__name__
        yield f"{name}, return_state into initial_state", partial(_passed_states, cell, n_states)
        yield (
            f"Bidirectional({name}), return_state into initial_state",
            partial(_passed_states, cell, n_states, two_way=True),
        )
        yield (
            f"Bidirectional({name}), return_state, last output",
            lambda c=cell: function(lambda x: L.Concatenate()(L.Bidirectional(c(3, return_state=True))(x))),
        )
    yield (
        "RNN of a stack of one cell, return_state",
        lambda: function(
            lambda x: L.Concatenate()(keras.tree.flatten(L.RNN([L.LSTMCell(3)], return_state=True)(x))),
        ),
    )
    yield "RNN of stacked cells, initial_state", lambda: function(_stack_with_states)
    yield (
        "RNN of stacked cells, return_state",
        lambda: function(
            lambda x: L.Concatenate()(
                keras.tree.flatten(L.RNN([L.LSTMCell(3), L.GRUCell(4)], return_state=True)(x))[:4]
            )
        ),
    )


def _merge(name: str | None, cell: Any, *, sequences: bool) -> Any:
    layer = L.Bidirectional(cell(6, return_sequences=sequences), merge_mode=name)
    if name is not None:
        return chain(layer, L.Dense(2))
    return function(lambda x: L.Subtract()(list(layer(x))))


def _uneven() -> Iterator[Entry]:
    back: dict[str, Any] = {"return_sequences": True, "go_backwards": True}
    pairs: dict[str, tuple[Build, Build]] = {
        "LSTM forward, GRU backward": (lambda: L.LSTM(3, return_sequences=True), lambda: L.GRU(3, **back)),
        "different activations": (
            lambda: L.LSTM(3, return_sequences=True),
            lambda: L.LSTM(3, activation="relu", use_bias=False, **back),
        ),
        "different reset_after": (
            lambda: L.GRU(3, return_sequences=True, reset_after=False),
            lambda: L.GRU(3, **back),
        ),
        "forward layer goes backwards": (lambda: L.LSTM(3, **back), lambda: L.LSTM(3, return_sequences=True)),
    }
    for name, (forward, backward) in pairs.items():
        yield (
            f"Bidirectional, {name}",
            lambda f=forward, b=backward: chain(L.Bidirectional(f(), backward_layer=b()), L.Dense(2)),
        )
    yield (
        "Bidirectional, different units, merge_mode=None",
        lambda: function(
            # Not concatenated: Keras gives the second output the shape of the first.
            lambda x: _scaled_by_mean(
                *L.Bidirectional(L.LSTM(3, return_sequences=True), backward_layer=L.LSTM(5, **back), merge_mode=None)(x)
            )
        ),
    )


def _scaled_by_mean(first: Any, second: Any) -> Any:
    return first * keras.ops.mean(second, axis=-1, keepdims=True)


def bidirectional() -> Iterator[Entry]:
    for cell, merge, sequences in itertools.product(
        (L.LSTM, L.GRU, L.SimpleRNN), ("concat", "sum", "ave", "mul", None), (True, False)
    ):
        last = "" if sequences else ", last output"
        yield (
            f"Bidirectional({cell.__name__}), merge_mode={merge!r}{last}",
            partial(_merge, merge, cell, sequences=sequences),
        )
    for depth in (2, 3):
        yield (
            f"Bidirectional(LSTM), {depth} deep",
            lambda n=depth: chain(*(L.Bidirectional(L.LSTM(4, return_sequences=True)) for _ in range(n)), L.Dense(2)),
        )
    yield (
        "Bidirectional(GRU(reset_after=False))",
        lambda: chain(L.Bidirectional(L.GRU(4, return_sequences=True, reset_after=False)), L.Dense(2)),
    )
    yield from _uneven()


def masked() -> Iterator[Entry]:
    for cell, back in itertools.product((L.LSTM, L.GRU, L.SimpleRNN), (False, True)):
        name = f"Masking, {cell.__name__}" + (", go_backwards" if back else "")
        yield name, lambda c=cell, b=back: chain(L.Masking(), c(5, return_sequences=True, go_backwards=b))
        yield f"{name}, last output", lambda c=cell, b=back: chain(L.Masking(), c(5, go_backwards=b), L.Dense(2))
    for merge in ("concat", "sum", "mul"):
        yield (
            f"Masking, Bidirectional(LSTM), merge_mode={merge!r}",
            lambda m=merge: chain(L.Masking(), _two_way(L.LSTM, m), _two_way(L.GRU, m), L.Dense(2)),
        )
    yield (
        "Masking, Bidirectional(LSTM), last output",
        lambda: chain(L.Masking(), L.Bidirectional(L.LSTM(5)), L.Dense(2)),
    )
    yield (
        "Masking, Bidirectional(LSTM forward, GRU backward)",
        lambda: chain(
            L.Masking(),
            L.Bidirectional(
                L.LSTM(3, return_sequences=True), backward_layer=L.GRU(3, return_sequences=True, go_backwards=True)
            ),
        ),
    )
    yield (
        "Masking, LSTM(zero_output_for_mask=True)",
        lambda: chain(L.Masking(), L.LSTM(5, return_sequences=True, zero_output_for_mask=True)),
    )
    yield (
        "Masking, LSTM(zero_output_for_mask=True), last output",
        lambda: chain(L.Masking(), L.LSTM(5, zero_output_for_mask=True)),
    )
    yield (
        "Masking, LSTM, then Conv1D 'same'",
        lambda: chain(L.Masking(), L.LSTM(5, return_sequences=True), Unmasked(), L.Conv1D(3, 3, padding="same")),
    )
    yield (
        "Masking, RNN of stacked cells",
        lambda: chain(L.Masking(), L.RNN([L.LSTMCell(3), L.GRUCell(4)], return_sequences=True)),
    )
    yield (
        "Masking, LSTM, GlobalAveragePooling1D",
        lambda: chain(L.Masking(), L.LSTM(5, return_sequences=True), L.GlobalAveragePooling1D()),
    )
    yield (
        "Masking, GlobalAveragePooling1D(keepdims=True)",
        lambda: chain(L.Masking(), L.Dense(3), L.GlobalAveragePooling1D(keepdims=True)),
    )
    yield "Masking, Softmax over time", lambda: chain(L.Masking(), L.Dense(3), Unmasked(), L.Softmax(axis=1))
    yield "Masking, encoder states into a decoder", lambda: function(_masked_states)
    yield "Masking, TimeDistributed(Dense)", lambda: chain(L.Masking(), _two_way(L.LSTM, "concat"), time_distributed())
    yield "Masking, self-attention", lambda: function(lambda x: attend(L.Masking()(x)))


def _two_way(cell: Any, merge: str) -> Any:
    return L.Bidirectional(cell(5, return_sequences=True), merge_mode=merge)


def _masked_states(inputs: Any) -> Any:
    x = L.Masking()(inputs)
    encoded, *states = L.LSTM(5, return_sequences=True, return_state=True)(x)
    return L.LSTM(5, return_sequences=True)(encoded, initial_state=states)


def text() -> Iterator[Entry]:
    yield "bilstm_text_tagger", lambda: bilstm_text_tagger(11, 3, embedding_dim=4, units=6)
    yield (
        "bilstm_text_tagger, mask_zero=False",
        lambda: bilstm_text_tagger(11, 3, embedding_dim=4, units=6, mask_zero=False),
    )
    for dtype in ("int32", "int64"):
        yield (
            f"Embedding, {dtype}, mask_zero=True, LSTM",
            lambda d=dtype: tokens(L.Embedding(11, 4, mask_zero=True), L.LSTM(5, return_sequences=True), dtype=d),
        )
        yield (
            f"Embedding, {dtype}, Conv1D",
            lambda d=dtype: tokens(L.Embedding(11, 4), L.Conv1D(3, 3, padding="same"), dtype=d),
        )
    yield (
        "Embedding, mask_zero=True, GRU, last output",
        lambda: tokens(L.Embedding(11, 4, mask_zero=True), L.GRU(5), L.Dense(2)),
    )
    yield (
        "Embedding, mask_zero=True, GlobalAveragePooling1D",
        lambda: tokens(L.Embedding(11, 4, mask_zero=True), L.GlobalAveragePooling1D(), L.Dense(2)),
    )
