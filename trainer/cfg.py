"""The .cfg grammar: text -> layers with shapes, time stride and receptive field. No torch: reading a cfg is cheap.

A cfg is read line by line. `[NAME_module]` opens a module, `[LAYER]` a layer whose `key=value` lines are torch's own
argument names, `REPEATxN` ... `END` repeats lines, `[moddims]` reorders axes between modules, `[frontend]` describes the
spectrogram, `[output]` how a clip's class is pooled. Sizes of inputs are never written: they follow from the shape so far.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from detector.errors import CfgError
from detector.tables import MOST_TEXT_BYTES, read_file
from trainer.layers import ARGUMENTS, REQUIRED, SIZES, Frontend, Layer, ModDims
from trainer.shapes import trace_shapes

CLIP_S = 4.0
"""Length for which a summary prints shapes when the cfg has no [input]: an UrbanSound8K clip."""
MOST_LINES = 5000
"""Of a cfg, its REPEAT blocks written out: more than a thousand layers."""
LONGEST_VALUE = 1000
"""What is longer is no number and no list: Python's parser is not asked about it."""
_WANTED = "give a .cfg, or of a trained network its model.onnx"
LARGEST_FFT, MOST_MELS = 1 << 16, 1 << 12
"""A window of 1.4 s at 48 kHz; with so many bands, a filter bank of half a gigabyte."""


@dataclass(frozen=True)
class Cfg:
    """An architecture, understood.

    stride_frames, receptive_frames: of one row of the network, in spectrogram frames; hop, context: the same in samples.
    obstacles: the layers that look at the whole clip, and why; a network with any trains but does not stream. pads_time: what a row
    says depends on where the clip ends, so that clips of different lengths cannot be padded to one.
    """

    text: str
    path: str
    frontend: Frontend
    steps: tuple[Layer | ModDims, ...]
    input_shape: tuple[int, ...]
    outputs: int
    clip_pooling: str
    stride_frames: int
    receptive_frames: int
    obstacles: tuple[str, ...]
    pads_time: bool = False

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.path).stem

    @property
    def channels(self) -> int:
        """Audio channels the network reads: 2 only for training on clips."""
        return self.input_shape[0]

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(step for step in self.steps if isinstance(step, Layer))

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def hop(self) -> int:
        """New samples for one more row."""
        return self.stride_frames * self.frontend.hop_length

    @property
    def context(self) -> int:
        """Older samples a row reads besides its hop."""
        return self.receptive_samples - self.hop

    @property
    def receptive_samples(self) -> int:
        return (self.receptive_frames - 1) * self.frontend.hop_length + self.frontend.n_fft

    def require_streaming(self) -> None:
        """Raise CfgError naming the first layer that cannot stream."""
        if self.obstacles:
            raise CfgError(self.path, f"does not stream: {self.obstacles[0]}", "it can be trained and evaluated, not exported")


def load_cfg(path: str | Path) -> Cfg:
    """Read an architecture from a file. Raises CfgError naming file, line and layer."""
    try:
        text = read_file(Path(path), kind=CfgError, fix=_WANTED).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CfgError(str(path), "is not text", _WANTED) from error
    return parse_cfg(text, str(path))


def parse_cfg(text: str, path: str = "<cfg>") -> Cfg:
    """Understand an architecture given as text; `path` names it in errors."""
    if len(text) > MOST_TEXT_BYTES:
        raise CfgError(path, f"is longer than {MOST_TEXT_BYTES:,} characters")
    sections = list(_sections(text, path))
    frontend = _frontend(sections, path)
    steps = list(_steps(sections, path))
    if not any(isinstance(step, Layer) for step in steps):
        raise CfgError(path, "has no layer", "write at least one, for example [linear] with out_features=10")
    shape = _input_shape(sections, frontend, path)
    if shape is None:  # long enough for one row, and for a clip: first trace for the receptive field alone
        frames = max(1, 1 + (int(CLIP_S * frontend.sample_rate) - frontend.n_fft) // frontend.hop_length)
        traced = trace_shapes(steps, (1, frontend.n_mels, 1 << 20), path)
        shape = (1, frontend.n_mels, max(frames, traced.receptive_frames))
    traced = trace_shapes(steps, shape, path)
    obstacles = traced.obstacles
    if frontend.norm == "whiten":
        obstacles = ("[frontend] norm=whiten needs the mean of the whole clip", *obstacles)
    if shape[0] > 1:
        obstacles = ("[input] has 2 channels, and a stream is mono", *obstacles)
    many_to_one = any(isinstance(step, ModDims) and step.keeps_rows for step in traced.steps)
    return Cfg(
        text=text,
        path=path,
        frontend=frontend,
        steps=tuple(traced.steps),
        input_shape=shape,
        outputs=traced.shape[-1],
        clip_pooling=_clip_pooling(sections, many_to_one, path),
        stride_frames=traced.stride_frames,
        receptive_frames=traced.receptive_frames,
        obstacles=obstacles,
        pads_time=traced.pads_time,
    )


def summary(cfg: Cfg) -> str:
    """The network as a table: each layer with its arguments, output shape and parameters, then its reach in time."""
    rows = [("layer", "arguments", "output", "parameters")]
    for layer in cfg.layers:
        defaults = ARGUMENTS[layer.kind]
        given = ", ".join(f"{key}={value}" for key, value in layer.args.items() if value != defaults[key])
        rows.append((layer.name, given, str(list(layer.shape_out)), f"{layer.parameters:,}" if layer.parameters else "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{name:<{widths[0]}}  {given:<{widths[1]}}  {shape:<{widths[2]}}  {count:>{widths[3]}}"
        for name, given, shape, count in rows
    ]
    fe = cfg.frontend
    ms = 1000 / fe.sample_rate
    lines += [
        "",
        f"front end        {fe.n_mels} mel bands, {fe.f_min:g} to {fe.top_hz:g} Hz, n_fft {fe.n_fft}, hop_length {fe.hop_length}, "
        f"{fe.sample_rate} Hz, compression {fe.compression}, norm {fe.norm}",
        f"input            {list(cfg.input_shape)}",
        f"parameters       {cfg.parameters:,}",
        f"receptive field  {cfg.receptive_frames} frames = {cfg.receptive_samples} samples = {cfg.receptive_samples * ms:.1f} ms",
        f"time stride      {cfg.stride_frames} frames = {cfg.hop} samples = {cfg.hop * ms:.1f} ms",
        f"context          {cfg.context} samples = {cfg.context * ms:.1f} ms",
        f"clip pooling     {cfg.clip_pooling}",
        f"streams          {'no: ' + cfg.obstacles[0] if cfg.obstacles else 'yes'}",
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Section:
    name: str
    line: int
    values: dict[str, tuple[Any, int]]


def _lines(text: str, path: str) -> Iterator[tuple[int, str]]:
    """Numbered lines without comments, REPEAT blocks written out."""
    block: list[tuple[int, str]] | None = None
    times = opened = written = 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        repeat = re.fullmatch(r"repeatx(\d+)", line, re.IGNORECASE)
        if repeat:
            if block is not None:
                raise CfgError(f"{path}:{number}", f"REPEAT inside the REPEAT of line {opened}", "blocks do not nest")
            block, times, opened = [], int(repeat[1][:9]), number  # Python reads no number of thousands of digits
            if not 1 <= times <= 100:
                raise CfgError(f"{path}:{number}", f"REPEATx{repeat[1]:.9}", "repeat 1 to 100 times")
        elif line.lower() == "end":
            if block is None:
                raise CfgError(f"{path}:{number}", "END without REPEAT")
            written += len(block) * times
            if written <= MOST_LINES:
                yield from block * times
            block = None
        elif block is not None:
            block.append((number, line))
        else:
            written += 1
            yield number, line
        if written > MOST_LINES:
            raise CfgError(f"{path}:{number}", f"more than {MOST_LINES:,} lines, REPEAT written out", "use fewer layers")
    if block is not None:
        raise CfgError(f"{path}:{opened}", "REPEAT without END")


def _sections(text: str, path: str) -> Iterator[_Section]:
    current: _Section | None = None
    for number, line in _lines(text, path):
        where = f"{path}:{number}"
        header = re.fullmatch(r"\[\s*(\w+)\s*\]", line)
        if header:
            if current:
                yield current
            current = _Section(header[1].lower(), number, {})
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key or not value:
            raise CfgError(where, f"`{line:.60}` is neither [section] nor key=value")
        if current is None:
            raise CfgError(where, f"`{line:.60}` stands before the first [section]")
        if key in current.values:
            raise CfgError(where, f"[{current.name:.60}] {key:.60} is given twice")
        current.values[key] = (_value(value), number)
    if current:
        yield current


def _value(text: str) -> Any:
    """A Python literal, or a bare word as it stands."""
    if len(text) > LONGEST_VALUE:
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of what it will not read one day
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return list(value) if isinstance(value, tuple) else value


def _frontend(sections: list[_Section], path: str) -> Frontend:
    found = [section for section in sections if section.name == "frontend"]
    if len(found) > 1:
        raise CfgError(f"{path}:{found[1].line}", "a second [frontend]")
    if not found:
        return Frontend()
    allowed = {field.name: field for field in fields(Frontend)}
    values: dict[str, Any] = {}
    for key, (value, line) in found[0].values.items():
        where = f"{path}:{line}"
        if key not in allowed:
            raise CfgError(where, f"[frontend] has no key {key:.60}", f"known: {', '.join(allowed)}")
        default = allowed[key].default
        assert default is not MISSING
        if isinstance(default, str):
            choices = {"compression": ("log", "none"), "norm": ("none", "bands", "whiten")}[key]
            if value not in choices:
                raise CfgError(where, f"[frontend] {key}={value!s:.60}", f"one of {', '.join(choices)}")
        elif not _is_number(value) or not 0 <= value <= 1 << 20 or (isinstance(default, int) and value != int(value)):
            whole = "whole " if isinstance(default, int) else ""
            raise CfgError(where, f"[frontend] {key}={value!s:.60} is not a {whole}number in range")
        values[key] = type(default)(value)
    frontend = Frontend(**values)
    where = f"{path}:{found[0].line}"
    if frontend.sample_rate < 1000 or frontend.n_mels < 1 or frontend.hop_length < 1:
        raise CfgError(where, "[frontend] needs sample_rate >= 1000, n_mels >= 1 and hop_length >= 1")
    if frontend.n_fft < 4 or frontend.n_fft % 4 or frontend.n_fft % frontend.hop_length:
        raise CfgError(where, f"[frontend] n_fft={frontend.n_fft} must be a multiple of 4 and of hop_length={frontend.hop_length}")
    if frontend.n_fft > LARGEST_FFT or frontend.n_mels > MOST_MELS:
        raise CfgError(where, f"[frontend] needs n_fft <= {LARGEST_FFT} and n_mels <= {MOST_MELS}")
    if not frontend.f_min < frontend.top_hz <= frontend.sample_rate / 2:
        raise CfgError(where, "[frontend] needs f_min < f_max <= sample_rate / 2")
    mels = [mel_hz(frontend, index) for index in range(frontend.n_mels + 2)]
    bin_hz = frontend.sample_rate / frontend.n_fft
    empty = [i for i in range(frontend.n_mels) if math.floor(mels[i] / bin_hz) + 1 >= mels[i + 2] / bin_hz]
    if empty:
        raise CfgError(
            where, f"[frontend] {len(empty)} of {frontend.n_mels} mel bands hold no frequency bin", "lower n_mels or raise n_fft"
        )
    return frontend


def mel_hz(frontend: Frontend, index: int) -> float:
    """The edge in Hz of mel band `index` of 0..n_mels+1, HTK scale: m = 2595 log10(1 + f / 700)."""
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (frontend.f_min, frontend.top_hz))
    return float(700 * (10 ** ((low + (high - low) * index / (frontend.n_mels + 1)) / 2595) - 1))


def _input_shape(sections: list[_Section], frontend: Frontend, path: str) -> tuple[int, ...] | None:
    for section in sections:
        if section.name == "input":
            shape, line = section.values.get("shape", (None, section.line))
            if not isinstance(shape, list) or len(shape) != 3 or not all(_is_count(size) for size in shape):
                raise CfgError(f"{path}:{line}", "[input] needs shape=[channels, bands, frames]", "for example [1, 128, 400]")
            if shape[0] > 2 or shape[1] != frontend.n_mels:
                wants = f"one channel or two of {frontend.n_mels} mel bands"
                raise CfgError(f"{path}:{line}", f"[input] shape={shape} does not fit {wants}")
            return tuple(shape)
    return None


def _clip_pooling(sections: list[_Section], many_to_one: bool, path: str) -> str:
    pooling = "last" if many_to_one else "mean"
    choices = ("last",) if many_to_one else ("mean", "logit_mean", "max", "last")
    for section in sections:
        if section.name != "output":
            continue
        for key, (value, line) in section.values.items():
            if key != "clip_pooling":
                raise CfgError(f"{path}:{line}", f"[output] has no key {key:.60}", "known: clip_pooling")
            if value not in choices:
                raise CfgError(f"{path}:{line}", f"[output] clip_pooling={value!s:.60}", f"here one of {', '.join(choices)}")
            pooling = value
    return pooling


def _steps(sections: list[_Section], path: str) -> Iterator[Layer | ModDims]:
    module = "main"
    running: Counter[str] = Counter()
    for section in sections:
        where = f"{path}:{section.line}"
        if section.name.endswith("_module"):
            module = section.name.removesuffix("_module")
            for key, (_, line) in section.values.items():
                raise CfgError(f"{path}:{line}", f"{key:.60} belongs to a layer, not to [{section.name:.60}]")
        elif section.name in ("frontend", "input", "output"):
            continue
        elif section.name == "moddims":
            yield _moddims(section, path)
        elif section.name in ARGUMENTS:
            name = f"{section.name}_{running[section.name]}"
            running[section.name] += 1
            yield Layer(name, section.name, module, _arguments(section, name, path), section.line)
        else:
            raise CfgError(where, f"unknown layer [{section.name:.60}]", f"known: {', '.join(ARGUMENTS)}")


def _moddims(section: _Section, path: str) -> ModDims:
    axes: dict[str, tuple[int, ...]] = {"permute": (), "collapse": ()}
    for key, (value, line) in section.values.items():
        good = isinstance(value, list) and value and all(type(axis) is int and 0 <= axis < 4 for axis in value)
        if key not in axes or not good or len(set(value)) != len(value):
            raise CfgError(
                f"{path}:{line}",
                f"[moddims] {key:.60}={value!s:.60}",
                "write permute=[axes] and collapse=[axes], batch not counted",
            )
        axes[key] = tuple(value)
    return ModDims(axes["permute"], axes["collapse"], section.line)


def _arguments(section: _Section, name: str, path: str) -> dict[str, Any]:
    args = dict(ARGUMENTS[section.name])
    for key, (value, line) in section.values.items():
        if key not in args:
            known = ", ".join(args) or "it takes none"
            raise CfgError(f"{path}:{line}", f"{name} has no argument {key:.60}", f"known: {known}")
        if not _fits(key, value, args[key]):
            raise CfgError(f"{path}:{line}", f"{name}: {key}={value!s:.60} is not a value for {key}")
        args[key] = value
    missing = [key for key, value in args.items() if value is REQUIRED]
    if missing:
        raise CfgError(f"{path}:{section.line}", f"{name} needs {', '.join(missing)}")
    return args


def _fits(key: str, value: Any, default: Any) -> bool:
    if key == "padding" and value in ("valid", "same"):
        return True
    if key in SIZES:
        least = 0 if key in ("padding", "output_padding") else 1
        sizes = value if isinstance(value, list) else [value]
        return bool(sizes) and len(sizes) <= 2 and all(_is_count(size, least) for size in sizes)
    if key in ("out_channels", "groups", "out_features", "hidden_size", "num_layers"):
        return _is_count(value)
    if key == "nonlinearity":
        return value in ("tanh", "relu")
    if isinstance(default, bool):
        return isinstance(value, bool)
    if key in ("p", "dropout"):
        return _is_number(value) and 0 <= value < 1
    return _is_number(value) and abs(value) < 1e9


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any, least: int = 1) -> bool:
    return type(value) is int and least <= value <= 1 << 16
