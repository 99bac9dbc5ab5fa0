"""The class of a whole clip, and the picture of how it came about. Torch is needed for a checkpoint, not for an .onnx."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detector.audio.source import Floats
from detector.model import Model
from trainer.cfg import mel_hz, parse_cfg
from trainer.data import read_audio
from trainer.layers import Frontend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOOR = 1e-6
"""That of trainer.frontend, which needs torch."""

ROWS_AT_ONCE = 256
"""A long recording is stepped through in windows of so many rows: the scores are the same, the memory is not."""


@dataclass(frozen=True)
class Classifier:
    """A model that answers for whole clips.

    hop: samples a row at sample_rate; cfg: the architecture's text, `path` names it in errors; read: a file -> [samples] or
    [samples, channels] at sample_rate; hear: that -> pooled logits [labels], and scores [rows, labels] if the network streams.
    """

    path: Path
    sample_rate: int
    hop: int
    labels: tuple[str, ...]
    cfg: str
    read: Callable[[Path], Floats]
    hear: Callable[[Floats], tuple[Floats, Floats | None]]


@dataclass(frozen=True)
class Answer:
    """What a model says of a clip: each label's share (softmax of the pooled logits), best first; scores as `hear` gives them."""

    file: Path
    shares: dict[str, float]
    audio: Floats
    scores: Floats | None

    @property
    def label(self) -> str:
        return next(iter(self.shares))


def load_classifier(path: Path) -> Classifier:
    """An .onnx of the contract, or the model.pt of a training. Raises ModelError or CfgError saying what is wrong with it."""
    if path.suffix == ".onnx":
        model = Model(path, "cpu")
        d = model.description
        cfg = str(d.properties["cfg"])
        read, hear = partial(read_audio, rate=d.sample_rate), partial(clip_answer, model)
        return Classifier(path, d.sample_rate, d.hop, d.labels, cfg, read, hear)
    return _checkpoint(path)


def clip_answer(model: Model, audio: Floats) -> tuple[Floats, Floats]:
    """A clip's pooled logits, [labels], and its scores, [rows, labels], from the model file alone."""
    d = model.description
    scores = stream_rows(model.step, model.fresh_state(1), audio, d.hop, d.context)
    return pool(scores, d.clip_pooling), scores


def _checkpoint(path: Path) -> Classifier:
    import torch

    from trainer.checkpoint import load_checkpoint
    from trainer.run import channels_of

    network, checkpoint = load_checkpoint(path)
    cfg, rate = network.cfg, network.cfg.frontend.sample_rate
    channels = channels_of(checkpoint["training"])

    def read(file: Path) -> Floats:
        return read_audio(file, rate, channels)

    def step(window: Floats, state: Any) -> tuple[Floats, Any]:
        scores, state = network.step(torch.from_numpy(window), state)
        return np.asarray(scores.numpy(), np.float32), state

    def hear(audio: Floats) -> tuple[Floats, Floats | None]:
        with torch.no_grad():
            if cfg.obstacles:
                channels = torch.from_numpy(audio.reshape(len(audio), -1).T.copy())
                logits = network.clip_logits(channels, torch.tensor([len(audio)]))
                return np.asarray(logits[0].numpy(), np.float32), None
            scores = stream_rows(step, network.fresh_state(1), audio, cfg.hop, cfg.context)
        return pool(scores, cfg.clip_pooling), scores

    return Classifier(path, rate, cfg.hop, tuple(checkpoint["labels"]), cfg.text, read, hear)


def classify(classifier: Classifier, file: Path) -> Answer:
    """The answer for one audio file. Raises InputError for a file that is not there, cannot be decoded or holds no sound."""
    audio = classifier.read(file)
    logits, scores = classifier.hear(audio)
    powers = np.exp(logits.astype(np.float64) - logits.max())
    shares = powers / powers.sum()
    order = np.argsort(-shares, kind="stable")
    return Answer(file, {classifier.labels[i]: float(shares[i]) for i in order}, audio, scores)


def picture(classifier: Classifier, answer: Answer, top: int) -> Figure:
    """The clip's spectrogram, the scores over time with the `top` labels named, and the answer as the title."""
    from trainer.plots import clip

    frontend = parse_cfg(classifier.cfg, str(classifier.path)).frontend
    audio = answer.audio.reshape(len(answer.audio), -1).mean(1)
    before = (frontend.n_fft - frontend.hop_length) // 2  # so that a frame is drawn where the middle of its window is
    after = frontend.n_fft - frontend.hop_length - before + -len(audio) % frontend.hop_length
    return clip(
        log_mel(np.pad(audio, (before, after)), frontend),
        answer.scores,
        classifier.labels,
        classifier.hop / classifier.sample_rate,
        frontend.hop_length / frontend.sample_rate,
        [mel_hz(frontend, band + 1) for band in range(frontend.n_mels)],
        f"{answer.file.name}: {answer.label} {answer.shares[answer.label]:.1%}",
        list(answer.shares)[:top],
    )


def stream_rows(step: Callable[[Floats, Any], tuple[Floats, Any]], state: Any, audio: Floats, hop: int, context: int) -> Floats:
    """Scores of a clip heard as a fresh stream, [rows, labels]: zeros before it, its last hop filled up."""
    rows = max(1, -(-len(audio) // hop))
    whole = np.pad(audio, (context, rows * hop - len(audio)))[None]
    parts = []
    for first in range(0, rows, ROWS_AT_ONCE):
        scores, state = step(whole[:, first * hop : context + min(first + ROWS_AT_ONCE, rows) * hop], state)
        parts.append(scores[0])
    return np.asarray(np.concatenate(parts), np.float32)


def pool(scores: Floats, pooling: str) -> Floats:
    """A clip's logits, [labels], from its scores [rows, labels]; the poolings are those of docs/ARCHITECTURE.md."""

    def logit(score: Floats, least: float) -> Floats:
        clamped = np.clip(score, np.float32(least), np.float32(1 - least))
        return np.asarray(np.log(clamped / (1 - clamped)), np.float32)

    if pooling == "mean":
        return logit(scores.mean(0), 1e-6)
    if pooling == "logit_mean":
        return np.asarray(logit(scores, 1e-7).mean(0), np.float32)
    return logit(scores.max(0) if pooling == "max" else scores[-1], 1e-7)


def log_mel(audio: Floats, frontend: Frontend) -> Floats:
    """Natural log of mel band power of un-centred Hann frames: trainer.frontend.LogMel before it normalises, without torch.

    audio: [samples] at frontend.sample_rate, at least n_fft of them. Returns [n_mels, frames], frames = 1 + (samples - n_fft) //
    hop_length. HTK mel scale: triangles with their corners at trainer.cfg.mel_hz.
    """
    n = frontend.n_fft
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)).astype(np.float32)
    corners = np.array([mel_hz(frontend, index) for index in range(frontend.n_mels + 2)])
    bins = np.linspace(0, frontend.sample_rate // 2, n // 2 + 1)
    slopes = (bins - corners[:, None]) / np.diff(corners, append=corners[-1] + 1)[:, None]
    triangles = np.maximum(0, np.minimum(slopes[:-2], 1 - slopes[1:-1])).astype(np.float32)
    framed = np.lib.stride_tricks.sliding_window_view(audio, n)[:: frontend.hop_length]
    bands = np.empty((frontend.n_mels, len(framed)), np.float32)
    for first in range(0, len(framed), 1024):
        spectrum = np.abs(np.fft.rfft(framed[first : first + 1024] * window)) ** 2
        bands[:, first : first + 1024] = triangles @ spectrum.T.astype(np.float32)
    return np.asarray(np.log(bands + np.float32(FLOOR)), np.float32)
