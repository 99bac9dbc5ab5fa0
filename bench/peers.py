"""What a second of sound costs on one thread of one core: our model, the reference network, and any peer's model file given.

    python bench/peers.py [FILE ...]

FILE: a model of the contract (.onnx), Silero's voice activity detector (silero_vad_16k_op15.onnx of the package silero-vad, chunks
of 512 samples and a state), or YAMNet for TFLite (.tflite, 15,600 samples, half of them new; `pip install ai-edge-litert`). Each
is given what it would be given live, again and again, so caches are warm; the last column is the time against our model's, live.
Needs the extra `train`, which makes the reference network; its weights are random, which costs the same.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import onnxruntime

from detector.model import PROPERTY, Model, shipped
from detector.speed import times_s
from trainer.cfg import parse_cfg
from trainer.crnn import CRNN
from trainer.exporter import export

REFERENCE = Path(__file__).parents[1] / "models" / "reference.cfg"
PEER_RATE = 16_000
SILERO_SAMPLES = 512
NOISE = np.random.default_rng(0).normal(0, 0.1, 1 << 20).astype(np.float32)


def one_thread(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def contract(name: str, file: Path) -> Iterator[tuple[str, float, Callable[[], object]]]:
    """Steps of one hop as live, and of 64 as a scan."""
    model = Model(file, "cpu")
    d = model.description
    for hops, how in ((1, "live"), (64, "scan")):
        audio, state = NOISE[None, : d.context + hops * d.hop], model.fresh_state(1)
        yield f"{name}, {how}", hops * d.hop / d.sample_rate, lambda audio=audio, state=state: model.step(audio, state)


def reference(folder: Path) -> Path:
    """The reference network as it streams: its spectrogram normalised by band, for a clip's mean is not known in its middle."""
    text = REFERENCE.read_text().replace("norm=whiten", "norm=bands")
    file = folder / "reference.onnx"
    export(CRNN(parse_cfg(text)), file, labels=[f"label{i}" for i in range(10)])
    return file


def silero(file: Path) -> Iterator[tuple[str, float, Callable[[], object]]]:
    session = one_thread(file)
    context = 64 * (session.get_inputs()[0].shape[-1] != SILERO_SAMPLES)
    feed = {
        "input": NOISE[None, : context + SILERO_SAMPLES],
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(PEER_RATE, np.int64),
    }
    feed = {given.name: feed[given.name] for given in session.get_inputs()}
    yield f"{file.name}, live", SILERO_SAMPLES / PEER_RATE, lambda: session.run(None, feed)


def tflite(file: Path) -> Iterator[tuple[str, float, Callable[[], object]]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file), num_threads=1)
    given = interpreter.get_input_details()[0]
    samples = int(np.prod(given["shape"]))
    samples = samples if samples > 1 else 15_600
    interpreter.resize_tensor_input(given["index"], [samples])
    interpreter.allocate_tensors()

    def step() -> None:
        interpreter.set_tensor(given["index"], NOISE[:samples])
        interpreter.invoke()

    yield f"{file.name}, live", samples / 2 / PEER_RATE, step


def peer(file: Path) -> Iterator[tuple[str, float, Callable[[], object]]]:
    if file.suffix == ".tflite":
        return tflite(file)
    described = PROPERTY in one_thread(file).get_modelmeta().custom_metadata_map
    return contract(file.name, file) if described else silero(file)


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))
def main(files: tuple[Path, ...]) -> None:
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}"
    )
    print(f"{'':<36}  {'a step':>9}  {'of sound':>9}  {'per second of sound (10 to 90 %)':>34}  {'against ours':>12}")
    ours_ms = 0.0
    with tempfile.TemporaryDirectory() as name:
        rows = [*contract("urban.onnx", shipped("urban.onnx")), *contract("reference network", reference(Path(name)))]
        for what, seconds, step in [*rows, *(row for file in files for row in peer(file))]:
            low, median, high = 1e3 * np.percentile(times_s(step), (10, 50, 90))
            ours_ms = ours_ms or median / seconds
            spread = f"{median / seconds:.2f} ms ({low / seconds:.2f} to {high / seconds:.2f})"
            print(
                f"{what:<36}  {median:6.3f} ms  {1e3 * seconds:6.0f} ms  {spread:>34}  {median / seconds / ours_ms:11.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
