"""An architecture as a picture: plain SVG text, one box a layer, from the sound at the top to the scores at the bottom."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from xml.sax.saxutils import escape

from trainer.cfg import Cfg
from trainer.layers import ARGUMENTS, RECURRENT, Layer, ModDims

WIDTH, MARGIN, PAD, LINE, ROW = 1000, 28, 14, 17, 30
NAME, ARGS, SHAPE, COUNT, REACH, BAR = 58, 218, 522, 738, 830, 844
"""The columns of a box: where they begin; of COUNT (parameters) and REACH, which stand flush right, where they end."""
END = WIDTH - MARGIN - PAD
LEGEND = "A bar is how far back one row reads: its strong end is new since the row before, a state fades into all before"
SEEN = 0.72
"""Of a bar, what the receptive field takes: the rest is for what a recurrent state remembers from before."""
STEM = 132
"""Where arrows run."""

SIZES = {"title": 20.0, "module": 13.5, "fact": 17.0, "head": 10.5}
CHARACTER = 0.62
"""Width of a character in units of its size: no common monospaced font is wider (DejaVu Sans Mono and Menlo have 0.602)."""

COLOURS = {
    "page": ("#ffffff", "#0f141a"),
    "panel": ("#f4f6f9", "#171e26"),
    "box": ("#ffffff", "#1f2832"),
    "ink": ("#1b2733", "#e6ebf0"),
    "muted": ("#5f6c79", "#9dabb8"),
    "time": ("#b04a06", "#f3b265"),
    "track": ("#e9edf2", "#2b3641"),
    "reads": ("#f0c08a", "#8a5f2c"),
    "moves": ("#d97a1c", "#f0a54c"),
    "arrow": ("#97a3b0", "#667483"),
    "sound": ("#d97a1c", "#f0a54c"),
    "conv": ("#2f6fb3", "#5b9bdf"),
    "pool": ("#1f8a7d", "#4fb9ad"),
    "recurrent": ("#7a51b5", "#ab88e2"),
    "linear": ("#bf3f5c", "#e66c87"),
    "activation": ("#c99a17", "#e3bb4d"),
    "quiet": ("#a9b4bf", "#5f6c79"),
}
"""Every colour on a light and on a dark page."""


@dataclass(frozen=True)
class Reach:
    """What a row has read after a layer and how far rows are apart, in frames; past: and, by a recurrent state, all before;
    clip: and, looking ahead, the whole clip."""

    reads: int
    moves: int
    past: bool
    clip: bool


def reach_of(cfg: Cfg) -> list[Reach]:
    """The reach in time after every layer: a kernel of k steps of `moves` frames reads (k - 1) * moves more."""
    reads, moves, past, clip, out = 1, 1, False, False, []
    for layer in cfg.layers:
        if layer.time_axis is not None and "kernel_size" in layer.args:
            at = layer.time_axis - 1
            dilation = layer.args["dilation"][at] if "dilation" in layer.args else 1
            reads += dilation * (layer.args["kernel_size"][at] - 1) * moves
            moves *= layer.args["stride"][at]
        past = past or layer.kind in RECURRENT
        clip = clip or bool(layer.args.get("bidirectional")) or (layer.kind.startswith("adaptive") and layer.time_axis is not None)
        out.append(Reach(reads, moves, past, clip))
    return out


def draw(cfg: Cfg, title: str) -> str:
    """The architecture as an SVG document that is readable on light and on dark pages.

    From top to bottom: the front end, the modules with a box for each layer, `[moddims]` as arrows between them, the totals. A box
    has the layer's name, its arguments that are not torch's defaults, its output shape with time in colour, its parameters, and
    how many frames a row reads and moves.
    """
    page = _Page(y=MARGIN + 18)
    page.text(MARGIN, title, "title", room=WIDTH - 2 * MARGIN)
    page.y += 24
    fe, frames = cfg.frontend, cfg.input_shape[2]
    length_s = ((frames - 1) * fe.hop_length + fe.n_fft) / fe.sample_rate
    page.text(MARGIN, [("muted", f"Shapes are for {frames} frames, {length_s:.2f} s of sound; "), ("time", "time is in colour")])
    page.y += LINE
    page.text(MARGIN, [("muted", LEGEND)])
    page.y += 16
    page.panel("front end", [_frontend_row(cfg)], cfg)
    reaches = dict(zip((layer.name for layer in cfg.layers), reach_of(cfg), strict=True))
    page.arrow([[*_shape(cfg.input_shape, 2), ("muted", "   channels, bands, "), ("time", "frames")]])
    rows: list[_Row] = []
    for step, after in pairwise([*cfg.steps, None]):
        if isinstance(step, ModDims):
            shape = _shape(after.shape_in, after.time_axis) if isinstance(after, Layer) else []
            page.arrow([[("muted", _rearrangement(step))], shape])
            continue
        assert isinstance(step, Layer)
        rows.append(_layer_row(step, reaches[step.name]))
        if not isinstance(after, Layer) or after.module != step.module:
            page.panel(step.module, rows, cfg)
            rows = []
            if not isinstance(after, ModDims):
                answer = "their softmax is the share" if cfg.obstacles else "their sigmoid is the score"
                ending = [] if after else [("muted", f"   logits of the labels: {answer}")]
                page.arrow([_shape(step.shape_out, step.time_axis) + ending])
    page.totals(cfg)
    summed = f"{cfg.parameters:,} parameters in {len(cfg.layers)} layers: {', '.join(layer.name for layer in cfg.layers)}."
    return page.document(f"Architecture {title}", summed)


Spans = list[tuple[str, str]]
"""Pieces of one line of text, each with its class."""


@dataclass(frozen=True)
class _Row:
    """One box: its stripe's class, its columns."""

    kind: str
    name: str
    arguments: str
    shape: Spans
    parameters: int
    reach: Reach


def _frontend_row(cfg: Cfg) -> _Row:
    fe = cfg.frontend
    said = (
        f"{fe.n_mels} bands, {fe.f_min:g} to {fe.top_hz:g} Hz, sample_rate={fe.sample_rate}, n_fft={fe.n_fft}, "
        f"hop_length={fe.hop_length}, compression={fe.compression}, norm={fe.norm}"
    )
    return _Row("sound", "mel spectrogram", said, _shape(cfg.input_shape, 2), 0, Reach(1, 1, False, False))


def _layer_row(layer: Layer, reach: Reach) -> _Row:
    given = []
    for key, value in layer.args.items():
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        inherited = key == "stride" and "pool" in layer.kind and layer.args["stride"] == layer.args["kernel_size"]
        if value != ARGUMENTS[layer.kind][key] and not inherited:
            given.append(f"{key}={value}".replace(", ", ","))
    if "pool" in layer.kind:
        kind = "pool"
    elif layer.kind in RECURRENT:
        kind = "recurrent"
    elif layer.kind.startswith("conv"):
        kind = "conv"
    elif layer.kind.startswith(("batchnorm", "dropout")):
        kind = "quiet"
    else:
        kind = "linear" if layer.kind == "linear" else "activation"
    return _Row(kind, layer.name, ", ".join(given), _shape(layer.shape_out, layer.time_axis), layer.parameters, reach)


def _shape(shape: tuple[int, ...], time_axis: int | None) -> Spans:
    spans: Spans = []
    for axis, size in enumerate(shape):
        spans += [("muted", " \u00d7 ")] if axis else []
        spans.append(("time" if axis == time_axis else "", str(size)))
    return spans


def _rearrangement(step: ModDims) -> str:
    said = [f"{word} {list(axes)}" for word, axes in (("permute", step.permute), ("collapse", step.collapse)) if axes]
    return ", ".join(said) + (": a clip's last row, of a stream every row" if step.keeps_rows else "")


@dataclass
class _Page:
    """What has been drawn, and how far down."""

    y: float
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, said: str | Spans, kind: str = "", *, room: float = WIDTH, end: bool = False) -> None:
        """One line of text at the height reached, from x, or up to x with `end`; cut with an ellipsis where it lacks room."""
        spans = [("", said)] if isinstance(said, str) else said
        fits = int(room / (CHARACTER * SIZES.get(kind, 12.0)))
        if sum(len(words) for _, words in spans) > fits:
            spans = [("", "".join(words for _, words in spans)[: fits - 1] + "…")]
        inner = "".join(f'<tspan class="{style}">{_xml(words)}</tspan>' if style else _xml(words) for style, words in spans)
        anchor = ' text-anchor="end"' if end else ""
        style = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text x="{x:g}" y="{self.y:g}"{style}{anchor}>{inner}</text>')

    def box(self, x: float, y: float, width: float, height: float, kind: str, radius: float = 0) -> None:
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:.5g}" height="{height:g}" rx="{radius:g}" class="{kind}"/>')

    def arrow(self, said: list[Spans]) -> None:
        """Down from here, with lines of text beside it."""
        lines = [line for line in said if line]
        length = 26 + LINE * max(1, len(lines))
        top, tip = self.y + 5, self.y + length - 5
        self.parts.append(f'<path class="line" d="M{STEM} {top:g}V{tip - 6:g}"/>')
        self.parts.append(f'<path class="arrow" d="M{STEM - 4} {tip - 7:g}h8l-4 7z"/>')
        self.y += length / 2 + 4 - LINE * (len(lines) - 1) / 2
        for line in lines:
            self.text(STEM + 16, line, room=END - STEM - 16)
            self.y += LINE
        self.y = tip + 5

    def panel(self, title: str, rows: list[_Row], cfg: Cfg) -> None:
        """A module: its title, the heads of the columns, its boxes."""
        wrapped = [textwrap.wrap(row.arguments, int((SHAPE - ARGS - 14) / (CHARACTER * 12))) or [""] for row in rows]
        heights = [ROW + LINE * (len(lines) - 1) for lines in wrapped]
        self.box(MARGIN, self.y, WIDTH - 2 * MARGIN, 34 + sum(heights) + 6 * len(rows) + 8, "panel", 9)
        self.y += 23
        self.text(MARGIN + PAD, title, "module", room=ARGS - MARGIN - PAD)
        self.text(ARGS, "arguments", "head")
        self.text(SHAPE, "output", "head")
        total = sum(row.parameters for row in rows)
        self.text(COUNT, f"parameters {total:,}" if total and len(rows) > 1 else "parameters", "head", end=True)
        self.text(END, "reads / moves, frames", "head", end=True)
        self.y += 11
        for row, lines, height in zip(rows, wrapped, heights, strict=True):
            self._row(row, lines, height, cfg.receptive_frames / (SEEN if _remembers(cfg) else 1))
        self.y += 8

    def _row(self, row: _Row, lines: list[str], height: float, longest: float) -> None:
        top = self.y
        left, width = MARGIN + PAD, WIDTH - 2 * (MARGIN + PAD)
        self.box(left, top, width, height, "box", 4)
        self.box(left, top, 5, height, row.kind, 2)
        self.y = top + 19.5
        self.text(NAME, row.name, "name", room=ARGS - NAME - 8)
        self.text(SHAPE, row.shape, room=COUNT - SHAPE - 90)
        if row.parameters:
            self.text(COUNT, f"{row.parameters:,}", room=84, end=True)
        reach = row.reach
        said = "clip" if reach.clip else f"{reach.reads}{'+' * reach.past} / {reach.moves}"
        self.text(REACH, said, room=REACH - COUNT - 8, end=True)
        for line in lines:
            self.text(ARGS, [("muted", line)], room=SHAPE - ARGS - 10)
            self.y += LINE
        room, middle = END - 12 - BAR, top + ROW / 2 - 3.5
        self.box(BAR, middle, room, 7, "track", 3.5)
        if reach.past:
            self.box(BAR, middle, room, 7, "past", 3.5)
        read, moved = (max(2.0, room * frames / longest) for frames in (reach.reads, reach.moves))
        read = room if reach.clip else read
        self.box(BAR + room - read, middle, read, 7, "reads", min(3.5, read / 2))
        self.box(BAR + room - moved, middle, moved, 7, "moves", min(3.5, moved / 2))
        self.y = top + height + 6

    def totals(self, cfg: Cfg) -> None:
        """What the whole comes to, and what keeps it from streaming."""
        ms = 1000 / cfg.frontend.sample_rate
        facts = [
            ("parameters", f"{cfg.parameters:,}", f"{cfg.outputs} labels"),
            ("a row every", f"{cfg.hop * ms:.1f} ms", _frames(cfg.stride_frames)),
            (
                "receptive field",
                f"{cfg.receptive_samples * ms:.1f} ms",
                _frames(cfg.receptive_frames) + ", + state" * _remembers(cfg),
            ),
            ("clip pooling", cfg.clip_pooling, "of the rows' scores"),
            ("streams", "no" if cfg.obstacles else "yes", "trains on clips" if cfg.obstacles else "any split, same scores"),
        ]
        reasons = [line for reason in cfg.obstacles for line in textwrap.wrap(f"does not stream: {reason}", 118)]
        self.box(MARGIN, self.y, WIDTH - 2 * MARGIN, 82 + (LINE * len(reasons) + 8 if reasons else 0), "panel", 9)
        top, column = self.y, (WIDTH - 2 * (MARGIN + PAD)) / len(facts)
        for index, lines in enumerate(facts):
            self.y = top + 22
            for said, kind, step in zip(lines, ("head", "fact", "head"), (24, 20, 0), strict=True):
                self.text(MARGIN + PAD + 6 + column * index, said, kind, room=column - 8)
                self.y += step
        self.y = top + 90
        for line in reasons:
            self.text(MARGIN + PAD + 6, [("time", line)], room=END - MARGIN - PAD)
            self.y += LINE
        self.y = top + 82 + (LINE * len(reasons) + 8 if reasons else 0) + MARGIN

    def document(self, title: str, said: str) -> str:
        size = f'width="{WIDTH}" height="{self.y:g}"'
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 {WIDTH} {self.y:g}" {size}',
            ' role="img" aria-labelledby="title desc">',
            f'<title id="title">{_xml(title)}</title>',
            f'<desc id="desc">{_xml(said)}</desc>',
            f"<style>\n{_style()}</style>",
            '<defs><linearGradient id="past"><stop offset="0" class="far"/><stop offset="1" class="near"/></linearGradient></defs>',
            f'<rect {size} class="page"/>',
            *self.parts,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


def _frames(count: int) -> str:
    return f"{count} frame{'s' * (count != 1)}"


def _remembers(cfg: Cfg) -> bool:
    return any(layer.kind in RECURRENT for layer in cfg.layers)


def _style() -> str:
    sizes = "".join(f".{kind} {{ font-size: {size:g}px }}\n" for kind, size in SIZES.items())

    def colours(page: int) -> str:
        shades: Any = {name: pair[page] for name, pair in COLOURS.items()}
        fills = "".join(f".{name} {{ fill: {shade} }}\n" for name, shade in shades.items())
        return (
            f"{fills}text {{ fill: {shades['ink']} }}\ntext.head {{ fill: {shades['muted']} }}\n"
            f".line {{ stroke: {shades['arrow']} }}\n.near, .far {{ stop-color: {shades['reads']} }}\n"
        )

    return (
        'text { font: 12px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }\n'
        f".title, .module, .fact {{ font-weight: 700 }}\n.name {{ font-weight: 600 }}\n{sizes}"
        ".past { fill: url(#past) }\n.far { stop-opacity: 0 }\n.near { stop-opacity: 0.8 }\n.line { stroke-width: 1.3 }\n"
        f"{colours(0)}@media (prefers-color-scheme: dark) {{\n{colours(1)}}}\n"
    )


def _xml(text: str) -> str:
    """Text that XML can hold: what cannot be printed becomes a question mark."""
    return escape("".join(letter if letter.isprintable() else "?" for letter in text))
