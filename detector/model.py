"""The model file: loaded, verified against the contract, stepped with explicit state."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from detector.audio.source import Floats
from detector.errors import ConfigError, ModelError

SCHEMA = 1
PROVIDERS = ("auto", "cuda", "cpu")
PROPERTY = "urbandetect"
GPU_NODES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg")
"""A computer, a Jetson (old and new), Windows' Linux: without any of them CUDA is not tried, for onnxruntime complains on standard
error about what it does not find."""
LONGEST_S = 86_400.0
"""No event needs more than a day to open or to close."""
State = tuple[Floats, ...]


@dataclass(frozen=True)
class Threshold:
    """When a label's event opens and closes: score >= on for min_on_s, score < off for min_off_s."""

    on: float
    off: float
    min_on_s: float
    min_off_s: float


@dataclass(frozen=True)
class Description:
    """What the model file says of itself; hop and context in samples at sample_rate."""

    name: str
    version: str
    sha256: str
    sample_rate: int
    hop: int
    context: int
    labels: tuple[str, ...]
    thresholds: Mapping[str, Threshold]
    clip_pooling: str
    properties: Mapping[str, Any]


class Model:
    """An ONNX model of the contract, ready to step on the provider it really uses."""

    def __init__(self, path: Path, provider: str = "auto") -> None:
        """Load and verify. Raises ModelError saying what is wrong with the file, ConfigError for a missing GPU asked for."""
        content = _read(path)
        self.session = _session(content, path, provider)
        self.provider = "cuda" if "CUDAExecutionProvider" in self.session.get_providers() else "cpu"
        if provider == "cuda" and self.provider != "cuda":
            raise ConfigError(
                "--provider cuda",
                "onnxruntime found no usable GPU",
                "install a driver and urbandetect's extra `cuda`, or use --provider cpu",
            )
        self.description = _describe(self.session, hashlib.sha256(content).hexdigest(), path)
        self._state_shapes = {i.name: i.shape for i in self.session.get_inputs() if i.name != "audio"}
        self.stream_axes = [shape.index("streams") for shape in self._state_shapes.values()]
        self._outputs = ["scores", *(f"{name}_out" for name in self._state_shapes)]
        self._verify(path)

    def fresh_state(self, streams: int) -> State:
        """Zeros, their streams on `stream_axes`: the state before the first sample of a session."""
        return tuple(
            np.zeros([streams if size == "streams" else size for size in shape], np.float32)
            for shape in self._state_shapes.values()
        )

    def step(self, audio: Floats, state: State) -> tuple[Floats, State]:
        """audio [streams, context + k * hop] and a state -> scores [streams, k, labels] in 0..1 and the next state."""
        feed = {"audio": audio} | dict(zip(self._state_shapes, state, strict=True))
        scores, *new = self.session.run(self._outputs, feed)
        return scores, tuple(new)

    def _verify(self, path: Path) -> None:
        """Step over silence: shapes, range and the carried state must be what the description promises."""
        d = self.description
        for streams, rows in ((1, 2), (2, 1)):
            try:
                fresh = self.fresh_state(streams)
                scores, state = self.step(np.zeros((streams, d.context + rows * d.hop), np.float32), fresh)
            except Exception as error:
                reason = " ".join(str(error).split())
                raise ModelError(str(path), f"does not step {streams} streams over {rows} hops ({reason[:160]})") from error
            if scores.shape != (streams, rows, len(d.labels)):
                raise ModelError(
                    str(path), f"gives scores {list(scores.shape)} for {streams} streams, {rows} rows and {len(d.labels)} labels"
                )
            if not (np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1):
                raise ModelError(str(path), "gives scores outside 0..1 for silence")
            if any(new.shape != old.shape for new, old in zip(state, fresh, strict=True)):
                raise ModelError(str(path), "returns a state of another shape than it takes")


def shipped(name: str) -> Path:
    """A file of the models folder: beside the packages in a checkout, inside the package once installed."""
    here = Path(__file__).parent
    installed = here / "models" / name
    return installed if installed.exists() else here.parent / "models" / name


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(str(path), f"cannot be read ({error.strerror})", "give a model file with --model") from error
    if not content:
        raise ModelError(str(path), "is empty", "is it an unfinished download?")
    return content


def _session(content: bytes, path: Path, provider: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    wanted = ["CPUExecutionProvider"]
    if (
        provider != "cpu"
        and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        and any(Path(node).exists() for node in GPU_NODES)
    ):
        wanted.insert(0, "CUDAExecutionProvider")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for events: it speaks there of CUDA that it misses
            if len(wanted) > 1:
                onnxruntime.preload_dlls()
            return onnxruntime.InferenceSession(content, options, providers=wanted)
    except Exception as error:
        raise ModelError(str(path), "is not a readable ONNX model", "is it damaged or an unfinished download?") from error


def _describe(session: Any, sha256: str, path: Path) -> Description:
    where = str(path)
    text = session.get_modelmeta().custom_metadata_map.get(PROPERTY)
    if text is None:
        raise ModelError(where, f"is an ONNX model without the property `{PROPERTY}`", "use one written by `urbandetect train`")
    try:
        said = json.loads(text)
        if said["schema"] != SCHEMA:
            raise ModelError(where, f"has schema {said['schema']}, this version reads {SCHEMA}", "update urbandetect or the model")
        labels = tuple(str(label) for label in said["labels"])
        str(said["cfg"]), dict(said["frontend"]), dict(said["training"]), dict(said["metrics"])
        description = Description(
            name=str(said["name"]),
            version=str(said["version"]),
            sha256=sha256,
            sample_rate=int(said["sample_rate"]),
            hop=int(said["hop"]),
            context=int(said["context"]),
            labels=labels,
            thresholds={label: Threshold(**{k: float(v) for k, v in said["thresholds"][label].items()}) for label in labels},
            clip_pooling=str(said["clip_pooling"]),
            properties=said,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelError(where, f"describes itself wrongly (property `{PROPERTY}`: {error!r})", "export it again") from error
    if not (
        1000 <= description.sample_rate <= 384_000
        and 0 < description.hop < 1 << 24
        and 0 <= description.context < 1 << 24
        and labels
    ):
        raise ModelError(where, "describes an impossible sample_rate, hop, context or no labels", "export it again")
    if len(set(labels)) < len(labels) or not all(re.fullmatch(r"[\w.-]+", label) for label in labels):
        raise ModelError(where, "has labels that are not words, or one of them twice", "export it again")
    if not all(
        0 <= t.off <= t.on <= 1 and 0 <= t.min_on_s <= LONGEST_S and 0 <= t.min_off_s <= LONGEST_S
        for t in description.thresholds.values()
    ):
        raise ModelError(where, "has thresholds that are not 0 <= off <= on <= 1, or times beyond a day", "export it again")
    inputs = {i.name: i for i in session.get_inputs()}
    outputs = {o.name for o in session.get_outputs()}
    states = [name for name in inputs if name != "audio"]
    if "audio" not in inputs or outputs != {"scores", *(f"{name}_out" for name in states)}:
        raise ModelError(
            where,
            f"has inputs {', '.join(inputs)} and outputs {', '.join(sorted(outputs))}",
            "the contract names audio, scores, and X, X_out per state",
        )
    if any(i.type != "tensor(float)" for i in inputs.values()) or any(inputs[name].shape.count("streams") != 1 for name in states):
        raise ModelError(where, "has an input that is not float32, or a state without one axis named streams", "export it again")
    return description
