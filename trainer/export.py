"""A trained network -> one ONNX file that carries everything a stranger needs to run it."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch

from detector.errors import InputError
from detector.model import PROPERTY, SCHEMA
from trainer.crnn import CRNN

OPSET = 17


def export(
    model: CRNN,
    path: Path,
    *,
    name: str,
    version: str,
    labels: Sequence[str],
    thresholds: Mapping[str, Mapping[str, float]],
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Write the network as ONNX, its description in the metadata property `urbandetect`.

    The file is the old one or the new one, never half of one. Raises CfgError naming the layer when the network needs whole clips.
    """
    cfg = model.cfg
    cfg.require_streaming()
    model = model.eval().cpu()
    streams = 2
    example = (torch.zeros(streams, cfg.context + 2 * cfg.hop), *model.fresh_state(streams))
    outputs = ["scores", *(f"{state}_out" for state in model.state_names)]
    axes = {"audio": {0: "streams", 1: "samples"}, "scores": {0: "streams", 1: "rows"}}
    axes |= {state: {1: "streams"} for state in [*model.state_names, *outputs[1:]]}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter is deprecated, and the one that writes a clean LSTM
        graph = Path(folder) / "graph.onnx"
        torch.onnx.export(
            model,
            example,
            str(graph),
            dynamo=False,
            opset_version=OPSET,
            input_names=["audio", *model.state_names],
            output_names=outputs,
            dynamic_axes=axes,
        )
        proto = onnx.load(str(graph))
    description = {
        "schema": SCHEMA,
        "name": name,
        "version": version,
        "sample_rate": cfg.frontend.sample_rate,
        "hop": cfg.hop,
        "context": cfg.context,
        "labels": list(labels),
        "thresholds": {label: dict(thresholds[label]) for label in labels},
        "clip_pooling": cfg.clip_pooling,
        "cfg": cfg.text,
        "frontend": asdict(cfg.frontend),
        "training": dict(training),
        "metrics": dict(metrics),
    }
    proto.metadata_props.add(key=PROPERTY, value=json.dumps(description, sort_keys=True))
    proto.producer_name, proto.doc_string = "urbandetect", f"{name} {version}"
    write_whole(path, lambda partial: partial.write_bytes(proto.SerializeToString()))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all: `write` fills a file beside it, which then takes its place. Raises InputError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into the latter
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise InputError(str(path), f"cannot be written ({reason})", "is the disk full, or the folder not yours?") from error
    finally:
        partial.unlink(missing_ok=True)
