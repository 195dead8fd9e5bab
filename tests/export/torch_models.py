"""Sequence models as people write them in PyTorch, and their export by both of torch's exporters.

``MODELS`` has a builder and the input's layout for each family. ``export`` needs torch, and onnxscript for the newer
exporter; ``tests/data/torch/make.py`` writes the files that the tests read without either.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

CHANNELS, WIDTH, TOKENS = 3, 4, 11
EXPORTERS = ("dynamo", "torchscript")


class Lambda(nn.Module):  # type: ignore[misc,unused-ignore]
    """Children by name, and ``forward`` as a function of them and the input."""

    def __init__(self, forward: Callable[[Any, Any], Any], **children: Any) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)
        self._forward = forward

    def forward(self, x: Any) -> Any:
        return self._forward(self, x)


class CausalBlock(nn.Module):  # type: ignore[misc,unused-ignore]
    """functional.pad on the left, Conv1d, BatchNorm1d, ReLU, dropout, residual."""

    def __init__(self, n_in: int, n_out: int, dilation: int, norm: bool) -> None:
        super().__init__()
        self.pad = 2 * dilation
        conv = nn.Conv1d(n_in, n_out, 3, dilation=dilation)
        self.conv = conv if norm else weight_norm(conv)
        self.norm = nn.BatchNorm1d(n_out) if norm else nn.Identity()
        self.drop = nn.Dropout(0.2)
        self.match = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Any) -> Any:
        h = self.drop(functional.relu(self.norm(self.conv(functional.pad(x, (self.pad, 0))))))
        return functional.relu(h + self.match(x))


class ChompBlock(nn.Module):  # type: ignore[misc,unused-ignore]
    """The TCN of Bai et al.: padding on both sides, then the end chomped off."""

    def __init__(self, n_in: int, n_out: int, dilation: int) -> None:
        super().__init__()
        self.chomp = 2 * dilation
        self.conv1 = weight_norm(nn.Conv1d(n_in, n_out, 3, padding=self.chomp, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(n_out, n_out, 3, padding=self.chomp, dilation=dilation))
        self.match = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Any) -> Any:
        h = functional.relu(self.conv1(x)[:, :, : -self.chomp].contiguous())
        h = functional.relu(self.conv2(h)[:, :, : -self.chomp].contiguous())
        return functional.relu(h + self.match(x))


class WaveNet(nn.Module):  # type: ignore[misc,unused-ignore]
    """Gated dilated convolutions with residual and skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(CHANNELS, WIDTH, 1)
        self.gates = nn.ModuleList([nn.Conv1d(WIDTH, 2 * WIDTH, 2, dilation=d) for d in (1, 2, 4)])
        self.back = nn.ModuleList([nn.Conv1d(WIDTH, WIDTH, 1) for _ in range(3)])
        self.skip = nn.ModuleList([nn.Conv1d(WIDTH, WIDTH, 1) for _ in range(3)])
        self.head = nn.Conv1d(WIDTH, 2, 1)

    def forward(self, x: Any) -> Any:
        x, total = self.front(x), 0
        for i, (gate, back, skip) in enumerate(zip(self.gates, self.back, self.skip, strict=True)):
            a, b = gate(functional.pad(x, (2**i, 0))).chunk(2, dim=1)
            h = torch.tanh(a) * torch.sigmoid(b)
            total = total + skip(h)
            x = x + back(h)
        return self.head(functional.relu(total))


class Recurrent(nn.Module):  # type: ignore[misc,unused-ignore]
    """An LSTM, GRU or RNN from zeros, and a Linear of every step or of the last."""

    def __init__(self, core: Any, head: Callable[[Any], Any] = lambda y: y) -> None:
        super().__init__()
        self.core, self.head = core, head
        self.out = nn.Linear(core.hidden_size, 2)

    def forward(self, x: Any) -> Any:
        return self.out(self.head(self.core(x)[0]))


class LastHidden(nn.Module):  # type: ignore[misc,unused-ignore]
    """The last hidden state of the top layer, as classifiers take it."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.LSTM(CHANNELS, WIDTH, num_layers=2, batch_first=True)
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Any) -> Any:
        _, (h, _c) = self.core(x)
        return self.out(h[-1])


class NormOfChannels(nn.Module):  # type: ignore[misc,unused-ignore]
    """LayerNorm over the channels of a channels-first tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(CHANNELS, WIDTH, 3)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Any) -> Any:
        h = self.front(functional.pad(x, (2, 0))).transpose(1, 2)
        return self.out(functional.gelu(self.norm(h))).transpose(1, 2)


class Attention(nn.Module):  # type: ignore[misc,unused-ignore]
    """Self-attention over all steps, without a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Any) -> Any:
        q = self.project(x)
        return torch.softmax(q @ x.transpose(1, 2), dim=-1) @ x


def causal_body() -> Any:
    return nn.Sequential(*[CausalBlock(CHANNELS if d == 1 else WIDTH, WIDTH, d, d == 2) for d in (1, 2, 4)])


def with_head(pool: Callable[[Any], Any]) -> Any:
    """A causal TCN, a pool over time, a Linear."""
    return Lambda(lambda m, x: m.out(pool(m.body(x))), body=causal_body(), out=nn.Linear(WIDTH, 2))


def branches() -> Any:
    def forward(m: Any, x: Any) -> Any:
        y = torch.cat([m.near(x), m.far(functional.pad(x, (4, 0))), x], dim=1)
        return m.out(y.unsqueeze(1).squeeze(1))

    near, far = nn.Conv1d(CHANNELS, WIDTH, 3, padding=1), nn.Conv1d(CHANNELS, WIDTH, 3, dilation=2)
    return Lambda(forward, near=near, far=far, out=nn.Conv1d(2 * WIDTH + CHANNELS, 2, 1))


def strided() -> Any:
    return nn.Sequential(
        nn.Conv1d(CHANNELS, WIDTH, 4, stride=2, padding=1), nn.GELU(), nn.BatchNorm1d(WIDTH),
        nn.Conv1d(WIDTH, WIDTH, 4, stride=2, padding=1), nn.ELU(), nn.Conv1d(WIDTH, 2, 1),
    )  # fmt: skip


def depthwise() -> Any:
    def forward(m: Any, x: Any) -> Any:
        return m.point(functional.silu(m.depth(functional.pad(x, (4, 0)))))

    depth = nn.Conv1d(CHANNELS, 2 * CHANNELS, 3, dilation=2, groups=CHANNELS)
    return Lambda(forward, depth=depth, point=nn.Conv1d(2 * CHANNELS, 2, 1))


def pooled(pool: Any) -> Any:
    return nn.Sequential(nn.Conv1d(CHANNELS, WIDTH, 3, padding=1), nn.Tanh(), pool, nn.Conv1d(WIDTH, 2, 2))


def embedded() -> Any:
    def forward(m: Any, x: Any) -> Any:
        return m.out(m.core(m.embed(x))[0])

    core = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    return Lambda(forward, embed=nn.Embedding(TOKENS, WIDTH), core=core, out=nn.Linear(WIDTH, 3))


def convolved_lstm() -> Any:
    def forward(m: Any, x: Any) -> Any:
        return m.out(m.core(functional.relu(m.conv(functional.pad(x, (2, 0)))).transpose(1, 2))[0]).transpose(1, 2)

    core = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    return Lambda(forward, conv=nn.Conv1d(CHANNELS, WIDTH, 3), core=core, out=nn.Linear(WIDTH, 2))


def glu() -> Any:
    return nn.Sequential(nn.Conv1d(CHANNELS, 2 * WIDTH, 3, padding=1), nn.GLU(dim=1), nn.Conv1d(WIDTH, 2, 1))


def split() -> Any:
    def forward(m: Any, x: Any) -> Any:
        a, b, c = torch.split(m.conv(x), [1, 2, 3], dim=1)
        return torch.cat([c, a * b], dim=1)

    return Lambda(forward, conv=nn.Conv1d(CHANNELS, 6, 1))


def viewed() -> Any:
    """Heads by view and permute with sizes asked of the tensor, as attention code does it, without the attention."""

    def forward(m: Any, x: Any) -> Any:
        b, t, _ = x.shape
        h = m.wide(x).view(b, t, 2, WIDTH).softmax(dim=-1)
        return m.out(h.reshape(b, -1, 2 * WIDTH))

    return Lambda(forward, wide=nn.Linear(CHANNELS, 2 * WIDTH), out=nn.Linear(2 * WIDTH, 2))


def repeated() -> Any:
    """Down by a stride, up by repetition."""
    return nn.Sequential(
        nn.Conv1d(CHANNELS, WIDTH, 2, stride=2), nn.LeakyReLU(), nn.Upsample(scale_factor=2.0), nn.Conv1d(WIDTH, 2, 1)
    )


@dataclass(frozen=True)
class Family:
    """How a model is built, and where its axes are: "BCT", "BTC", "TBC", or "BT" of tokens."""

    build: Callable[[], Any]
    layout: str = "BCT"


def bidirectional() -> Any:
    return Lambda(lambda m, x: m.core(x)[0], core=nn.LSTM(CHANNELS, WIDTH, batch_first=True, bidirectional=True))


def hand_padded() -> Any:
    """Zeros joined in front instead of a padding, and a chomp by the input's own length."""

    def forward(m: Any, x: Any) -> Any:
        h = torch.cat([torch.zeros(x.shape[0], CHANNELS, 2), x], dim=2)
        return m.wide(torch.relu(m.conv(h)))[:, :, : x.shape[2]]

    return Lambda(forward, conv=nn.Conv1d(CHANNELS, WIDTH, 3), wide=nn.Conv1d(WIDTH, 2, 3, padding=2))


def shared_padding() -> Any:
    """Two convolutions, of the filter and of the gate, over one padded tensor."""

    def forward(m: Any, x: Any) -> Any:
        padded = functional.pad(m.front(x), (4, 0))
        return m.head(torch.tanh(m.filter(padded)) * torch.sigmoid(m.gate(padded)))

    front, head = nn.Conv1d(CHANNELS, WIDTH, 1), nn.Conv1d(WIDTH, 2, 1)
    gates = {name: nn.Conv1d(WIDTH, WIDTH, 3, dilation=2) for name in ("filter", "gate")}
    return Lambda(forward, front=front, head=head, **gates)


def centred() -> Any:
    """Each channel less its mean over time: needs the whole sequence."""
    return Lambda(lambda m, x: m.conv(x - x.mean(dim=2, keepdim=True)), conv=nn.Conv1d(CHANNELS, 2, 1))


def same() -> Any:
    second = nn.Conv1d(WIDTH, 2, 3, padding="same")
    return nn.Sequential(nn.Conv1d(CHANNELS, WIDTH, 5, padding=2), nn.ReLU(), second)


def lstm(**options: Any) -> Any:
    return nn.LSTM(CHANNELS, WIDTH, **options)


def gru(**options: Any) -> Any:
    return nn.GRU(CHANNELS, WIDTH, **options)


MODELS: dict[str, Family] = {
    "tcn_causal": Family(lambda: nn.Sequential(causal_body(), nn.Conv1d(WIDTH, 2, 1))),
    "tcn_chomp": Family(lambda: nn.Sequential(ChompBlock(CHANNELS, WIDTH, 1), ChompBlock(WIDTH, WIDTH, 2))),
    "wavenet": Family(WaveNet),
    "strided": Family(strided),
    "depthwise": Family(depthwise),
    "hand_padded": Family(hand_padded),
    "shared_padding": Family(shared_padding),
    "same": Family(same),
    "max_pool": Family(lambda: pooled(nn.MaxPool1d(3, stride=2, padding=1))),
    "average_pool": Family(lambda: pooled(nn.AvgPool1d(2))),
    "branches": Family(branches),
    "glu": Family(glu),
    "split": Family(split),
    "repeated": Family(repeated),
    "norm_of_channels": Family(NormOfChannels),
    "conv_lstm": Family(convolved_lstm),
    "last_step": Family(lambda: with_head(lambda h: h[:, :, -1])),
    "last_step_squeezed": Family(lambda: with_head(lambda h: h[:, :, -1:].squeeze(2))),
    "mean": Family(lambda: with_head(lambda h: h.mean(dim=-1))),
    "adaptive_average": Family(lambda: with_head(lambda h: functional.adaptive_avg_pool1d(h, 1).flatten(1))),
    "adaptive_max": Family(lambda: with_head(lambda h: functional.adaptive_max_pool1d(h, 1).squeeze(-1))),
    "amax": Family(lambda: with_head(lambda h: torch.amax(h, dim=2))),
    "max": Family(lambda: with_head(lambda h: h.max(dim=2).values)),
    "lstm": Family(lambda: Recurrent(lstm(batch_first=True)), "BTC"),
    "lstm_two_layers": Family(lambda: Recurrent(lstm(num_layers=2, batch_first=True)), "BTC"),
    "lstm_time_first": Family(lambda: Recurrent(lstm()), "TBC"),
    "lstm_last_output": Family(lambda: Recurrent(lstm(batch_first=True), lambda y: y[:, -1]), "BTC"),
    "lstm_last_hidden": Family(LastHidden, "BTC"),
    "gru": Family(lambda: Recurrent(gru(batch_first=True)), "BTC"),
    "gru_time_first": Family(lambda: Recurrent(gru()), "TBC"),
    "gru_mean_time_first": Family(lambda: Recurrent(gru(), lambda y: y.mean(dim=0)), "TBC"),
    "rnn": Family(lambda: Recurrent(nn.RNN(CHANNELS, WIDTH, batch_first=True)), "BTC"),
    "embedding_lstm": Family(embedded, "BT"),
    "viewed": Family(viewed, "BTC"),
    "bidirectional": Family(bidirectional, "BTC"),
    "attention": Family(Attention, "BTC"),
    "group_norm": Family(lambda: nn.Sequential(nn.Conv1d(CHANNELS, WIDTH, 1), nn.GroupNorm(2, WIDTH))),
    "centred": Family(centred),
    "length": Family(lambda: Lambda(lambda m, x: x / x.shape[-1])),
}


def build(name: str) -> Any:
    """The model in evaluation mode with random weights, biases and statistics."""
    torch.manual_seed(sum(map(ord, name)))
    module = MODELS[name].build().eval()
    with torch.no_grad():
        for each in module.modules():
            if isinstance(each, nn.BatchNorm1d):
                each.running_mean.normal_()
                each.running_var.uniform_(0.5, 2.0)
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.normal_()
    return module


def sample(name: str, length: int, batch: int = 2, seed: int = 0) -> np.ndarray[Any, Any]:
    """Random input in the layout of the model."""
    rng = np.random.default_rng(seed)
    layout = MODELS[name].layout
    if layout == "BT":
        return rng.integers(0, TOKENS, (batch, length))
    sizes = {"B": batch, "C": CHANNELS, "T": length}
    return rng.normal(size=[sizes[letter] for letter in layout]).astype(np.float32)


def run(module: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What torch computes."""
    with torch.no_grad():
        y: np.ndarray[Any, Any] = module(torch.from_numpy(x)).numpy()
    return y


def export(name: str, module: Any, exporter: str, opset: int = 20) -> Any:
    """The model as an ONNX proto, with batch and time dynamic."""
    x = torch.from_numpy(sample(name, 13))
    layout = MODELS[name].layout
    axes = {layout.index("B"): "batch", layout.index("T"): "time"}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecations
        if exporter == "dynamo":
            # DYNAMIC insists on what torch.export cannot prove of some recurrent layers and pools.
            shapes = dict.fromkeys(axes, torch.export.Dim.AUTO)
            program = torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=(shapes,), opset_version=opset)
            return program.model_proto
        named = {"input": axes, "output": {0: "batch", 1: "time"}}  # a lie for some outputs, as people write it
        torch.onnx.export(
            module,
            (x,),
            file,
            dynamo=False,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes=named,
            opset_version=opset,
        )
    return onnx.load_from_string(file.getvalue())
