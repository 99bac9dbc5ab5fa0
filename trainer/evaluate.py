"""Figures of a network over whole clips: every clip counts once, nothing is averaged over batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.crnn import CRNN


@dataclass(frozen=True)
class Figures:
    """accuracy and loss (softmax cross-entropy, nats) over `clips` clips; recall per label; confusion[true, answered]."""

    accuracy: float
    loss: float
    clips: int
    recall: dict[str, float]
    confusion: NDArray[np.int64]


def clip_scores(model: CRNN, clips: Sequence[NDArray[np.int16]], batch_size: int = 32) -> NDArray[np.float32]:
    """Logits of whole clips, [clips, labels]. The answer for a clip does not depend on its batch."""
    device = model.frontend.window.device
    was_training = model.training
    model.eval()
    out = np.zeros((len(clips), model.cfg.outputs), np.float32)
    order = sorted(range(len(clips)), key=lambda index: len(clips[index]))
    with torch.no_grad():
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            audio = np.zeros((len(chosen), max(1, *(len(clips[index]) for index in chosen))), np.float32)
            for row, index in zip(audio, chosen, strict=True):
                row[: len(clips[index])] = clips[index]
            samples = torch.tensor([len(clips[index]) for index in chosen], device=device)
            out[chosen] = model.clip_logits(torch.from_numpy(audio / 32768).to(device), samples).cpu().numpy()
    model.train(was_training)
    return out


def figures_of(logits: NDArray[np.float32], targets: NDArray[np.int64], labels: Sequence[str]) -> Figures:
    """Compare answers with the truth: logits [clips, labels], targets [clips]."""
    answers = logits.argmax(1)
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (targets, answers), 1)
    true = confusion.sum(1)
    shifted = logits - logits.max(1, keepdims=True)
    log_share = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return Figures(
        accuracy=float((answers == targets).mean()),
        loss=float(-log_share[np.arange(len(targets)), targets].mean()),
        clips=len(targets),
        recall={label: float(confusion[i, i] / true[i]) for i, label in enumerate(labels) if true[i]},
        confusion=confusion,
    )


def as_json(figures: Figures) -> dict[str, Any]:
    """The figures a model file carries."""
    return {
        "accuracy": round(figures.accuracy, 4),
        "clips": figures.clips,
        "recall": {label: round(value, 3) for label, value in figures.recall.items()},
    }
