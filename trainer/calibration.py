"""Scores that mean what they say: one scale and one offset of all logits, fitted on soundscapes and folded into the weights.

A calibrated score of 0.7 is a probability in this sense: of the rows of soundscapes scored so, 70 % lie in that label. Soundscapes
hold many more events than most streets, where the same score is right less often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from detector.audio.source import Floats
from trainer.crnn import CRNN
from trainer.stream_metrics import calibration_error
from trainer.streams import BLOCK, Soundscape

PRIOR = 1e-3
"""Holds scale and offset near 1 and 0 where the rows say little, and finite where they are told apart without a fault."""
LEAST = 0.05
"""Of a scale: below 0 a network that answers worse than chance would be turned round."""
STEPS = 50


@dataclass(frozen=True)
class Calibration:
    """calibrated logit = scale * logit + offset; ece_before, ece_after: over all rows and labels it was fitted on, 15 bins."""

    scale: float
    offset: float
    ece_before: float
    ece_after: float

    @property
    def said(self) -> str:
        return (
            f"calibration: logits times {self.scale:.2f} plus {self.offset:.2f}; ECE on the rows of validation soundscapes "
            f"{self.ece_before:.4f} before, {self.ece_after:.4f} after"
        )


def row_logits(model: CRNN, audio: Floats) -> Floats:
    """Logits of a recording heard as one fresh stream, [rows, labels], at least one row; audio: [samples] in -1..1."""
    cfg, device = model.cfg, model.frontend.window.device
    rows = max(1, -(-len(audio) // cfg.hop))
    window = torch.zeros(1, cfg.context + rows * cfg.hop)
    window[0, cfg.context : cfg.context + len(audio)] = torch.from_numpy(np.ascontiguousarray(audio))
    with torch.no_grad():
        logits, _ = model.rows(model.frontend(window.to(device)), model.fresh_state(1))
    return np.asarray(logits[0].float().cpu().numpy())


def row_targets(soundscape: Soundscape, rows: int, hop: int) -> NDArray[np.bool_]:
    """Which labels sound in the middle of each row, [rows, labels]."""
    middle = (np.arange(rows) * hop + hop // 2) // BLOCK
    return soundscape.active[np.minimum(middle, len(soundscape.active) - 1)]


def calibrate(logits: Sequence[Floats], targets: Sequence[NDArray[np.bool_]]) -> Calibration:
    """Fit scale and offset by least cross-entropy over all rows and labels: logits, targets [rows, labels] of each soundscape.

    One pair serves all labels, so that the order of a row's labels stays; a pair per label was no better on soundscapes of other
    clips. Platt, Probabilistic outputs for support vector machines, 1999; Newton's method, its step halved while it overshoots.
    """
    x = np.concatenate([each.ravel() for each in logits]).astype(np.float64)
    y = np.concatenate([each.ravel() for each in targets]).astype(np.float64)
    start = np.array([1.0, 0.0])

    def loss(at: NDArray[np.float64]) -> float:
        z = at[0] * x + at[1]
        return float((np.logaddexp(0, z) - y * z).mean() + PRIOR / 2 * ((at - start) ** 2).sum())

    at, now = start, loss(start)
    for _ in range(STEPS):
        p = _sigmoid(at[0] * x + at[1])
        slope, weight = p - y, p * (1 - p)
        gradient = np.array([(slope * x).mean(), slope.mean()]) + PRIOR * (at - start)
        mixed = (weight * x).mean()
        curvature = np.array([[(weight * x * x).mean(), mixed], [mixed, weight.mean()]]) + PRIOR * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while (then := loss(at - step)) > now and np.abs(step).max() > 1e-9:
            step = step / 2
        if np.abs(step).max() < 1e-6:
            break
        at, now = at - step, then
    scale, offset = max(LEAST, float(at[0])), float(at[1])
    return Calibration(scale, offset, calibration_error(_sigmoid(x), y > 0), calibration_error(_sigmoid(scale * x + offset), y > 0))


def last_linear(model: CRNN) -> nn.Linear | None:
    """The layer a calibration is folded into; None where the network ends otherwise, or does not stream."""
    layer = model.layers[model.cfg.layers[-1].name]
    return layer if isinstance(layer, nn.Linear) and layer.bias is not None and not model.cfg.obstacles else None


def fold(calibration: Calibration, layer: nn.Linear) -> None:
    """Change the network so that its logits are the calibrated ones."""
    with torch.no_grad():
        layer.weight.mul_(calibration.scale)
        layer.bias.mul_(calibration.scale).add_(calibration.offset)


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -60, 60))))
