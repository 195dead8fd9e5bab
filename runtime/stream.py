"""One sensor's stream: its state, and the law that its outputs equal the offline model's.

Each call of the graph reads the state from one set of buffers and writes its successor into another, and only a call
that succeeded swaps them: an error, at whatever moment, leaves the stream as it was. A stream belongs to one thread at
a time; different streams of a model may run in different threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from edgeseq.errors import InputError, StreamEndedError
from edgeseq.model_file import Description
from edgeseq.runtime.inputs import Array, InputCheck

# A longer chunk is cut, so that the memory of one call stays bounded: 512 samples of 64 filters are 128 KiB a layer.
_LONGEST_CALL = 512


class Stream:
    """Made by ``Model.stream``. ``step`` takes one sample, ``push`` a chunk; they may be mixed at any moment.

    Example:
        >>> from edgeseq import runtime as rt
        >>> model = rt.load("tests/data/tiny.stream.onnx")
        >>> a, b = model.stream("a"), model.stream("b")
        >>> x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
        >>> steps = np.stack([a.step(sample) for sample in x])
        >>> bool(np.allclose(steps, b.push(x), atol=1e-6))
        True
        >>> a.flush().shape  # nothing is owed: lookahead is 0
        (0, 2)
    """

    def __init__(self, description: Description, ort_session: Any, check: InputCheck, name: str) -> None:
        self.name = name
        self._description = description
        self._ort_session = ort_session
        self._check = check
        self._position = 0
        self._ended = False
        self._sample = np.zeros((1, 1, *description.input.shape), description.input.dtype)
        self._output = np.zeros((1, 1, *description.output.shape), description.output.dtype)
        self._now = [np.full((1, *s.shape), s.initial, s.dtype) for s in description.state]
        self._next = [np.empty_like(array) for array in self._now]
        # One binding reads _now and writes _next, the other the reverse; they take turns.
        self._call, self._call_after = self._bind(self._now, self._next), self._bind(self._next, self._now)

    @property
    def position(self) -> int:
        """Samples taken since the start or the last ``reset``."""
        return self._position

    def step(self, sample: Array | int) -> Array:
        """Take one sample and return its prediction.

        Shapes: (C,) -> (K,); a token is a scalar.

        Raises:
            ShapeError, DTypeError, NonFiniteError: the sample is not what the model takes; the state is unchanged.
            StreamEndedError: ``flush`` was called.
        """
        if self._ended:
            raise self._ended_error()
        self._sample[0, 0] = self._check.sample(sample, self)
        try:
            self._ort_session.run_with_iobinding(self._call)
        except Exception as error:
            raise self._rejected(error) from error
        self._advance(1)
        prediction: Array = self._output[0, 0].copy()
        return prediction

    def push(self, chunk: Array) -> Array:
        """Take consecutive samples and return their predictions.

        Shapes: (T, C) -> (T, K) with T >= 0; tokens (T,).

        Raises:
            ShapeError, DTypeError, NonFiniteError: the chunk is not what the model takes; the state is unchanged.
            StreamEndedError: ``flush`` was called.
        """
        if self._ended:
            raise self._ended_error()
        self._check.chunk(chunk, self)
        if len(chunk) == 0:  # ONNX Runtime's Conv and LSTM are wrong on empty input
            return self._nothing()
        names = [self._description.output.name, *(s.output for s in self._description.state)]
        state, outputs = self._now, []
        for start in range(0, len(chunk), _LONGEST_CALL):
            feeds = dict(zip((s.input for s in self._description.state), state, strict=True))
            feeds[self._description.input.name] = chunk[None, start : start + _LONGEST_CALL]
            try:
                y, *state = self._ort_session.run(names, feeds)
            except Exception as error:
                raise self._rejected(error) from error
            outputs.append(y[0])
        for buffer, value in zip(self._next, state, strict=True):
            buffer[...] = value
        self._advance(len(chunk))
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def flush(self) -> Array:
        """End the sequence and return the predictions that lookahead still owes, (T', K); none for a causal model.

        The stream takes no more samples until ``reset``. A second call returns nothing.
        """
        self._ended = True
        return self._nothing()

    def reset(self) -> None:
        """Go back to the state of a new stream."""
        for buffer, spec in zip(self._now, self._description.state, strict=True):
            buffer.fill(spec.initial)
        self._position = 0
        self._ended = False

    def _advance(self, n_samples: int) -> None:
        """Let what was written be what is read."""
        self._now, self._next, self._call, self._call_after, self._position = (
            *(self._next, self._now, self._call_after, self._call),
            self._position + n_samples,
        )

    def _bind(self, read: list[Array], write: list[Array]) -> Any:
        binding = self._ort_session.io_binding()
        d = self._description
        for name, array in ((d.input.name, self._sample), *zip((s.input for s in d.state), read, strict=True)):
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in ((d.output.name, self._output), *zip((s.output for s in d.state), write, strict=True)):
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        return binding

    def _nothing(self) -> Array:
        return np.zeros((0, *self._description.output.shape), self._description.output.dtype)

    def _ended_error(self) -> StreamEndedError:
        return StreamEndedError(f"{self}: the sequence was ended by flush(); call reset() to start a new one")

    def _rejected(self, error: Exception) -> InputError:
        return InputError(f"{self}: ONNX Runtime rejected the input: {str(error).splitlines()[0]}")

    def __str__(self) -> str:
        return f"stream {self.name!r}, sample {self._position}"

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, position={self._position})"
