"""The facts of a data set as one HTML page: no script, nothing loaded, readable in dark and light."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from matplotlib import mlab
from matplotlib.figure import Figure

from trainer.report import BINS, ClassFacts, Facts, Table, decode, tables


def html(facts: Facts) -> str:
    """The facts as one page: no script, nothing loaded, for dark and light."""
    charts = {"Clips": _clips_chart(facts), "Durations": _durations_chart(facts), "Loudness": _loudness_chart(facts)}
    parts = [_table(table) + charts.get(table.title, "") for table in tables(facts)]
    examples = "".join(_example(facts, c) for c in facts.classes)
    return PAGE.substitute(root=escape(facts.root), sections="\n".join(parts), examples=examples)


def _table(table: Table) -> str:
    title = escape(table.title)
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = [
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in others) + "</tr>"
        for first, *others in table.rows
    ]
    body, foot = rows[: len(rows) - table.totals], rows[len(rows) - table.totals :]
    tfoot = f"<tfoot>{''.join(foot)}</tfoot>" if foot else ""
    return (
        f'<h2>{title}</h2><p>{escape(table.note)}</p><div class="wide" tabindex="0" role="region" aria-label="{title}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>{tfoot}</table></div>"
    )


def _chart(caption: str, alt: str, rows: Sequence[tuple[str, str]], height: int, axis: Sequence[tuple[float, str]]) -> str:
    """A picture with a row per class, drawn in 0..500 by 0..height, and an axis of (x, words) below."""
    drawn = "".join(
        f'<text x="132" y="{y * height + height / 2 + 4}" class="name">{escape(name)}</text>'
        f'<g transform="translate(140 {y * height})">{shapes}</g>'
        for y, (name, shapes) in enumerate(rows)
    )
    below = len(rows) * height
    words = "".join(f'<text x="{140 + x:.1f}" y="{below + 14}" class="axis">{escape(word)}</text>' for x, word in axis)
    svg = f'<svg viewBox="0 0 680 {below + 20}" role="img" aria-label="{escape(alt)}">{drawn}{words}</svg>'
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _clips_chart(facts: Facts) -> str:
    totals = [(c.label, sum(c.clips.values()), sum(c.official.values())) for c in facts.classes]
    most = max(max(here, there) for _, here, there in totals)
    rows = [
        (
            label,
            f'<rect class="faint" y="3" height="14" width="{500 * there / most:.1f}"/>'
            f'<rect class="bar" y="3" height="14" width="{500 * here / most:.1f}"/>',
        )
        for label, here, there in totals
    ]
    alt = "Clips of each class: " + ", ".join(f"{label} {here}" for label, here, _ in totals)
    whole = any(there for _, _, there in totals)
    caption = "Clips of each class" + (", and behind them the official number." if whole else ".")
    return _chart(caption, alt, rows, 20, [(0, "0"), (500, f"{most:,} clips")])


def _durations_chart(facts: Facts) -> str:
    width = 500 / BINS
    rows = []
    for c in facts.classes:
        heights = [28 * count / max(c.histogram) for count in c.histogram]
        bars = (
            f'<rect class="bar" x="{x * width:.1f}" y="{32 - h:.1f}" width="{width - 2:.1f}" height="{h:.1f}"/>'
            for x, h in enumerate(heights)
        )
        rows.append((c.label, '<rect class="faint" y="32" width="500" height="1"/>' + "".join(bars)))
    alt = "Histograms of the clips' durations; the table above has the numbers"
    return _chart(
        "How long the clips are, each class to its own height.",
        alt,
        rows,
        36,
        [(x * 125, f"{x * facts.longest_s / 4:.0f} s") for x in range(5)],
    )


def _loudness_chart(facts: Facts) -> str:
    low = 10 * math.floor(min(c.level_dbfs[0] for c in facts.classes) / 10)
    high = 10 * math.ceil(max(c.level_dbfs[2] for c in facts.classes) / 10 + 0.1)

    def place(level_dbfs: float) -> float:
        return 500 * (level_dbfs - low) / (high - low)

    rows = []
    for c in facts.classes:
        left, middle, right = map(place, c.level_dbfs)
        span = f'<rect class="bar" x="{left:.1f}" y="7" height="6" width="{max(right - left, 1):.1f}"/>'
        rows.append((c.label, f'{span}<circle class="dot" cx="{middle:.1f}" cy="10" r="5"/>'))
    alt = "Loudness of each class; the table above has the numbers"
    return _chart(
        "From the 10th to the 90th percentile, with a dot at the median.",
        alt,
        rows,
        20,
        [(place(level), f"{level} dBFS") for level in range(low, high + 1, 10)],
    )


def _example(facts: Facts, c: ClassFacts) -> str:
    alt = f"Spectrogram of {c.example}, {c.label}: time to the right, frequency upwards on a logarithmic scale"
    picture = base64.b64encode(spectrogram(Path(facts.root) / c.example)).decode()
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{picture}">'
        f"<figcaption>{escape(c.label)} <code>{escape(c.example)}</code></figcaption></figure>"
    )


def spectrogram(path: Path) -> bytes:
    """The clip's spectrogram as PNG: 80 dB below its loudest point, frequencies from 50 Hz on a logarithmic axis."""
    mono, rate, _, _ = decode(path)
    padded = np.pad(mono, (0, max(0, 4 * rate - len(mono))))  # all pictures have one time axis
    n_fft = 2 ** round(math.log2(0.046 * rate))  # 46 ms, as the front end's
    power, hz, seconds = mlab.specgram(padded, n_fft, rate, noverlap=n_fft // 2)
    db = 10 * np.log10(np.asarray(power) + 1e-20)
    figure = Figure((4.2, 2.4), dpi=110, layout="constrained", facecolor="none")
    axes = figure.add_subplot()
    axes.pcolormesh(seconds, np.asarray(hz)[1:], db[1:], vmin=db.max() - 80, vmax=db.max(), cmap="magma", shading="nearest")
    axes.set(yscale="log", ylim=(50, rate / 2), xlim=(0, len(padded) / rate), xlabel="s", ylabel="Hz")
    known = [hz for hz in (100, 1000, 10_000) if hz < rate / 2]
    axes.set_yticks(known, [f"{hz:,}" for hz in known])
    grey = "#808080"  # readable on white and on black
    axes.tick_params(which="both", colors=grey)
    axes.xaxis.label.set_color(grey)
    axes.yaxis.label.set_color(grey)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Data report: $root</title>
<style>
:root { color-scheme: light dark }
:root { --ink: #1b2733; --paper: #fff; --soft: #5c6873; --line: #dfe4ea; --bar: #1f5fa8; --dot: #c2410c }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --paper: #14171a; --soft: #9aa3ab; --line: #343a40; --bar: #6aa9e9; --dot: #fb923c }
}
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif }
body { background: var(--paper); color: var(--ink) }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
p, figcaption { color: var(--soft) }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap }
th:first-child { text-align: left; padding-left: 0 }
tbody th { font-weight: normal }
thead, tbody { border-bottom: 1px solid var(--line) }
svg { display: block; width: 100%; max-width: 44rem; margin-top: 1rem; font: 12px system-ui, sans-serif }
.name { text-anchor: end; fill: var(--ink) } .axis { text-anchor: middle; fill: var(--soft) }
.bar { fill: var(--bar) } .faint { fill: var(--line) } .dot { fill: var(--dot) }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem }
figure { margin: 0 } img { width: 100% } code { overflow-wrap: anywhere }
</style>
<main>
<h1>Data report: $root</h1>
$sections
<h2>One clip of each class</h2>
<p>Drawn at random, always the same ones. Spectrograms over 80 dB, 46 ms windows, logarithmic frequency.</p>
<div class="examples">$examples</div>
</main>
</html>
""")
