"""Pictures of a training: each function takes plain arrays and returns a matplotlib Figure, for TensorBoard and for files alike."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import blended_transform_factory
from numpy.typing import ArrayLike, NDArray

from detector.errors import InputError
from trainer.files import write_whole

SUFFIXES = (".png", ".svg", ".pdf")

INK, MUTED, FAINT, PAPER = "#1b2733", "#66727f", "#dfe4ea", "#ffffff"
BLUE, WRONG = "#1f5fa8", "#c2410c"
CURVES = ("#d1495b", "#1f7a8c", "#e09f3e", "#5e548e", "#3a7d44")
"""Colours of the named labels' curves, told apart by the colour-blind as well."""

SHARES = LinearSegmentedColormap.from_list("shares", ["#f4f7fb", "#d3e2f2", "#6ea6d7", "#2a6fb3", "#0b3a75"])
FLOOR_DB = 80.0
"""How far below its loudest point a spectrogram is shown."""

TICKS_HZ = (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)


def confusion(matrix: ArrayLike, labels: Sequence[str], title: str) -> Figure:
    """How often each class was taken for each: counts [true, answered].

    A cell says the count and is coloured by its share of the row; recall stands right of the rows, precision below the columns,
    the accuracy where both meet.
    """
    counts = np.asarray(matrix)
    n = len(labels)
    true, answered, right = counts.sum(1), counts.sum(0), counts.diagonal()
    share = counts / np.maximum(true, 1)[:, None]
    longest = max(map(len, labels), default=0)
    digits = len(str(int(counts.max(initial=0))))
    side = n * (0.36 + 0.08 * max(digits, 2))
    figure = Figure(figsize=(side + 2.0 + 0.085 * longest, side + 1.7 + 0.065 * longest), layout="constrained", facecolor=PAPER)
    axes = figure.add_subplot()
    axes.pcolormesh(np.arange(n + 1) - 0.5, np.arange(n + 1) - 0.5, share, cmap=SHARES, vmin=0, vmax=1, edgecolors=PAPER, lw=1.5)
    for i in range(n):
        for j in range(n):
            colour = PAPER if share[i, j] > 0.5 else INK if counts[i, j] else "#b4bdc7"
            weight = "bold" if i == j and counts[i, j] else "normal"
            axes.text(j, i, str(int(counts[i, j])), ha="center", va="center", color=colour, fontsize=10, weight=weight)
    margin = n - 0.5 + 0.55
    for i in range(n):
        axes.text(margin, i, _percent(right[i], true[i]), ha="center", va="center", color=INK, fontsize=9.5)
        axes.text(i, margin, _percent(right[i], answered[i]), ha="center", va="center", color=INK, fontsize=9.5)
    axes.text(
        margin, margin, _percent(right.sum(), counts.sum()), ha="center", va="center", color=BLUE, fontsize=10.5, weight="bold"
    )
    axes.set(xlim=(-0.5, n + 0.55), ylim=(n + 0.55, -0.5), aspect="equal")
    axes.tick_params(length=0, labelsize=10, labelcolor=INK, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xticks([*range(n), margin], [*labels, "recall"], parse_math=False)
    if longest > 4:
        for name in axes.get_xticklabels():
            name.set(rotation=40, ha="left", rotation_mode="anchor")
    axes.set_yticks([*range(n), margin], [*labels, "precision"], parse_math=False)
    for tick in (axes.get_xticklabels()[-1], axes.get_yticklabels()[-1]):
        tick.set_color(MUTED)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("answered", color=MUTED, loc="left")
    axes.set_ylabel("true", color=MUTED, loc="top")
    titled(figure, title)
    return figure


def clip(
    features: ArrayLike,
    rows: ArrayLike | None,
    labels: Sequence[str],
    hop_s: float,
    frame_s: float,
    band_hz: Sequence[float],
    title: str,
    named: Sequence[str] = (),
) -> Figure:
    """A clip's spectrogram, and under it what the network says of it as time goes by.

    features: log-mel band power [n_mels, frames], natural log, frame i over i * frame_s to (i + 1) * frame_s; rows: scores
    [rows, labels] in 0..1, row i over the same of hop_s, or None for a network that has one answer a clip; band_hz: the centre
    of every band; named: the labels to name, best first, else the three highest on average; the others are thin and grey.
    """
    level = np.asarray(features, np.float64) * (10 / math.log(10))
    length_s = level.shape[1] * frame_s
    figure = Figure(figsize=(10, 6.2 if rows is not None else 3.9), layout="constrained", facecolor=PAPER)
    ratios = [5, 3] if rows is not None else [1]
    axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    _spectrum(figure, axes[0], level, length_s, band_hz)
    if rows is not None:
        scores = np.asarray(rows, np.float64)
        length_s = max(length_s, len(scores) * hop_s)
        _curves(axes[1], scores, labels, hop_s, named or [labels[i] for i in scores.mean(0).argsort()[::-1][:3]])
    axes[-1].set_xlabel("time, s", color=MUTED)
    axes[-1].set_xlim(0, length_s)
    titled(figure, title)
    return figure


def folds(names: Sequence[str], accuracies: Sequence[float], mean: float, deviation: float, title: str) -> Figure:
    """The accuracy of every fold as a bar, 0..1; their mean as a line, one standard deviation around it as a band."""
    figure = Figure(figsize=(max(5.0, 1.9 + 0.72 * len(names)), 4.2), layout="constrained", facecolor=PAPER)
    axes = figure.add_subplot()
    axes.axhspan(mean - deviation, mean + deviation, color=BLUE, alpha=0.10, lw=0, zorder=0)
    axes.bar(range(len(names)), accuracies, width=0.66, color="#8fb4d9", zorder=1)
    axes.axhline(mean, color=BLUE, lw=1.4, zorder=2)
    for index, accuracy in enumerate(accuracies):
        axes.annotate(
            f"{accuracy:.1%}", (index, 0), (0, 6), textcoords="offset points", ha="center", va="bottom", color=INK, fontsize=9.5
        )
    at_right = blended_transform_factory(axes.transAxes, axes.transData)
    axes.text(1.012, mean, f"mean {mean:.1%}\n± {deviation:.1%}", transform=at_right, va="center", color=BLUE, fontsize=10)
    axes.set_xticks(range(len(names)), names, parse_math=False)
    axes.set(xlim=(-0.55, len(names) - 0.45), ylim=(0, 1), ylabel="accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.label.set_color(MUTED)
    axes.grid(axis="y", color=FAINT, lw=0.8)
    axes.set_axisbelow(True)
    plain(axes)
    axes.tick_params(axis="x", labelcolor=INK)
    titled(figure, title)
    return figure


def spectrograms(images: Sequence[ArrayLike], titles: Sequence[str]) -> Figure:
    """A page of log-mel pictures, each [n_mels, frames], on one colour scale and one length of time, so that they compare."""
    pictures = [np.asarray(image, np.float64) for image in images]
    columns = min(len(pictures), 4 if len(pictures) > 4 else 3) or 1
    lines = -(-len(pictures) // columns) or 1
    frames = max((picture.shape[1] for picture in pictures), default=1)
    values = np.concatenate([picture.ravel() for picture in pictures]) if pictures else np.zeros(1)
    low, high = np.quantile(values, [0.02, 0.998])
    figure = Figure(figsize=(3.1 * columns, 2.15 * lines + 0.3), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(lines, columns, squeeze=False)
    for index, axes in enumerate(grid.flat):
        if index >= len(pictures):
            axes.set_axis_off()
            continue
        bands, length = pictures[index].shape
        box = (0, length, 0, bands)
        axes.imshow(pictures[index], cmap="magma", origin="lower", aspect="auto", extent=box, vmin=low, vmax=high)
        axes.set_title(titles[index], fontsize=9, color=INK, loc="left", parse_math=False)
        axes.set(xlim=(0, frames), facecolor="#f3f5f7")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        plain(axes)
        axes.tick_params(labelsize=7.5, labelbottom=index + columns >= len(pictures), labelleft=index % columns == 0)
        if index + columns >= len(pictures):
            axes.set_xlabel("frame", fontsize=8, color=MUTED)
        if index % columns == 0:
            axes.set_ylabel("mel band", fontsize=8, color=MUTED)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, SVG or PDF by its suffix, whole or not at all. Raises InputError for any other suffix."""
    must_be_picture(path)
    write_whole(path, lambda partial: figure.savefig(partial, format=path.suffix.lower()[1:], dpi=160))


def must_be_picture(path: Path, *also: str) -> None:
    """Raise InputError for a name whose suffix is no kind of picture known here; also: other suffixes to use."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            str(path), f"{suffix or 'no suffix'} is not a kind of picture known here", f"use {', '.join([*SUFFIXES, *also])}"
        )


def _spectrum(figure: Figure, axes: Axes, level: NDArray[np.float64], length_s: float, band_hz: Sequence[float]) -> None:
    """Band power in dB over time, its bands named in Hz."""
    top = float(level.max(initial=-np.inf))
    bottom = max(top - FLOOR_DB, float(np.quantile(level, 0.01)))
    box = (0, length_s, 0, len(level))
    image = axes.imshow(level, cmap="magma", origin="lower", aspect="auto", extent=box, vmin=bottom, vmax=max(top, bottom + 1))
    ticks: list[int] = []
    at: list[float] = []
    for hz in TICKS_HZ:
        band = float(np.interp(hz, band_hz, np.arange(len(band_hz)) + 0.5))
        if band_hz[0] <= hz <= band_hz[-1] and (not at or band - at[-1] > len(band_hz) / 20):
            ticks, at = [*ticks, hz], [*at, band]
    axes.set_yticks(at, [f"{hz // 1000} k" if hz >= 1000 else str(hz) for hz in ticks])
    axes.set_ylabel("frequency, Hz (mel)", color=MUTED)
    plain(axes)
    bar = figure.colorbar(image, cax=axes.inset_axes((1.012, 0, 0.016, 1)))
    bar.set_label("band power, dB", color=MUTED)
    bar.ax.tick_params(length=0, labelcolor=MUTED, labelsize=9)
    bar.outline.set_visible(False)


def _curves(axes: Axes, scores: NDArray[np.float64], labels: Sequence[str], hop_s: float, named: Sequence[str]) -> None:
    """One step curve a label: a row's score over the hop of sound that it adds."""
    edges = np.arange(len(scores) + 1) * hop_s
    known = [label for label in named if label in labels][: len(CURVES)]
    for column, label in enumerate(labels):
        if label not in known:
            axes.stairs(scores[:, column], edges, baseline=None, color="#b9c2cc", lw=0.8)
    for rank in reversed(range(len(known))):
        curve = scores[:, labels.index(known[rank])]
        axes.stairs(curve, edges, baseline=None, color=CURVES[rank], lw=2.2 if rank == 0 else 1.6)
        if rank == 0:
            axes.stairs(curve, edges, fill=True, color=CURVES[0], alpha=0.12, lw=0)
    at_right = axes.transAxes
    for rank, label in enumerate(known):
        axes.text(
            1.014,
            0.93 - 0.145 * rank,
            label,
            transform=at_right,
            va="center",
            color=CURVES[rank],
            weight="bold" if rank == 0 else "normal",
            fontsize=10,
            parse_math=False,
        )
    if len(known) < len(labels):
        others = f"{len(labels) - len(known)} other{'s' * (len(labels) - len(known) > 1)}"
        axes.text(1.014, 0.93 - 0.145 * len(known), others, transform=at_right, va="center", color="#8a95a1", fontsize=9.5)
    axes.set(ylim=(0, 1.02), yticks=(0, 0.25, 0.5, 0.75, 1), ylabel="score")
    axes.set_yticklabels(["0", "", "0.5", "", "1"])
    axes.yaxis.label.set_color(MUTED)
    axes.grid(axis="y", color=FAINT, lw=0.8)
    axes.set_axisbelow(True)
    plain(axes)


def plain(axes: Axes) -> None:
    """No frame, no tick marks, quiet numbers."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=MUTED, labelsize=9)


def titled(figure: Figure, title: str) -> None:
    """Write the title above a figure, in as many lines as it needs."""
    wrapped = textwrap.fill(title, int(figure.get_figwidth() * 10))  # about so many letters an inch
    figure.suptitle(wrapped, x=0.012, ha="left", fontsize=12.5, weight="bold", color=INK, parse_math=False)


def _percent(part: Any, whole: Any) -> str:
    return f"{part / whole:.0%}" if whole else "-"
