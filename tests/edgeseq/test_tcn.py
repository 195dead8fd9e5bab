"""TCN against keras-tcn's layer, its declared receptive field against perturbations, and its errors."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseq.errors import ConfigError, ShapeError
from edgeseq.tcn import TCN, ResidualBlock

Array = npt.NDArray[np.float32]

# Both layers run the same float32 kernels on outputs of order one; they differ by nothing but the order of sums.
TOLERANCE = 1e-5
CHANNELS = 4
DILATIONS = (1, 2)


@dataclass(frozen=True)
class Case:
    """One combination of arguments and of the input's shape."""

    padding: str
    use_skip_connections: bool
    return_sequences: bool
    norm: str
    go_backwards: bool
    nb_stacks: int
    nb_filters: int | tuple[int, ...]
    activation: str
    kernel_size: int
    length: int
    known_length: bool
    batch: int

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the layer, with lists as keras-tcn wants them."""
        arguments = asdict(self)
        for key in ("norm", "length", "known_length", "batch"):
            del arguments[key]
        if isinstance(self.nb_filters, tuple):
            arguments["nb_filters"] = list(self.nb_filters)
        return {
            **arguments,
            "dilations": list(DILATIONS),
            "use_batch_norm": self.norm == "batch",
            "use_layer_norm": self.norm == "layer",
        }


FILTERS: tuple[int | tuple[int, ...], ...] = (CHANNELS, 3, (5, 3), (3, 3))
ACTIVATIONS = ("relu", "tanh", "gelu", "linear")
LENGTHS = (1, 2, 7, 8)


def cases_of_the_options() -> Iterator[tuple[str, bool, bool, str, bool, int]]:
    yield from itertools.product(
        ("causal", "same"), (True, False), (True, False), ("none", "batch", "layer"), (True, False), (1, 2)
    )


def fits(use_skip_connections: bool, nb_filters: int | tuple[int, ...]) -> bool:
    """Say whether keras-tcn takes the two together: skip connections need equal filters."""
    return not (use_skip_connections and nb_filters == (5, 3))


def draw_shape(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "length": LENGTHS[rng.integers(len(LENGTHS))],
        "known_length": bool(rng.integers(2)),
        "batch": (1, 3)[rng.integers(2)],
    }


def covering_cases() -> list[Case]:
    """Every combination of the six options; the other arguments are drawn from a fixed seed."""
    rng = np.random.default_rng(0)
    cases = []
    for options in cases_of_the_options():
        filters = [f for f in FILTERS if fits(options[1], f)]
        cases.append(
            Case(
                *options,
                nb_filters=filters[rng.integers(len(filters))],
                activation=ACTIVATIONS[rng.integers(len(ACTIVATIONS))],
                kernel_size=int(rng.integers(2, 4)),
                **draw_shape(rng),
            )
        )
    return cases


def all_cases() -> list[Case]:
    """The full product of the arguments; the input's shape is drawn from a fixed seed."""
    rng = np.random.default_rng(0)
    product = itertools.product(cases_of_the_options(), FILTERS, ("relu", "tanh"), (2, 3))
    return [
        Case(*options, filters, activation, kernel_size, **draw_shape(rng))
        for options, filters, activation, kernel_size in product
        if fits(options[1], filters)
    ]


def randomise(layer: Any, rng: np.random.Generator) -> None:
    """Give every weight, bias and moving statistic a value of its own that keeps outputs of order one."""
    for variable in layer.weights:
        shape, kind = tuple(variable.shape), variable.path.rsplit("/", 1)[-1]
        if kind == "kernel":
            value = rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        elif kind in {"gamma", "moving_variance"}:
            value = rng.uniform(0.5, 1.5, size=shape)
        else:
            value = rng.normal(scale=0.5, size=shape)
        variable.assign(value.astype(np.float32))


def samples(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def run(layer: Any, x: Array, **kwargs: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(layer(x, **kwargs)))


def built(layer: Any, seed: int = 0) -> Any:
    layer.build((None, None, CHANNELS))
    randomise(layer, np.random.default_rng(seed))
    return layer


@pytest.fixture(scope="module")
def keras_tcn() -> Any:
    return pytest.importorskip("tcn", reason="keras-tcn is not installed").TCN


def compare(keras_tcn: Any, case: Case, seed: int) -> float:
    """Check one combination; return the largest output, so that the caller can see that outputs are of order one."""
    rng = np.random.default_rng(seed)
    theirs = keras_tcn(**case.arguments())
    ours = TCN(**case.arguments())
    build_shape = (None, case.length if case.known_length else None, CHANNELS)
    theirs.build(build_shape)
    ours.build(build_shape)
    randomise(theirs, rng)
    ours.set_weights(theirs.get_weights())
    x = samples(rng, case.batch, case.length, CHANNELS)
    expected, got = run(theirs, x), run(ours, x)
    assert got.shape == expected.shape, case
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE, err_msg=str(case))
    return float(np.abs(expected).max())


class TestAgainstKerasTcn:
    @pytest.mark.parametrize("norm", ["none", "batch", "layer"])
    @pytest.mark.parametrize("padding", ["causal", "same"])
    def test_every_combination_of_options(self, keras_tcn: Any, padding: str, norm: str) -> None:
        sizes = [
            compare(keras_tcn, case, seed)
            for seed, case in enumerate(covering_cases())
            if (case.padding, case.norm) == (padding, norm)
        ]
        assert len(sizes) == 16
        assert 0.5 < np.median(sizes) < max(sizes) < 50

    @pytest.mark.extended
    @pytest.mark.parametrize("norm", ["none", "batch", "layer"])
    @pytest.mark.parametrize("padding", ["causal", "same"])
    def test_full_product(self, keras_tcn: Any, padding: str, norm: str) -> None:
        sizes = [
            compare(keras_tcn, case, seed)
            for seed, case in enumerate(all_cases())
            if (case.padding, case.norm) == (padding, norm)
        ]
        assert len(sizes) == 8 * (3 + 4) * 2 * 2  # options, filters without and with skips, activations, kernels
        assert 0.5 < np.median(sizes) < max(sizes) < 100

    @pytest.mark.parametrize("length", [1, 2, 3, 16, 31])
    @pytest.mark.parametrize("padding", ["causal", "same"])
    def test_wide_dilations(self, keras_tcn: Any, padding: str, length: int) -> None:
        arguments: dict[str, Any] = {
            "nb_filters": 6,
            "dilations": [1, 3, 8],
            "padding": padding,
            "return_sequences": True,
        }
        theirs = built(keras_tcn(**arguments))
        ours = built(TCN(**arguments))
        ours.set_weights(theirs.get_weights())
        x = samples(np.random.default_rng(length), 2, length, CHANNELS)
        np.testing.assert_allclose(run(ours, x), run(theirs, x), rtol=0, atol=TOLERANCE)

    @pytest.mark.parametrize("length", [None, 9])
    @pytest.mark.parametrize("padding", ["causal", "same"])
    def test_in_a_compiled_model(self, keras_tcn: Any, padding: str, length: int | None) -> None:
        arguments: dict[str, Any] = {"nb_filters": 3, "dilations": [1, 2], "padding": padding, "activation": "tanh"}
        inputs = keras.Input((length, CHANNELS))
        theirs, ours = (
            keras.Sequential([inputs, layer]) for layer in (built(keras_tcn(**arguments)), TCN(**arguments))
        )
        ours.set_weights(theirs.get_weights())
        for n in (9,) if length else (9, 4, 1):
            x = samples(np.random.default_rng(n), 3, n, CHANNELS)
            np.testing.assert_allclose(ours.predict(x, verbose=0), theirs.predict(x, verbose=0), rtol=0, atol=TOLERANCE)

    def test_batch_norm_in_training(self, keras_tcn: Any) -> None:
        arguments: dict[str, Any] = {
            "nb_filters": 3,
            "dilations": [1, 2],
            "use_batch_norm": True,
            "return_sequences": True,
        }
        theirs = built(keras_tcn(**arguments))
        ours = built(TCN(**arguments))
        ours.set_weights(theirs.get_weights())
        x = samples(np.random.default_rng(0), 3, 9, CHANNELS)
        np.testing.assert_allclose(run(ours, x, training=True), run(theirs, x, training=True), rtol=0, atol=TOLERANCE)
        for got, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)

    @pytest.mark.parametrize("nb_filters", [5, [5, 3]])
    def test_its_config_makes_our_layer(self, keras_tcn: Any, nb_filters: int | list[int]) -> None:
        theirs = keras_tcn(
            nb_filters, 2, 2, (1, 4), "same", False, 0.1, True, "tanh", "glorot_uniform", True, False, True, name="mine"
        )
        config = TCN.from_config(theirs.get_config()).get_config()
        expected = theirs.get_config()
        assert keras.initializers.get(config.pop("kernel_initializer")).__class__.__name__ == "GlorotUniform"
        del expected["kernel_initializer"]
        assert config == {**expected, "dilations": [1, 4]}

    def test_same_defaults(self, keras_tcn: Any) -> None:
        config, expected = TCN(name="tcn").get_config(), keras_tcn(name="tcn").get_config()
        assert config.keys() == expected.keys()
        del config["kernel_initializer"], expected["kernel_initializer"]
        assert config == {**expected, "dilations": list(expected["dilations"])}


class TestOutput:
    @pytest.mark.parametrize("padding", ["causal", "same"])
    @pytest.mark.parametrize("length", [1, 2, 5, 6])
    def test_single_step_is_the_last_or_the_middle(self, padding: str, length: int) -> None:
        one = built(TCN(3, dilations=(1, 2), padding=padding))
        sequence = built(TCN(3, dilations=(1, 2), padding=padding, return_sequences=True))
        x = samples(np.random.default_rng(0), 2, length, CHANNELS)
        step = -1 if padding == "causal" else length // 2
        np.testing.assert_array_equal(run(one, x), run(sequence, x)[:, step])

    def test_go_backwards_does_not_flip_back(self) -> None:
        forward = built(TCN(3, dilations=(1, 2), return_sequences=True))
        backward = built(TCN(3, dilations=(1, 2), return_sequences=True, go_backwards=True))
        x = samples(np.random.default_rng(0), 2, 9, CHANNELS)
        np.testing.assert_array_equal(run(backward, x), run(forward, x[:, ::-1].copy()))

    def test_dropout_works_in_training_only(self) -> None:
        layer = built(TCN(8, dilations=(1, 2), dropout_rate=0.5, return_sequences=True))
        x = samples(np.random.default_rng(0), 2, 9, CHANNELS)
        np.testing.assert_array_equal(run(layer, x), run(layer, x, training=False))
        assert np.abs(run(layer, x) - run(layer, x, training=True)).max() > 0.01

    @pytest.mark.parametrize("return_sequences", [True, False])
    @pytest.mark.parametrize("nb_filters", [5, [4, 3]])
    def test_output_shape_without_building(self, nb_filters: int | list[int], return_sequences: bool) -> None:
        layer = TCN(nb_filters, dilations=(1, 2), use_skip_connections=False, return_sequences=return_sequences)
        shape = layer.compute_output_shape((None, None, 7))
        assert not layer.built
        last = nb_filters if isinstance(nb_filters, int) else nb_filters[-1]
        assert shape == ((None, None, last) if return_sequences else (None, last))
        assert layer(keras.Input((None, 7))).shape == shape

    def test_block_has_symbolic_shapes(self) -> None:
        output, branch = ResidualBlock(dilation_rate=1, nb_filters=3, kernel_size=2, padding="same")(
            keras.Input((None, CHANNELS))
        )
        assert output.shape == branch.shape == (None, None, 3)

    def test_initial_kernels_differ_between_blocks(self) -> None:
        layer = TCN(CHANNELS, dilations=(1, 2), kernel_initializer=keras.initializers.HeNormal())
        layer.build((None, None, CHANNELS))
        kernels = [w for w in layer.get_weights() if w.ndim == 3]
        assert all(not np.array_equal(a, b) for a, b in itertools.combinations(kernels, 2))

    def test_mixed_precision_reaches_the_sublayers(self) -> None:
        layer = TCN(3, dilations=(1,), dtype="mixed_bfloat16")
        assert layer(keras.Input((None, CHANNELS))).dtype == "bfloat16"
        assert {w.dtype for w in layer.weights} == {"float32"}

    def test_a_mask_is_dropped_with_a_warning(self) -> None:
        masked = keras.layers.Masking()(keras.Input((None, CHANNELS)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            TCN(3, dilations=(1,), name="convolutions")(masked)
        assert any("convolutions" in str(w.message) and "destroy the mask" in str(w.message) for w in caught)


class TestSerialisation:
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"padding": "same", "use_batch_norm": True, "nb_stacks": 2},
            {"use_layer_norm": True, "activation": "tanh", "go_backwards": True, "return_sequences": True},
            {"nb_filters": [3, 5], "use_skip_connections": False, "return_sequences": True, "dropout_rate": 0.1},
            {"kernel_initializer": keras.initializers.TruncatedNormal(stddev=0.2, seed=3)},
        ],
    )
    def test_saved_model_is_the_same(self, arguments: dict[str, Any], tmp_path: Path) -> None:
        layer = TCN(**{"nb_filters": 3, "kernel_size": 2, "dilations": (1, 2), **arguments})
        model = keras.Sequential([keras.Input((None, CHANNELS)), layer])
        randomise(model, np.random.default_rng(0))
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        x = samples(np.random.default_rng(1), 2, 7, CHANNELS)
        np.testing.assert_array_equal(run(loaded, x), run(model, x))
        assert loaded.layers[0].get_config() == layer.get_config()

    def test_block_config_round_trip(self) -> None:
        block = ResidualBlock(dilation_rate=2, nb_filters=3, kernel_size=2, padding="same", use_layer_norm=True)
        assert ResidualBlock.from_config(block.get_config()).get_config() == block.get_config()

    def test_return_state_warns_and_stays_in_the_config(self) -> None:
        with pytest.warns(UserWarning, match="return_state=True has no effect"):
            layer = TCN(3, dilations=(1,), return_state=True)
        assert layer.get_config()["return_state"] is True


def influence(layer: Any, length: int) -> npt.NDArray[np.bool_]:
    """Return M, (length, length): whether input step s changes output step t, as M[s, t].

    Input s of the batch has step s perturbed; one output is compared with that of the input without a change.
    """
    x = np.tile(samples(np.random.default_rng(5), 1, length, CHANNELS), (length + 1, 1, 1))
    x[np.arange(length), np.arange(length)] += 10.0
    y = run(layer, x)
    changed: npt.NDArray[np.bool_] = np.any(y[:-1] != y[-1:], axis=-1)
    return changed


class TestReceptiveField:
    @pytest.mark.parametrize("go_backwards", [False, True])
    @pytest.mark.parametrize(("dilations", "nb_stacks"), [((1,), 1), ((1, 2), 2), ((3, 2), 1)])
    @pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])
    @pytest.mark.parametrize("padding", ["causal", "same"])
    def test_is_what_a_perturbation_reaches(
        self, padding: str, kernel_size: int, dilations: tuple[int, ...], nb_stacks: int, go_backwards: bool
    ) -> None:
        # Positive kernels and a linear activation: no influence can cancel or be cut off.
        layer = TCN(
            2,
            kernel_size,
            nb_stacks,
            dilations,
            padding,
            return_sequences=True,
            activation="linear",
            go_backwards=go_backwards,
        )
        layer.build((None, None, CHANNELS))
        layer.set_weights([np.full(w.shape, 0.3, np.float32) for w in layer.get_weights()])
        past, future = layer.receptive_field
        length = 2 * (past + future) + 1
        reached = influence(layer, length)
        for t in range(length):
            steps = np.flatnonzero(reached[:, t]) - (length - 1 - t if go_backwards else t)
            assert steps.min() >= -past
            assert steps.max() <= future
            if t == past + future:  # far enough from both ends to see all of its receptive field
                assert (steps.min(), steps.max()) == (-past, future)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({}, (252, 0)),
            ({"kernel_size": 2, "nb_stacks": 2, "dilations": (1, 2, 4)}, (28, 0)),
            ({"padding": "same"}, (126, 126)),
            ({"padding": "same", "kernel_size": 2, "dilations": (1, 2)}, (2, 4)),
            ({"padding": "same", "kernel_size": 2, "dilations": (1, 2), "go_backwards": True}, (4, 2)),
            ({"go_backwards": True}, (0, 252)),
            ({"kernel_size": 1}, (0, 0)),
        ],
    )
    def test_figures(self, arguments: dict[str, Any], expected: tuple[int, int]) -> None:
        assert TCN(4, **arguments).receptive_field == expected

    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_a_causal_output_never_changes_when_more_arrives(self, data: st.DataObject) -> None:
        layer = built(
            TCN(
                3,
                data.draw(st.integers(1, 4)),
                data.draw(st.integers(1, 2)),
                data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)),
                use_skip_connections=data.draw(st.booleans()),
                use_layer_norm=data.draw(st.booleans()),
                activation=data.draw(st.sampled_from(ACTIVATIONS)),
                return_sequences=True,
            ),
            seed=data.draw(st.integers(0, 1000)),
        )
        length = data.draw(st.integers(2, 30))
        x = samples(np.random.default_rng(0), 2, length, CHANNELS)
        whole = run(layer, x)
        prefix = data.draw(st.integers(1, length - 1))
        np.testing.assert_allclose(run(layer, x[:, :prefix]), whole[:, :prefix], rtol=0, atol=TOLERANCE)


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"use_batch_norm": True, "use_layer_norm": True}, "expected at most one of them, .* turn one of the two"),
            ({"padding": "valid"}, "padding: expected 'causal' or 'same', got 'valid'; use 'causal'"),
            (
                {"nb_filters": [3, 3, 3]},
                r"expected one number per dilation, 2 in all, got \[3, 3, 3\]; .* pass as many",
            ),
            ({"nb_filters": [3, 4]}, r"skip connections .* got \[3, 4\]; .* use_skip_connections=False"),
            ({"nb_filters": 0}, "nb_filters: expected an integer of at least 1, got 0"),
            ({"nb_filters": [3, -1]}, r"nb_filters\[1\]: expected an integer of at least 1, got -1"),
            ({"nb_filters": 2.5}, "nb_filters: expected an integer of at least 1, got 2.5"),
            ({"kernel_size": 0}, "kernel_size: expected an integer of at least 1, got 0"),
            ({"kernel_size": True}, "kernel_size: expected an integer of at least 1, got True"),
            ({"nb_stacks": 0}, "nb_stacks: expected an integer of at least 1, got 0"),
            ({"dilations": [1, 0]}, r"dilations\[1\]: expected an integer of at least 1, got 0"),
            ({"dilations": []}, r"dilations: expected a list of at least one positive int, got \[\]; pass e.g."),
            ({"dilations": 4}, "dilations: expected a list of at least one positive int, got 4"),
            ({"dropout_rate": 1.0}, r"dropout_rate: expected a number in \[0, 1\), got 1.0; pass the fraction"),
            ({"dropout_rate": -0.1}, r"dropout_rate: expected a number in \[0, 1\), got -0.1"),
            ({"dropout_rate": float("nan")}, r"dropout_rate: expected a number in \[0, 1\), got nan"),
            ({"dropout_rate": "0.1"}, r"dropout_rate: expected a number in \[0, 1\), got '0.1'"),
        ],
    )
    def test_bad_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            TCN(**{"nb_filters": 3, "dilations": [1, 2], **arguments})
        assert isinstance(caught.value, ValueError)

    def test_a_state_to_start_from(self) -> None:
        with pytest.raises(
            ConfigError, match=r"initial_state: expected None, got .*; a TCN has no state to start from"
        ):
            TCN(3)(np.zeros((1, 4, 2), np.float32), initial_state=np.zeros((1, 3)))

    def test_a_layer_as_activation(self) -> None:
        with pytest.raises(ConfigError, match=r"expected a name or a function, got .*LeakyReLU.*leaky_relu"):
            TCN(3, activation=keras.layers.LeakyReLU())

    @pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4, 5), (None, 5, None)])
    @pytest.mark.parametrize(
        "layer", [lambda: TCN(3), lambda: ResidualBlock(dilation_rate=1, nb_filters=3, kernel_size=2, padding="same")]
    )
    def test_bad_input_shape(self, layer: Callable[[], Any], shape: tuple[int | None, ...]) -> None:
        with pytest.raises(ShapeError, match=r"expected \(batch, time, channels\) .* got .*keras.Input"):
            layer().build(shape)
