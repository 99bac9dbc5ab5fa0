"""The network as it ships: no frame is computed twice, for what its layers look back on is part of the state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.crnn import CRNN, State
from trainer.layers import Layer


def looks_back(layer: Layer) -> int:
    """Frames before the new ones that a layer reads with them; below 0, so many of the new ones that it skips first."""
    if "kernel_size" not in layer.args or layer.time_axis is None:
        return 0
    axis = layer.time_axis - 1
    kernel, stride = layer.args["kernel_size"][axis], layer.args["stride"][axis]
    dilation = layer.args["dilation"][axis] if "dilation" in layer.args else 1
    return int(dilation * (kernel - 1) + 1 - stride)


class Streaming(nn.Module):
    """`CRNN.step` without its context: `forward` reads n_fft - hop_length samples before the new ones, and pasts from the state.

    A past is the newest input of a convolution or pool, less what that input is in silence: so zeros are fresh, and a fresh stream
    has silence before it, as `CRNN.step` has with a context of zeros. The network is put into evaluation mode. state_names: the
    recurrent tensors, then the pasts.
    """

    def __init__(self, model: CRNN) -> None:
        """Raises CfgError naming the layer when the network needs whole clips."""
        super().__init__()
        model.cfg.require_streaming()
        self.model, self.context = model, model.cfg.frontend.n_fft - model.cfg.frontend.hop_length
        self.eval()
        self._quiet: dict[str, Tensor] = {}

        def remember(layer: Layer, x: Tensor) -> Tensor:
            if looks_back(layer) > 0:
                frames = looks_back(layer)
                self._quiet[layer.name] = _newest(layer, x, 1).repeat_interleave(frames, _axis(layer))
            return x

        with torch.no_grad():
            silence = torch.zeros(1, model.cfg.receptive_samples, device=model.frontend.window.device)
            model.rows(model.frontend(silence), model.fresh_state(1), reach=remember)
        self._layers = [layer for layer in model.cfg.layers if layer.name in self._quiet]
        self.state_names = [*model.state_names, *(f"past_{layer.name}" for layer in self._layers)]
        self.stream_axes = [1] * len(model.state_names) + [0] * len(self._layers)

    def fresh_state(self, streams: int) -> State:
        """Zeros: the state before the first sample of a session."""
        pasts = []
        for layer in self._layers:
            quiet = self._quiet[layer.name]
            pasts.append(quiet.new_zeros(streams, *quiet.shape[1:]))
        return (*self.model.fresh_state(streams), *pasts)

    def forward(self, audio: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """audio: [streams, context + k * hop] -> scores [streams, k, labels] in 0..1, and the new state in its names' order."""
        recurrent = len(self.model.state_names)
        old, new = iter(state[recurrent:]), []

        def reach(layer: Layer, x: Tensor) -> Tensor:
            frames = looks_back(layer)
            if frames <= 0:
                return x[(*[slice(None)] * _axis(layer), slice(-frames, None))] if frames else x
            quiet = self._quiet[layer.name]
            x = torch.cat([next(old) + quiet, x], dim=_axis(layer))
            new.append(_newest(layer, x, frames) - quiet)
            return x

        logits, carried = self.model.rows(self.model.frontend(audio), state[:recurrent], reach=reach)
        return (torch.sigmoid(logits), *carried, *new)


def _axis(layer: Layer) -> int:
    """Of time, in a batch."""
    assert layer.time_axis is not None
    return layer.time_axis + 1


def _newest(layer: Layer, x: Tensor, frames: int) -> Tensor:
    return x[(*[slice(None)] * _axis(layer), slice(-frames, None))]
