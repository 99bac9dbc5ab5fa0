"""A trained network -> one ONNX file that carries everything a stranger needs to run it."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch

from detector.health import own_version
from detector.model import PROPERTY, SCHEMA
from trainer.crnn import CRNN
from trainer.files import write_whole
from trainer.streaming import Streaming
from trainer.thresholds import DEFAULT

OPSET = 17


def export(
    model: CRNN,
    path: str | Path,
    *,
    labels: Sequence[str],
    name: str = "",
    version: str = "",
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write the network as ONNX, its description in the metadata property `urbandetect`.

    Without a name it is the file's, without a version ours.

    The file is the old one or the new one, never half of one. Raises CfgError naming the layer when the network needs whole clips.
    """
    cfg = model.cfg
    streaming = Streaming(model.cpu())
    path = Path(path)
    name, version = name or path.stem, version or own_version()
    thresholds = thresholds or dict.fromkeys(labels, DEFAULT)
    streams = 2
    example = (torch.zeros(streams, streaming.context + 2 * cfg.hop), *streaming.fresh_state(streams))
    outputs = ["scores", *(f"{state}_out" for state in streaming.state_names)]
    axes = {"audio": {0: "streams", 1: "samples"}, "scores": {0: "streams", 1: "rows"}}
    for state, axis in zip(streaming.state_names, streaming.stream_axes, strict=True):
        axes |= {state: {axis: "streams"}, f"{state}_out": {axis: "streams"}}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter is deprecated, and the one that writes a clean LSTM
        graph = Path(folder) / "graph.onnx"
        torch.onnx.export(
            streaming,
            example,
            str(graph),
            dynamo=False,
            opset_version=OPSET,
            input_names=["audio", *streaming.state_names],
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
        "context": streaming.context,
        "labels": list(labels),
        "thresholds": {label: dict(thresholds[label]) for label in labels},
        "clip_pooling": cfg.clip_pooling,
        "cfg": cfg.text,
        "frontend": asdict(cfg.frontend),
        "training": dict(training or {}),
        "metrics": dict(metrics or {}),
    }
    proto.metadata_props.add(key=PROPERTY, value=json.dumps(description, sort_keys=True))
    proto.producer_name, proto.doc_string = "urbandetect", f"{name} {version}"
    write_whole(path, lambda partial: partial.write_bytes(proto.SerializeToString()))
