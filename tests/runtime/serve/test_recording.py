from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeseq.errors import ConfigError, EdgeseqError, NonFiniteError
from edgeseq.model_file import Port
from edgeseq.runtime.serve.recording import check_port, made_up, read_csv

NAMED = Port("input", "float32", (2,), names=("x", "y"))
BARE = Port("input", "float32", (2,))


@pytest.mark.parametrize(
    ("port", "text"),
    [
        (NAMED, "x,y\n1,2\n3,4\n"),
        (NAMED, "\ufefftimestamp_s, y ,label,x\n0,2,rest,1\n\n0.1,4,move,3\n"),
        (NAMED, "a,b\r\n1,2\r\n3,4\r\n"),
        (BARE, "sequence,a,b\n0,1,2\n1,3,4\n"),
    ],
)
def test_channels_are_found(tmp_path: Path, port: Port, text: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text, encoding="utf-8", newline="")
    recording = read_csv(path, port)
    assert recording.name == "r.csv"
    np.testing.assert_array_equal(recording.samples, np.array([[1, 2], [3, 4]], np.float32))


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("", ConfigError, "in the header"),
        ("x,y\n", ConfigError, "1 to 60000 samples"),
        ("x,z,y2\n1,2,3\n", ConfigError, r"\['x', 'y'\]"),
        ("x,y\n1,2\n3\n", ConfigError, "line 3"),
        ("x,y\n1,b\n", ConfigError, "line 2"),
        ("x,y\n1,2\n1,nan\n", NonFiniteError, "sample 1"),
        ("x,y\n1,1e39\n", NonFiniteError, "sample 0"),
        ("x,y\n" + "1,2\n" * 60_001, ConfigError, "60000"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, text: str, error: type[EdgeseqError], told: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=told):
        read_csv(path, NAMED)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.csv"):
        read_csv(tmp_path / "nowhere.csv", NAMED)


@pytest.mark.parametrize("rate_hz", [0.01, 1.0, 50.0, 16_000.0])
@pytest.mark.parametrize("n_channels", [1, 6])
def test_a_made_up_signal_fits_any_model(n_channels: int, rate_hz: float) -> None:
    port = Port("input", "float32", (n_channels,))
    one, two = made_up(port, rate_hz).samples, made_up(port, rate_hz).samples
    np.testing.assert_array_equal(one, two)
    assert one.dtype == np.float32
    assert one.shape == (max(1, min(60_000, round(30 * rate_hz))), n_channels)
    assert np.isfinite(one).all()


@pytest.mark.parametrize("port", [Port("x", "int32", ()), Port("x", "float32", (2, 3)), Port("x", "int32", (2,))])
def test_other_models_are_not_shown(port: Port) -> None:
    with pytest.raises(ConfigError, match="live page"):
        check_port(port, 1)
    with pytest.raises(ConfigError, match="has 2"):
        check_port(BARE, 2)
