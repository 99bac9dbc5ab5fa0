"""The model file: loaded, verified against the contract, stepped with explicit state."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime-gpu otherwise keeps notes for its maker, from its import on
import onnxruntime

from detector.audio.source import Floats
from detector.errors import ConfigError, ModelError
from detector.onnx_file import check, unreadable
from detector.tables import read_file

log = logging.getLogger(__name__)

SCHEMA = 1
PROVIDERS = ("auto", "cuda", "cpu")
PROPERTY = "urbandetect"
GPU_NODES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg")
"""A computer, a Jetson (old and new), Windows' Linux: without any of them CUDA is not tried, for onnxruntime complains on standard
error about what it does not find."""
LONGEST_S = 86_400.0
"""No event needs more than a day to open or to close."""
MOST_BYTES = 256 << 20
"""Of a model file: the shipped one is 1.3 MB, and what weighs more than this no small computer steps in real time."""
MOST_DESCRIPTION = 1 << 20
"""Characters of the description, which takes many times as much memory: the shipped model's has 6,500."""
MOST_SAMPLES = 1 << 20
"""Of a hop, and of a context: 22 s at 48 kHz. What is tried of a model is two hops and a context."""
MOST_STATE = 1 << 20
"""Numbers that a stream carries from step to step, 4 MB; the shipped model's carries 4,544."""
MOST_LABELS, LONGEST_NAME = 1000, 200
"""Every label has a topic of its own, and is one of its levels."""
MOST_MEMORY = 4 << 30
"""What onnxruntime may take on the CPU: the shipped model takes 0.6 GB for 64 streams of 64 hops each."""
LONGEST_TRY_S = 60.0
"""What trying a model may take: the first step on a GPU takes a small computer seconds."""
State = tuple[Floats, ...]


@dataclass(frozen=True)
class Threshold:
    """When an event opens and closes: score >= on for min_on_s, score < off for min_off_s; none follows within cooldown_s."""

    on: float
    off: float
    min_on_s: float
    min_off_s: float
    cooldown_s: float = 0.0

    def of_model(self) -> dict[str, float]:
        """What a model file says of it: a cool-down is the settings' affair."""
        return {"on": self.on, "off": self.off, "min_on_s": self.min_on_s, "min_off_s": self.min_off_s}


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
        """Load and verify. Raises ModelError saying what is wrong with the file, ConfigError for a missing GPU asked for.

        A GPU that is there and cannot be used is warned of, and the CPU runs the model.
        """
        where = str(path)
        content = read_file(path, MOST_BYTES, ModelError, "is the name of the model right?")
        if not content:
            raise ModelError(where, "is empty", "is it an unfinished download?")
        check(content, where)
        self.session = _session(content, where, provider)
        self.provider = "cuda" if "CUDAExecutionProvider" in self.session.get_providers() else "cpu"
        if provider == "cuda" and self.provider != "cuda":
            raise ConfigError(
                "--provider cuda",
                "onnxruntime found no usable GPU",
                "install a driver and urbandetect's extra `cuda`, or use --provider cpu",
            )
        if provider == "auto" and self.provider != "cuda" and _has_gpu():
            advice = "install a driver and urbandetect's extra `cuda`, or use --provider cpu"
            log.warning("the GPU of this computer cannot be used, the CPU runs the model; %s", advice)
        self.description = _describe(self.session, hashlib.sha256(content).hexdigest(), where)
        _check_description(self.description, where)
        _check_tensors(self.session, where)
        self._state_shapes = {i.name: i.shape for i in self.session.get_inputs() if i.name != "audio"}
        self.stream_axes = [shape.index("streams") for shape in self._state_shapes.values()]
        self._outputs = ["scores", *(f"{name}_out" for name in self._state_shapes)]
        self._verify(where)

    def fresh_state(self, streams: int) -> State:
        """Zeros, their streams on `stream_axes`: the state before the first sample of a session."""
        return tuple(
            np.zeros([streams if size == "streams" else size for size in shape], np.float32)
            for shape in self._state_shapes.values()
        )

    def step(self, audio: Floats, state: State) -> tuple[Floats, State]:
        """audio [streams, context + k * hop] and a state -> scores [streams, k, labels] in 0..1 and the next state."""
        return self._step(audio, state, None)

    def _step(self, audio: Floats, state: State, options: Any) -> tuple[Floats, State]:
        feed = {"audio": audio} | dict(zip(self._state_shapes, state, strict=True))
        scores, *new = self.session.run(self._outputs, feed, options)
        return scores, tuple(new)

    def _verify(self, where: str) -> None:
        """Step over silence and then noise: shapes, range and the carried state must be what the description promises."""
        d, options = self.description, onnxruntime.RunOptions()
        deadline = threading.Timer(LONGEST_TRY_S, setattr, (options, "terminate", True))
        deadline.daemon = True
        deadline.start()
        try:
            for streams, rows in ((1, 2), (2, 1)):
                state = self.fresh_state(streams)
                noise = np.random.default_rng(0).uniform(-1, 1, (streams, d.context + rows * d.hop)).astype(np.float32)
                for sound, audio in (("silence", np.zeros_like(noise)), ("noise", noise)):
                    before = state
                    try:
                        scores, state = self._step(audio, before, options)
                    except Exception as error:
                        reason = f"not in {LONGEST_TRY_S:g} s" if options.terminate else _line(error)
                        raise ModelError(where, f"does not step {streams} streams over {rows} hops ({reason})") from error
                    if scores.shape != (streams, rows, len(d.labels)):
                        said = f"gives scores {list(scores.shape)} for {streams} streams, {rows} rows and {len(d.labels)} labels"
                        raise ModelError(where, said)
                    if not (np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1):
                        raise ModelError(where, f"gives scores outside 0..1 for {sound}")
                    if any(new.shape != old.shape for new, old in zip(state, before, strict=True)):
                        raise ModelError(where, "returns a state of another shape than it takes")
                    if not all(np.isfinite(new).all() for new in state):
                        raise ModelError(where, f"returns a state that is no number for {sound}")
        finally:
            deadline.cancel()


def shipped(name: str) -> Path:
    """A file of the models folder: beside the packages in a checkout, inside the package once installed."""
    here = Path(__file__).parent
    installed = here / "models" / name
    return installed if installed.exists() else here.parent / "models" / name


def _has_gpu() -> bool:
    return any(Path(node).exists() for node in GPU_NODES)


def _session(content: bytes, where: str, provider: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # what was checked, not what it may also look like
    options.log_severity_level = 4
    wanted = ["CPUExecutionProvider"]
    if provider != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers() and _has_gpu():
        wanted.insert(0, "CUDAExecutionProvider")
    else:
        _bound_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
    said = io.StringIO()  # it prints what it misses of CUDA, and standard output is for events
    onnxruntime.set_default_logger_severity(2 if log.isEnabledFor(logging.DEBUG) else 4)
    try:
        with contextlib.redirect_stdout(said):
            if len(wanted) > 1:
                onnxruntime.preload_dlls()
            return onnxruntime.InferenceSession(content, options, providers=wanted)
    except Exception as error:
        raise unreadable(where, _line(error)) from error
    finally:
        for line in said.getvalue().splitlines():
            log.debug("onnxruntime: %s", line)


@functools.cache
def _bound_memory() -> None:
    """Once a process: sessions that use its own allocator have no more than this."""
    cpu = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(cpu, onnxruntime.OrtArenaCfg({"max_mem": MOST_MEMORY}))


def _describe(session: Any, sha256: str, where: str) -> Description:
    try:
        text = session.get_modelmeta().custom_metadata_map.get(PROPERTY)
    except UnicodeDecodeError as error:
        raise unreadable(where, "its properties are not text") from error
    if text is None:
        raise ModelError(where, f"is an ONNX model without the property `{PROPERTY}`", "use one written by `urbandetect train`")
    if len(text) > MOST_DESCRIPTION:
        raise ModelError(where, f"describes itself in more than {MOST_DESCRIPTION:,} characters", "export it again")
    try:
        said = json.loads(text)
        if said["schema"] != SCHEMA:
            what = f"has schema {said['schema']!r:.40}, this version reads {SCHEMA}"
            raise ModelError(where, what, "update urbandetect or the model")
        labels = tuple(str(label) for label in said["labels"])
        str(said["cfg"]), dict(said["frontend"]), dict(said["training"]), dict(said["metrics"])
        return Description(
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
        what = f"describes itself wrongly (property `{PROPERTY}`: {error!r:.160})"
        raise ModelError(where, what, "export it again") from error


def _check_description(d: Description, where: str) -> None:
    if not (1000 <= d.sample_rate <= 384_000 and 0 < d.hop <= MOST_SAMPLES and 0 <= d.context <= MOST_SAMPLES):
        raise ModelError(where, "describes an impossible sample_rate, hop or context", "export it again")
    if not 0 < len(d.labels) <= MOST_LABELS:
        raise ModelError(where, f"has {len(d.labels)} labels", f"a model has 1 to {MOST_LABELS}")
    if len(set(d.labels)) < len(d.labels) or not all(re.fullmatch(r"[\w.-]+", label) for label in d.labels):
        raise ModelError(where, "has labels that are not words, or one of them twice", "export it again")
    if not all(len(name) <= LONGEST_NAME and name.isprintable() for name in (d.name, d.version, *d.labels)):
        raise ModelError(where, f"has a name, version or label longer than {LONGEST_NAME} characters or not printable", "rename it")
    if not all(
        0 <= t.off <= t.on <= 1 and t.on > 0 and 0 <= t.min_on_s <= LONGEST_S and 0 <= t.min_off_s <= LONGEST_S
        for t in d.thresholds.values()
    ):
        what = "has thresholds that are not 0 <= off <= on <= 1 with on above 0, or times beyond a day"
        raise ModelError(where, what, "export it again")


def _check_tensors(session: Any, where: str) -> None:
    try:
        inputs, outputs = ({each.name: each for each in some} for some in (session.get_inputs(), session.get_outputs()))
        shapes = {name: each.shape for name, each in inputs.items() if name != "audio"}
    except UnicodeDecodeError as error:
        raise unreadable(where, "its names are not text") from error
    if "audio" not in inputs or set(outputs) != {"scores", *(f"{name}_out" for name in shapes)}:
        what = f"has inputs {', '.join(inputs):.100} and outputs {', '.join(sorted(outputs)):.100}"
        raise ModelError(where, what, "the contract names audio, scores, and X, X_out per state")
    if any(each.type != "tensor(float)" for each in (*inputs.values(), *outputs.values())):
        raise ModelError(where, "has an input or output that is not float32", "export it again")
    numbers = 0
    for shape in shapes.values():
        sizes = [size for size in shape if size != "streams"]
        if len(sizes) != len(shape) - 1 or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ModelError(where, "has a state that is not of known sizes with one axis named streams", "export it again")
        numbers += math.prod(sizes)
    if numbers > MOST_STATE:
        raise ModelError(where, f"carries a state of more than {MOST_STATE:,} numbers for every stream", "use a smaller network")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
