"""Figures of a network over whole clips: every clip counts once, nothing is averaged over batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detector.errors import InputError
from detector.model import Model
from trainer.classify import clip_answer
from trainer.crnn import CRNN
from trainer.data import FULL_SCALE, DataSet, decode, folds_in_words
from trainer.stream_metrics import calibration_error

METRICS = {  # what an epoch may be chosen by, and whether more of it is better
    "loss": False,
    "accuracy": True,
    "precision": True,
    "recall": True,
    "f1": True,
    "average_precision": True,
    "ece": False,
}
RESAMPLES = 2000


@dataclass(frozen=True)
class LabelFigures:
    """One label against the rest, over the whole set; `clips` are those whose truth it is, at least one.

    A label that is never answered has precision 0.
    """

    clips: int
    precision: float
    recall: float
    f1: float
    average_precision: float


@dataclass(frozen=True)
class Figures:
    """What the answers to `clips` clips are worth.

    loss: softmax cross-entropy, nats. precision, recall, f1, average_precision: means over `per_label`, which has the labels with
    clips in the truth, so f1 is the mean of their F1. ece: see `calibration_error`. interval: see `accuracy_interval`.
    confusion: [labels, labels] clips by truth (row) and answer (column), in the order of `labels`.
    """

    accuracy: float
    interval: tuple[float, float] | None
    loss: float
    precision: float
    recall: float
    f1: float
    average_precision: float
    ece: float
    clips: int
    labels: tuple[str, ...]
    per_label: dict[str, LabelFigures]
    confusion: NDArray[np.int64]


def evaluate(model: CRNN | Model, data: DataSet, folds: Sequence[int], channels: str = "avg") -> Figures:
    """Figures of a network, or of an .onnx file, on every clip of these folds. Raises InputError for folds without clips, other
    labels or a clip that cannot be decoded."""
    chosen = [data.clips[index] for index in data.of_folds(folds)]
    if not chosen:
        raise InputError(
            str(data.root), f"has no clips in {folds_in_words(folds)}", f"folds here: {', '.join(map(str, data.folds))}"
        )
    rate = model.cfg.frontend.sample_rate if isinstance(model, CRNN) else model.description.sample_rate
    audio = decode([clip.path for clip in chosen], rate, channels=channels)
    if isinstance(model, CRNN):
        logits = clip_scores(model, [audio[index] for index in range(len(audio))])
    else:
        logits = np.stack([clip_answer(model, np.asarray(audio[i] / FULL_SCALE, np.float32))[0] for i in range(len(audio))])
    targets = np.array([clip.target for clip in chosen])
    return figures_of(logits, targets, data.labels, [clip.recording for clip in chosen])


def clip_scores(model: CRNN, clips: Sequence[NDArray[np.int16]], batch_size: int = 32) -> NDArray[np.float32]:
    """Logits of whole clips (int16, [samples] or [samples, channels]), [clips, labels]; none depends on its batch."""
    device = model.frontend.window.device
    was_training = model.training
    model.eval()
    channels = model.cfg.channels
    out = np.zeros((len(clips), model.cfg.outputs), np.float32)
    order = sorted(range(len(clips)), key=lambda index: len(clips[index]))
    with torch.no_grad():
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            audio = np.zeros((len(chosen), channels, max(1, *(len(clips[index]) for index in chosen))), np.int16)
            for row, index in zip(audio, chosen, strict=True):
                row[:, : len(clips[index])] = clips[index].reshape(-1, channels).T
            samples = torch.tensor([len(clips[index]) for index in chosen], device=device)
            heard = torch.from_numpy(audio).to(device).flatten(0, 1) / FULL_SCALE
            out[chosen] = model.clip_logits(heard, samples).cpu().numpy()
    model.train(was_training)
    return out


def figures_of(
    logits: NDArray[np.float32],
    targets: NDArray[np.int64],
    labels: Sequence[str],
    recordings: Sequence[str] | None = None,
    *,
    interval: bool = True,
) -> Figures:
    """Compare answers with the truth. Of equal logits the first is the answer.

    logits: [clips, labels], at least one clip. targets: [clips], positions in `labels`. recordings: which recording each clip was
    cut from; without them every clip is taken for a recording of its own. interval: whether to work out the accuracy's.
    """
    answers = logits.argmax(1)
    right = answers == targets
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_share = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    share = np.exp(log_share)
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (targets, answers), 1)
    per_label = {}
    for index, label in enumerate(labels):
        hits, true, answered = int(confusion[index, index]), int(confusion[index].sum()), int(confusion[:, index].sum())
        if true:
            per_label[label] = LabelFigures(
                clips=true,
                precision=hits / max(1, answered),
                recall=hits / true,
                f1=2 * hits / (true + answered),
                average_precision=average_precision(share[:, index], targets == index),
            )
    each = per_label.values()
    return Figures(
        accuracy=float(right.mean()),
        interval=accuracy_interval(right, recordings) if interval else None,
        loss=float(-log_share[np.arange(len(targets)), targets].mean()),
        precision=float(np.mean([one.precision for one in each])),
        recall=float(np.mean([one.recall for one in each])),
        f1=float(np.mean([one.f1 for one in each])),
        average_precision=float(np.mean([one.average_precision for one in each])),
        ece=calibration_error(share.max(1), right),
        clips=len(targets),
        labels=tuple(labels),
        per_label=per_label,
        confusion=confusion,
    )


def average_precision(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area under the precision-recall curve as a sum of steps, without interpolation: sum of (R_n - R_(n-1)) P_n.

    scores, positive: [clips], at least one positive. Clips of one score are one step, so their order does not matter.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(positive[order])[ends]
    return float((np.diff(found, prepend=0) * found / (ends + 1)).sum() / found[-1])


def accuracy_interval(right: NDArray[np.bool_], recordings: Sequence[str] | None = None) -> tuple[float, float] | None:
    """The middle 95 % of the accuracy over 2,000 resamples (bootstrap percentiles), the same at every call.

    Whole recordings are resampled, for the clips cut from one are right or wrong together; without `recordings` clips are. None
    for a single recording, which tells nothing of others. Answers that are all right, or all wrong, have an interval of no width.
    """
    _, group = np.unique(np.arange(len(right)) if recordings is None else np.asarray(recordings), return_inverse=True)
    total = np.bincount(group)
    if len(total) < 2:
        return None
    # Recordings of one count of clips and of right answers are interchangeable: drawing kinds is the same draw, and much smaller.
    kinds, recordings_of_kind = np.unique(np.stack([np.bincount(group, right), total], axis=1), axis=0, return_counts=True)
    drawn = np.random.default_rng(1).multinomial(len(total), recordings_of_kind / len(total), RESAMPLES) @ kinds
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    return float(low), float(high)


def as_json(figures: Figures) -> dict[str, Any]:
    """The figures a model file carries, rounded. `recall` is per label; confusion's rows and columns go by `labels`."""
    return {
        "accuracy": round(figures.accuracy, 4),
        "interval": figures.interval and [round(end, 4) for end in figures.interval],
        "macro_precision": round(figures.precision, 4),
        "macro_recall": round(figures.recall, 4),
        "macro_f1": round(figures.f1, 4),
        "average_precision": round(figures.average_precision, 4),
        "ece": round(figures.ece, 4),
        "loss": round(figures.loss, 4),
        "clips": figures.clips,
        "recall": {label: round(one.recall, 3) for label, one in figures.per_label.items()},
        "per_label": {
            label: {name: round(value, 4) for name, value in asdict(one).items()} for label, one in figures.per_label.items()
        },
        "labels": list(figures.labels),
        "confusion": figures.confusion.tolist(),
    }


def text(figures: Figures) -> str:
    """The figures as a table for people, and the three confusions met most often. A label without clips has no figures."""
    width = max(map(len, (*figures.labels, "macro")))

    def row(name: str, one: LabelFigures | Figures) -> str:
        shares = (one.precision, one.recall, one.f1, one.average_precision)
        return f"{name:<{width}}  {one.clips:>5}" + "".join(f"  {share:>9.1%}" for share in shares)

    lines = [f"{'':<{width}}  {'clips':>5}" + "".join(f"  {head:>9}" for head in ("precision", "recall", "F1", "AP"))]
    for label in figures.labels:
        one = figures.per_label.get(label)
        lines.append(row(label, one) if one else f"{label:<{width}}  {0:>5}" + f"  {'-':>9}" * 4)
    lines.append(row("macro", figures))
    within = "" if figures.interval is None else f" (95% interval {figures.interval[0]:.1%} to {figures.interval[1]:.1%})"
    lines.append(f"accuracy {figures.accuracy:.1%}{within}, cross-entropy {figures.loss:.3f} nats, ECE {figures.ece:.3f}")
    wrong = figures.confusion - np.diag(np.diag(figures.confusion))
    for true, answered in zip(*np.unravel_index(np.argsort(-wrong, axis=None, kind="stable")[:3], wrong.shape), strict=True):
        if count := wrong[true, answered]:
            lines.append(f"{figures.labels[true]} taken for {figures.labels[answered]} {count} time{'s' if count > 1 else ''}")
    return "\n".join(lines)
