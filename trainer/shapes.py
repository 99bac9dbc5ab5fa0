"""Layers -> shapes: what each layer makes of its input, how far it reaches in time, and whether it streams."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from detector.errors import CfgError
from trainer.layers import RECURRENT, SIZES, Layer, ModDims

FARTHEST = 1 << 20
"""Frames that a row may read or step over: hours of sound."""
LARGEST = 1 << 40
"""Numbers that a layer may give: no computer holds more."""


@dataclass
class Trace:
    """The shape so far, and what has been learned on the way."""

    shape: tuple[int, ...]
    time_axis: int | None
    steps: list[Layer | ModDims]
    stride_frames: int = 1
    receptive_frames: int = 1
    obstacles: tuple[str, ...] = ()
    time_fixed: bool = False
    pads_time: bool = False


def trace_shapes(steps: list[Layer | ModDims], shape: tuple[int, ...], path: str) -> Trace:
    """Carry an input [channels, bands, frames] through every step: the steps with their shapes, and their reach in time.

    Raises CfgError naming line and layer for a step that does not fit the shape before it.
    """
    trace = Trace(shape, 2, [])
    for step in steps:
        where = f"{path}:{step.line}"
        if isinstance(step, ModDims):
            trace.steps.append(_rearrange(trace, step, where))
        else:
            before, time_axis = trace.shape, trace.time_axis
            args, parameters = _through(trace, step, where)
            if max(trace.stride_frames, trace.receptive_frames) > FARTHEST:
                raise CfgError(where, f"{step.name} reaches over more than {FARTHEST:,} frames", "lower kernels and strides")
            if math.prod(trace.shape) > LARGEST:
                raise CfgError(where, f"{step.name}: output {list(trace.shape)} is too large")
            done = replace(step, args=args, shape_in=before, shape_out=trace.shape, time_axis=time_axis, parameters=parameters)
            trace.steps.append(done)
    if trace.time_axis is not None and trace.time_axis != 0:
        last = trace.steps[-1]
        raise CfgError(
            f"{path}:{last.line}",
            f"the network ends with the shape {list(trace.shape)}, time on axis {trace.time_axis}",
            "end with rows [time, labels] or labels alone: add a [moddims]",
        )
    if len(trace.shape) != (1 if trace.time_axis is None else 2):
        raise CfgError(path, f"the network ends with the shape {list(trace.shape)}", "end with rows [time, labels] or labels alone")
    if trace.receptive_frames < trace.stride_frames:
        raise CfgError(path, f"skips sound: a row reads {trace.receptive_frames} frames of {trace.stride_frames}", "lower a stride")
    return trace


def _rearrange(trace: Trace, step: ModDims, where: str) -> ModDims:
    axes = len(trace.shape)
    keeps_rows = False
    if step.permute:
        dropped = set(range(axes)) - set(step.permute)
        if max(step.permute) >= axes or (dropped and dropped != {trace.time_axis}):
            raise CfgError(where, f"[moddims] permute={list(step.permute)} does not fit the shape {list(trace.shape)}")
        keeps_rows = bool(dropped)
        if keeps_rows and (axes, trace.time_axis, step.collapse) != (2, 0, ()):
            raise CfgError(
                where, f"[moddims] drops time from the shape {list(trace.shape)}", "only rows [time, features] have a last one"
            )
        trace.shape = tuple(trace.shape[axis] for axis in step.permute)
        trace.time_axis = step.permute.index(trace.time_axis) if trace.time_axis in step.permute else None
    if step.collapse:
        first, last = step.collapse[0], step.collapse[-1]
        if last >= len(trace.shape) or step.collapse != tuple(range(first, last + 1)):
            raise CfgError(where, f"[moddims] collapse={list(step.collapse)} does not fit the shape {list(trace.shape)}")
        merged = math.prod(trace.shape[first : last + 1])
        if trace.time_axis is not None and first <= trace.time_axis <= last and first != last:
            if not trace.time_fixed:
                raise CfgError(
                    where, "[moddims] merges time into the features, and clips differ in length", "pool it first (adaptive...)"
                )
            trace.time_axis = None
        elif trace.time_axis is not None and trace.time_axis > last:
            trace.time_axis -= last - first
        trace.shape = (*trace.shape[:first], merged, *trace.shape[last + 1 :])
    return replace(step, keeps_rows=keeps_rows)


def _through(trace: Trace, layer: Layer, where: str) -> tuple[dict[str, Any], int]:
    """Carry the shape through one layer; return its complete arguments and its number of trainable parameters."""
    shape, args = trace.shape, dict(layer.args)
    spatial = re.search(r"([12])d$", layer.kind)

    def misfit(needs: str) -> CfgError:
        return CfgError(where, f"{layer.name} needs {needs}, the shape here is {list(shape)}", "a [moddims] before it may help")

    if layer.kind in RECURRENT:
        if len(shape) != 2 or trace.time_axis != 0:
            raise misfit("rows [time, features]")
        if args["bidirectional"]:
            trace.obstacles += (f"{layer.name} (line {layer.line}) is bidirectional: it reads the clip from its end",)
        if args["dropout"] and args["num_layers"] == 1:
            raise CfgError(where, f"{layer.name}: dropout works between layers, and num_layers is 1", "use [dropout] after it")
        hidden, ways = args["hidden_size"], 2 if args["bidirectional"] else 1
        trace.shape = (shape[0], hidden * ways)
        biases = 2 * hidden if args["bias"] else 0
        inner = args["num_layers"] - 1
        weights = (shape[1] + hidden + (hidden * ways + hidden) * inner) * hidden + biases * (inner + 1)
        return args, ways * RECURRENT[layer.kind] * weights
    if layer.kind == "linear":
        if trace.time_axis == len(shape) - 1:
            raise misfit("features on the last axis")
        trace.shape = (*shape[:-1], args["out_features"])
        return args, (shape[-1] + args["bias"]) * args["out_features"]
    if spatial is None:  # activations and dropout
        return args, 0
    dims = int(spatial[1])
    if layer.kind.startswith("batchnorm"):
        rows = dims == 1 and (len(shape) == 1 or (len(shape) == 2 and trace.time_axis == 0))
        if not rows and len(shape) != dims + 1:
            raise misfit(f"{dims + 1} axes")
        if not args["track_running_stats"]:
            trace.obstacles += (f"{layer.name} (line {layer.line}) normalises by the statistics of what it is given",)
        return args, 2 * shape[-1 if rows else 0] if args["affine"] else 0
    if len(shape) != dims + 1 or trace.time_axis == 0:
        raise misfit("[channels, " + ("time]" if dims == 1 else "bands, time]"))
    return _convolve(trace, layer, args, dims, where)


def _convolve(trace: Trace, layer: Layer, args: dict[str, Any], dims: int, where: str) -> tuple[dict[str, Any], int]:
    """Convolutions and pools: every axis but the channels."""
    channels, *sizes = trace.shape
    for key in SIZES:
        if key in args and args[key] not in (None, "valid", "same"):
            value = args[key] if isinstance(args[key], list) else [args[key]] * dims
            if len(value) != dims:
                raise CfgError(where, f"{layer.name}: {key}={args[key]} needs {dims} value{'s' if dims > 1 else ''}")
            args[key] = value
    time = None if trace.time_axis is None else trace.time_axis - 1
    at_time = f"{layer.name} (line {layer.line})"
    if "output_size" in args:
        trace.shape = (channels, *args["output_size"])
        if time is not None:
            trace.obstacles += (f"{at_time} pools over the whole clip",)
            trace.time_fixed = trace.pads_time = True
        return args, 0
    stride = args["stride"] or args["kernel_size"]
    args["stride"] = stride
    dilation = args.get("dilation", [1] * dims)
    kernel = args["kernel_size"]
    if args["padding"] == "valid":
        args["padding"] = [0] * dims
    elif args["padding"] == "same":
        args["padding"] = [(sizes[i] * (stride[i] - 1) - 1 + kernel[i]) // 2 for i in range(dims)]
    padding = args["padding"]
    if "pool" in layer.kind and any(2 * padding[i] > kernel[i] for i in range(dims)):
        raise CfgError(where, f"{layer.name}: padding {padding} is more than half of kernel_size {kernel}")
    transposed = "transpose" in layer.kind
    out, obstacles = [], len(trace.obstacles)
    for i, size in enumerate(sizes):
        reach = dilation[i] * (kernel[i] - 1) + 1
        if transposed:
            new = (size - 1) * stride[i] - 2 * padding[i] + reach + args["output_padding"][i]
        elif args.get("ceil_mode"):
            new = -(-(size + 2 * padding[i] - reach) // stride[i]) + 1
            new -= (new - 1) * stride[i] >= size + padding[i]  # torch: the last window starts inside the input or its left padding
        else:
            new = (size + 2 * padding[i] - reach) // stride[i] + 1
        if new < 1 or (not transposed and size + 2 * padding[i] < reach):
            axis = "time" if i == time else "bands"
            raise CfgError(where, f"{layer.name}: kernel {reach} is larger than its input of {size + 2 * padding[i]} ({axis})")
        out.append(new)
        if i == time:
            if transposed and (stride[i], kernel[i]) != (1, 1):
                trace.obstacles += (f"{at_time} widens time",)
            elif padding[i]:
                trace.obstacles += (f"{at_time} pads time",)
            elif args.get("ceil_mode") and stride[i] > 1:
                trace.obstacles += (f"{at_time} rounds time up (ceil_mode)",)
            trace.receptive_frames += (reach - 1) * trace.stride_frames
            trace.stride_frames *= stride[i]
    trace.pads_time |= len(trace.obstacles) > obstacles
    if "pool" in layer.kind:
        trace.shape = (channels, *out)
        return args, 0
    filters, groups = args["out_channels"], args["groups"]
    if channels % groups or filters % groups:
        raise CfgError(where, f"{layer.name}: groups={groups} divides neither {channels} nor {filters}"[:200])
    trace.shape = (filters, *out)
    return args, channels * filters // groups * math.prod(kernel) + (filters if args["bias"] else 0)
