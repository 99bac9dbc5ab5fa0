"""The vocabulary of the .cfg grammar: which layers there are, their arguments, and what is known of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

REQUIRED = object()
"""Marks an argument a layer cannot do without."""

_CONV = {"out_channels": REQUIRED, "kernel_size": REQUIRED, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": True}
_POOL = {"kernel_size": REQUIRED, "stride": None, "padding": 0, "ceil_mode": False}
_NORM = {"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True}
_RNN = {"hidden_size": REQUIRED, "num_layers": 1, "bias": True, "dropout": 0.0, "bidirectional": False}

ARGUMENTS: dict[str, dict[str, Any]] = {
    **{f"conv{d}d": _CONV for d in (1, 2)},
    **{f"convtranspose{d}d": {**_CONV, "output_padding": 0} for d in (1, 2)},
    **{f"maxpool{d}d": {**_POOL, "dilation": 1} for d in (1, 2)},
    **{f"avgpool{d}d": {**_POOL, "count_include_pad": True} for d in (1, 2)},
    **{f"adaptive{kind}pool{d}d": {"output_size": REQUIRED} for kind in ("max", "avg") for d in (1, 2)},
    **{f"batchnorm{d}d": _NORM for d in (1, 2)},
    "relu": {"inplace": False},
    "elu": {"alpha": 1.0, "inplace": False},
    "leakyrelu": {"negative_slope": 0.01, "inplace": False},
    "sigmoid": {},
    "dropout": {"p": 0.5, "inplace": False},
    "linear": {"out_features": REQUIRED, "bias": True},
    "lstm": _RNN,
    "gru": _RNN,
    "rnn": {**_RNN, "nonlinearity": "tanh"},
}
"""Every layer of the grammar and its arguments: torch's names, torch's defaults."""

RECURRENT = {"lstm": 4, "gru": 3, "rnn": 1}
"""Recurrent layers and their number of gates."""

SIZES = ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")
"""Arguments with a value per axis, the channels not counted."""


@dataclass(frozen=True)
class Frontend:
    """The spectrogram: un-centred Hann frames, HTK mel bands, `log` = ln(power + 1e-6) or `none`.

    norm: `bands` subtracts a fixed mean and divides by a fixed deviation per band (streams); `whiten` does so over the whole
    clip (trains, does not stream); `none`.
    """

    sample_rate: int = 22050
    n_fft: int = 1024
    hop_length: int = 512
    n_mels: int = 64
    f_min: float = 0.0
    f_max: float = 0.0
    compression: str = "log"
    norm: str = "bands"

    @property
    def top_hz(self) -> float:
        """The upper edge of the highest band; 0 in the cfg means half the sample rate."""
        return self.f_max or self.sample_rate / 2


@dataclass(frozen=True)
class ModDims:
    """What happens to the axes between two modules, the batch axis not counted. Makes no layer.

    keeps_rows: the permutation drops the time axis (many-to-one): a clip keeps its last row, a stream every row.
    """

    permute: tuple[int, ...]
    collapse: tuple[int, ...]
    line: int
    keeps_rows: bool = False


@dataclass(frozen=True)
class Layer:
    """One layer: its arguments complete, its shapes without the batch axis, its trainable parameters.

    time_axis: where time stands in shape_in; None when it is gone.
    """

    name: str
    kind: str
    module: str
    args: dict[str, Any]
    line: int
    shape_in: tuple[int, ...] = ()
    shape_out: tuple[int, ...] = ()
    time_axis: int | None = None
    parameters: int = 0
