"""The network: one definition, three drivers.

`CRNN.clip_logits` answers for whole clips (training, evaluation), `CRNN.step` for a window of a stream with explicit state,
`Streaming` for what is new of a stream, and is what is exported. All three run `CRNN.rows`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from trainer.cfg import Cfg
from trainer.frontend import LogMel, whiten
from trainer.layers import RECURRENT, Layer, ModDims

Reach = Callable[[Layer, Tensor], Tensor]
State = tuple[Tensor, ...]
"""Recurrent tensors [layers, streams, hidden] in the order of `CRNN.state_names`."""

_MODULES: dict[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "convtranspose1d": nn.ConvTranspose1d,
    "convtranspose2d": nn.ConvTranspose2d,
    "maxpool1d": nn.MaxPool1d,
    "maxpool2d": nn.MaxPool2d,
    "avgpool1d": nn.AvgPool1d,
    "avgpool2d": nn.AvgPool2d,
    "adaptivemaxpool1d": nn.AdaptiveMaxPool1d,
    "adaptivemaxpool2d": nn.AdaptiveMaxPool2d,
    "adaptiveavgpool1d": nn.AdaptiveAvgPool1d,
    "adaptiveavgpool2d": nn.AdaptiveAvgPool2d,
    "batchnorm1d": nn.BatchNorm1d,
    "batchnorm2d": nn.BatchNorm2d,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "leakyrelu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "dropout": nn.Dropout,
    "linear": nn.Linear,
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
}


def _build(layer: Layer) -> nn.Module:
    """The torch module of one layer; its input size comes from the shape."""
    args = dict(layer.args)
    if layer.kind in RECURRENT:
        return _MODULES[layer.kind](layer.shape_in[1], batch_first=True, **args)
    if layer.kind == "linear":
        return nn.Linear(layer.shape_in[-1], **args)
    if layer.kind.startswith("conv"):
        return _MODULES[layer.kind](layer.shape_in[0], **args)
    if layer.kind.startswith("batchnorm"):
        rows = len(layer.shape_in) == 1 or layer.time_axis == 0
        return _MODULES[layer.kind](layer.shape_in[-1 if rows else 0], **args)
    return _MODULES[layer.kind](**args)


class CRNN(nn.Module):
    """The network a cfg describes, its front end included.

    state_names: the state tensors a step reads and returns (`h`, `c` for an LSTM; a second recurrent layer adds `h_1`, `c_1`).
    """

    def __init__(self, cfg: Cfg) -> None:
        super().__init__()
        self.cfg = cfg
        self.frontend = LogMel(cfg.frontend)
        self.layers = nn.ModuleDict({layer.name: _build(layer) for layer in cfg.layers})
        self.recurrent = [layer for layer in cfg.layers if layer.kind in RECURRENT]
        self.state_names = [
            name + (f"_{index}" if index else "")
            for index, layer in enumerate(self.recurrent)
            for name in (("h", "c") if layer.kind == "lstm" else ("h",))
        ]

    def fresh_state(self, streams: int) -> State:
        """Zeros: the state before the first sample of a session."""
        device = self.frontend.window.device
        return tuple(
            torch.zeros(
                layer.args["num_layers"] * (1 + layer.args["bidirectional"]), streams, layer.args["hidden_size"], device=device
            )
            for layer in self.recurrent
            for _ in range(2 if layer.kind == "lstm" else 1)
        )

    def rows(
        self, features: Tensor, state: State, count: Tensor | None = None, reach: Reach = lambda _, x: x
    ) -> tuple[Tensor, State]:
        """Spectrogram frames -> one row of logits per time stride.

        features: [streams * channels, n_mels, context frames + k * stride_frames]; count: [streams], the valid rows of each where
        they are clips, so that a many-to-one network answers with the last and a bidirectional one begins there; reach: what a
        layer is given instead of the output of the one before.
        Returns logits [streams, k, labels], or [streams, labels] for clips of a many-to-one network, and the state.
        """
        channels = self.cfg.channels
        x = features[:, None] if channels == 1 else features.reshape(-1, channels, *features.shape[1:])
        given = list(state)
        carried: list[Tensor] = []
        for step in self.cfg.steps:
            if isinstance(step, ModDims):
                x = self._rearrange(x, step, count)
                continue
            module, x = self.layers[step.name], reach(step, x)
            if step.kind in RECURRENT:
                old, given = (given[:2], given[2:]) if step.kind == "lstm" else (given[:1], given[1:])
                packed = count is not None and step.args["bidirectional"]
                if packed:
                    assert count is not None
                    x = pack_padded_sequence(x, self._own(count, x.shape[1]).cpu(), batch_first=True, enforce_sorted=False)  # type: ignore[assignment]
                x, new = module(x, tuple(old) if step.kind == "lstm" else old[0])
                if packed:
                    x, _ = pad_packed_sequence(x, batch_first=True)
                carried += new if step.kind == "lstm" else [new]
            elif step.kind == "batchnorm1d" and x.dim() == 3 and (step.time_axis == 0 or len(step.shape_in) == 1):
                x = module(x.transpose(1, 2)).transpose(1, 2)
            else:
                x = module(x)
        return x, tuple(carried)

    def _rearrange(self, x: Tensor, step: ModDims, count: Tensor | None) -> Tensor:
        """Apply a [moddims]; where it drops the time axis, a clip keeps its last row and a stream every row."""
        if step.keeps_rows:
            return x if count is None else x[torch.arange(len(count), device=x.device), self._own(count, x.shape[1]) - 1]
        if step.permute:
            x = x.permute(0, *(axis + 1 for axis in step.permute))
        if step.collapse:
            x = x.flatten(step.collapse[0] + 1, step.collapse[-1] + 1)
        return x

    def _own(self, count: Tensor, rows: int) -> Tensor:
        """How many of so many rows are each clip's own: padding or pooling over time may have made them more or fewer."""
        return -(-count * rows // count.max()) if self.cfg.pads_time else count

    def step(self, audio: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of a stream: (window, state) -> (scores, new state).

        audio: [streams, context + k * hop]. Returns scores [streams, k, labels] in 0..1.
        """
        logits, state = self.rows(self.frontend(audio), state)
        return torch.sigmoid(logits), state

    def clip_rows(self, samples: Tensor) -> Tensor:
        """How many rows a clip of so many samples has; a last hop begun counts."""
        if self.cfg.obstacles:
            return torch.clamp((samples - self.cfg.receptive_samples) // self.cfg.hop + 1, min=1)
        return torch.clamp(-(-samples // self.cfg.hop), min=1)

    def clip_logits(self, audio: Tensor, samples: Tensor) -> Tensor:
        """Logits of whole clips.

        audio: [clips * channels, longest], zeros after each clip's end; samples: [clips], each clip's length. Returns
        [clips, labels]: what it says of a clip does not depend on the others. A network that streams hears the clip as a fresh
        stream would: zeros before it, its last hop filled up.
        """
        cfg = self.cfg
        sizes = sorted(set(samples.tolist())) if cfg.pads_time else []
        if len(sizes) > 1:
            out = torch.zeros(len(samples), cfg.outputs, device=audio.device)
            for size in sizes:
                rows = samples == size
                out[rows] = self.clip_logits(audio[rows.repeat_interleave(cfg.channels), :size], samples[rows])
            return out
        count = self.clip_rows(samples)
        frames = torch.clamp((samples - cfg.frontend.n_fft) // cfg.frontend.hop_length + 1, min=1)
        wanted = cfg.receptive_samples + (int(count.max()) - 1) * cfg.hop
        lead = 0 if cfg.obstacles else cfg.context
        if cfg.obstacles:  # frames after the last row belong to the clip's mean all the same
            wanted = max(wanted, (int(frames.max()) - 1) * cfg.frontend.hop_length + cfg.frontend.n_fft)
        audio = nn.functional.pad(audio, (lead, max(0, wanted - lead - audio.shape[1])))[:, :wanted]
        features = self.frontend(audio)
        if cfg.frontend.norm == "whiten":
            features = whiten(features, frames.repeat_interleave(cfg.channels))
        return self.pooled(features, count)

    def pooled(self, features: Tensor, count: Tensor) -> Tensor:
        """Logits of clips from their frames: [clips * channels, n_mels, frames], `count` valid rows each -> [clips, labels]."""
        logits, _ = self.rows(features, self.fresh_state(len(count)), count)
        return logits if logits.dim() == 2 else pool(logits, self._own(count, logits.shape[1]), self.cfg.clip_pooling)


def pool(logits: Tensor, count: Tensor, pooling: str) -> Tensor:
    """Pool rows into one answer a clip: logits [clips, rows, labels], count [clips] valid rows -> [clips, labels] logits."""
    valid = (torch.arange(logits.shape[1], device=logits.device) < count[:, None])[..., None]
    if pooling == "last":
        return logits[torch.arange(len(count), device=logits.device), count - 1]
    if pooling == "max":
        return logits.masked_fill(~valid, -torch.inf).amax(1)
    if pooling == "logit_mean":
        return (logits * valid).sum(1) / count[:, None]
    return torch.logit((torch.sigmoid(logits) * valid).sum(1) / count[:, None], eps=1e-6)
