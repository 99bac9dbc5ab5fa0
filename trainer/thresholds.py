"""Thresholds per label: few false events on sound that holds none of the labels, and of those settings the one that hears most."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from trainer.crnn import CRNN

DEFAULT = {"on": 0.5, "off": 0.25, "min_on_s": 0.15, "min_off_s": 0.6}
"""Where there is nothing to choose on."""

HOLDS_S = (0.15, 0.35, 0.75, 1.5)
"""min_on_s to choose from: a shot is over soon, an engine is not."""

LOWEST, HIGHEST = 0.2, 0.98
TARGET_PER_HOUR = 2.0
"""False events an hour and label that the thresholds are chosen for."""


def stream_scores(model: CRNN, audio: NDArray[np.int16]) -> NDArray[np.float32]:
    """Scores of a recording heard as one fresh stream, [rows, labels]."""
    cfg = model.cfg
    rows = max(1, -(-len(audio) // cfg.hop))
    window = np.zeros((1, cfg.context + rows * cfg.hop), np.float32)
    window[0, cfg.context : cfg.context + len(audio)] = audio / np.float32(32768)
    with torch.no_grad():
        scores, _ = model.step(torch.from_numpy(window), model.fresh_state(1))
    return np.asarray(scores[0].numpy(), np.float32)


def held(scores: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """The highest score each label holds for so many rows: [rows, labels] -> [labels], zeros for a recording that is shorter."""
    if len(scores) < rows:
        return np.zeros(scores.shape[1], np.float32)
    return np.asarray(sliding_window_view(scores, rows, axis=0).min(2).max(0), np.float32)


def choose_thresholds(
    model: CRNN,
    labels: Sequence[str],
    quiet: Sequence[NDArray[np.int16]],
    clips: Sequence[tuple[NDArray[np.int16], int]],
    lengths_s: Sequence[Sequence[float]],
) -> tuple[dict[str, dict[str, float]], str]:
    """Choose per label `on` and `min_on_s`, and say what they reach.

    quiet: recordings without any label; clips: validation clips with their target. For every hold of HOLDS_S the lowest `on` with
    at most TARGET_PER_HOUR false events is found (a recording counts once); the hold that hears most of the label's clips wins.
    lengths_s: per label, the lengths of its known clips: no hold is longer than half of its short ones (the 10th percentile).
    """
    model = model.eval()
    rate = model.cfg.frontend.sample_rate
    quiet_scores = [stream_scores(model, audio) for audio in quiet]
    clip_scores = [stream_scores(model, audio) for audio, _ in clips]
    targets = np.array([target for _, target in clips])
    hours = sum(len(audio) for audio in quiet) / rate / 3600
    allowed = int(TARGET_PER_HOUR * hours)
    best: dict[str, tuple[float, float, float, int]] = {}
    for hold_s in HOLDS_S:
        rows = max(1, int(np.ceil(hold_s * rate / model.cfg.hop - 1e-9)))
        false = np.stack([held(scores, rows) for scores in quiet_scores])
        true = np.stack([held(scores, rows) for scores in clip_scores])
        for column, label in enumerate(labels):
            if hold_s > HOLDS_S[0] and (not lengths_s[column] or hold_s > np.quantile(lengths_s[column], 0.1) / 2):
                continue
            limit = np.sort(false[:, column])[-1 - min(allowed, len(false) - 1)]
            on = round(min(max(math.ceil((float(limit) + 0.005) * 100) / 100, LOWEST), HIGHEST), 2)
            recall = float((true[targets == column, column] >= on).mean()) if (targets == column).any() else 0.0
            if label not in best or recall > best[label][0]:
                best[label] = (recall, on, hold_s, int((false[:, column] >= on).sum()))
    alarms = sum(count for *_, count in best.values())
    heard = np.mean([recall for recall, *_ in best.values()])
    said = (
        f"thresholds: {alarms} false events in {hours:.2f} h of held-out backgrounds over all labels, "
        f"{heard:.0%} of the validation clips heard (mean over labels); the thresholds were chosen on both: this is no test"
    )
    thresholds = {
        label: {"on": on, "off": round(on / 2, 3), "min_on_s": hold_s, "min_off_s": DEFAULT["min_off_s"]}
        for label, (_, on, hold_s, _) in best.items()
    }
    return thresholds, said
