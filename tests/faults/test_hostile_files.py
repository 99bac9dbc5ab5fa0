"""No file, however hostile, harms the daemon: it is understood, or refused in one line."""

from __future__ import annotations

import logging
import os
import random
import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from detector.config import load_settings, node_name, thresholds
from detector.errors import ModelError, UrbandetectError
from detector.health import health
from detector.model import GPU_NODES, Model, shipped
from trainer.cfg import load_cfg, summary

MOST_BYTES = 1 << 30
"""What a hostile file may make this process take."""
LONGEST_S = 1.0
"""What it may cost to understand or refuse one."""
MODELS = shipped("urban.onnx").parent
SETTINGS = Path(__file__).parents[2] / "detector.toml"

VALUES = (
    *("0", "-1", "1", "2", "3", "-0.0", "1e-320", "1e999", "-1e999", "nan", "inf", "-inf", "1_0", "1j", "true", "True", "None"),
    *("1000000000000", "1000000000000000", "9223372036854775808", "9" * 400, "9" * 5000, "0x" + "f" * 900, "0x" + "f" * 5000),
    *("-" * 5000 + "1", "1" + "+1" * 5000, "1+1j", "[]", "[1]", "[1,2]", "[-1,0]", "[1,2,3]", "{}", "{1:[2]}", "{a=1}", "{1,2}"),
    *(
        "[" * 300,
        "[" * 90 + "]" * 90,
        "[" * 30_000,
        "(" * 150,
        "{a=" * 500,
        "{a." + "a." * 150 + "a=1}",
        '""',
        "'x'",
        '"""',
        "b'x'",
    ),
    *("same", "valid", "relu", "..", "\\d", "1if 2else 3", "lambda:0", "a" * 30_000, "'" + "a" * 30_000 + "'", "a." * 20_000),
    *("\x00", "\x1b[2J", "\x85", "\u2028", "\u202e", "\ud800", "\r", "\t", "=", "#", '"\\u0000"', '"\\u0085"', '"\\u2028"'),
)
LINES = (
    *("REPEATx3", "REPEATx100", "REPEATx1000000000", "REPEATx" + "9" * 5000, "END", "[conv2d]", "[convtranspose2d]", "[maxpool2d]"),
    *("[adaptiveavgpool2d]", "[lstm]", "[linear]", "[moddims]", "[frontend]", "[output]", "[input]", "[" + "x" * 20_000 + "]"),
    *("hidden_size=65536", "num_layers=65536", "bidirectional=True", "out_channels=65536", "kernel_size=65536", "stride=65536"),
    *("padding=65536", "dilation=65536", "padding=same", "output_size=[65536,65536]", "shape=[1,64,65536]", "n_mels=1048576"),
    *("n_fft=1000000000000", "n_fft=1048576", "hop_length=1", "f_max=1", "eps=" + "9" * 400, "hidden_size=0x" + "f" * 900),
    *(
        "[[source]]",
        "[mqtt]",
        "[thresholds.siren]",
        "[optimizer]",
        "[lr_scheduler]",
        "[a." + "a." * 150 + "a]",
        "a." * 30_000 + "a=1",
    ),
    *("a." * 150 + "a=1", "name." + "a." * 150 + "a=1", "args.lr." + "a." * 150 + "a=1", "x" * 30_000 + "=1", '"a\\nb"=1'),
)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A giant allocation fails here, and with it the test."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("needs Linux, which tells what a process takes")
    taken = int(statm.read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_BYTES, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def hostile(draw: random.Random, files: list[bytes], lines: list[bytes]) -> bytes:
    """One of these files after a few accidents, with other files' lines in it."""
    mine = draw.choice(files).split(b"\n")
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        at, other = draw.randrange(len(mine)), draw.randrange(len(mine))
        value = draw.choice(VALUES).encode("utf-8", "surrogatepass")
        accident = draw.randrange(8)
        if accident == 0:
            mine[at] = b""
        elif accident == 1:
            mine.insert(other, mine[at])
        elif accident == 2:
            mine[at], mine[other] = mine[other], mine[at]
        elif accident == 3:
            mine.insert(at, draw.choice(lines))
        elif accident == 4:
            mine[at] = b"= ".join([mine[at].partition(b"=")[0], value])
        elif accident == 5:
            numbers = list(re.finditer(rb"-?\d+(\.\d+)?", mine[at]))
            if numbers:
                begin, end = draw.choice(numbers).span()
                mine[at] = mine[at][:begin] + value + mine[at][end:]
        elif accident == 6:
            column = draw.randint(0, len(mine[at]))
            mine[at] = mine[at][:column] + value + mine[at][column:]
        else:
            column = draw.randint(0, len(mine[at]))
            mine[at] = mine[at][:column] + draw.randbytes(draw.choice((1, 1, 2, 9))) + mine[at][column + draw.choice((0, 1)) :]
    return b"\n".join(mine)


def renew(path: Path, content: bytes) -> None:
    """Write a file that may be there: cutting it short takes a disk ten times as long."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def use_hostile(files: list[Path], use: Callable[[Path], object], folder: Path, inputs: int = 3_000, seed: int = 0) -> None:
    """Use so many hostile variants of the files: each is understood or refused in one line, quickly, and there are many of both."""
    for file in files:
        use(file)
    # what stands commented out among settings is their default: accidents happen to it too
    texts = [re.sub(rb"(?m)^# (?=\w+ = |\[)", b"", file.read_bytes()) for file in files]
    every = sorted([*MODELS.glob("*.cfg"), *MODELS.glob("*.toml"), SETTINGS])
    lines = [line for file in every for line in file.read_bytes().split(b"\n")] + [line.encode() for line in LINES]
    draw, path, refused = random.Random(seed), folder / f"hostile{files[0].suffix}", 0
    for number in range(inputs):
        renew(path, hostile(draw, texts, lines))
        started_s = time.thread_time()
        try:
            use(path)
        except UrbandetectError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1, f"input {number} of seed {seed}: {error}"  # noqa: PT017
        except BaseException as error:
            error.add_note(f"input {number} of seed {seed}")
            raise
        assert time.thread_time() - started_s < LONGEST_S, f"input {number} of seed {seed}"
    assert inputs / 10 < refused < inputs * 0.95


@pytest.mark.usefixtures("little_memory")
def test_a_hostile_cfg_is_understood_or_refused_in_one_line(tmp_path):
    use_hostile(sorted(MODELS.glob("*.cfg")), lambda path: summary(load_cfg(path)), tmp_path)


@pytest.mark.usefixtures("little_memory")
def test_a_hostile_file_of_settings_is_understood_or_refused_in_one_line(tmp_path, shipped_model):
    own = Model(shipped_model, "cpu").description.thresholds

    def use(path):
        settings, where = load_settings(path)
        thresholds(settings, own, where)
        node_name(settings)

    use_hostile([SETTINGS], use, tmp_path)


def test_a_hostile_recipe_is_understood_or_refused_in_one_line(tmp_path, request):
    pytest.importorskip("torch", reason="needs torch: pip install -e '.[train]'")
    from trainer.recipe import as_tables, load_recipe

    request.getfixturevalue("little_memory")  # not before torch has taken its own
    use_hostile(sorted(MODELS.glob("*.toml")), lambda path: as_tables(load_recipe(path)), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[rnn]\nhidden_size=1000000000000000",
        "[lstm]\nhidden_size=65536\nnum_layers=65536\n" * 1000,
        "[frontend]\nn_fft=1000000000000\n[relu]",
        "[frontend]\nn_fft=1048576\nhop_length=1\nn_mels=524288\n[relu]",
        "REPEATx1000000000\n[relu]\nEND",
        "REPEATx" + "9" * 5000 + "\n[relu]\nEND",
        ("REPEATx100\n" + "[relu]\n" * 100 + "END\n") * 70,
        "REPEATx100\n[convtranspose1d]\nout_channels=1\nkernel_size=65536\nstride=65536\nEND",
        "[moddims]\ncollapse=[0,1]\nREPEATx100\n[conv1d]\nout_channels=1\nkernel_size=3\nstride=3\npadding=65536\nEND",
        "[moddims]\ncollapse=[0,1]\nREPEATx100\n[conv1d]\nout_channels=1\nkernel_size=1\nstride=65536\nEND\n" * 10,
        "[adaptiveavgpool2d]\noutput_size=[65536,65536]\n[linear]\nout_features=65536",
        "[conv2d]\nout_channels=0x" + "f" * 5000 + "\nkernel_size=1",
        "[batchnorm2d]\neps=" + "9" * 400,
        "[linear]\nout_features=" + "[" * 60_000,
        "[linear]\n" + "\n".join(f"out_features{i}=1" for i in range(1000)),
    ],
)
@pytest.mark.usefixtures("little_memory")
def test_a_cfg_of_absurd_sizes_is_refused_before_anything_of_such_a_size_is_made(tmp_path, text):
    (tmp_path / "absurd.cfg").write_text(text)
    started_s = time.thread_time()
    with pytest.raises(UrbandetectError) as refused:
        load_cfg(tmp_path / "absurd.cfg")
    assert time.thread_time() - started_s < LONGEST_S
    assert str(refused.value).startswith(f"{tmp_path / 'absurd.cfg'}:")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "a." * 130_000 + "a = 1",
        "a." * 30_000 + "a = 1",
        "[mqtt]\nhost." + "a." * 150 + "a = 1",
        "node = " + "[" * 60_000,
        "[mqtt]\nport = 0x" + "f" * 5000,
        "thresholds = [0x" + "f" * 5000 + "]",
        'node = "a\\u0000b"',
        '[model]\npath = "a\\u0000b"',
        "# nothing\n" * 10_000,
    ],
)
@pytest.mark.usefixtures("little_memory")
def test_settings_that_would_take_all_memory_or_cannot_be_printed_are_refused(tmp_path, text):
    (tmp_path / "absurd.toml").write_text(text)
    started_s = time.thread_time()
    with pytest.raises(UrbandetectError) as refused:
        load_settings(tmp_path / "absurd.toml")
    assert time.thread_time() - started_s < LONGEST_S
    assert len(str(refused.value).splitlines()) == 1


def keeps_the_contract(path: Path) -> bool:
    """Whether the model file is let in; then its scores must be some, whatever it hears."""
    started_s = time.thread_time()
    try:
        model = Model(path, "cpu")
    except ModelError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
        return False
    finally:
        assert time.thread_time() - started_s < LONGEST_S
    d = model.description
    noise, state = np.random.default_rng(1).normal(0, 0.1, (2, d.context + 3 * d.hop)), model.fresh_state(2)
    for sound in (noise, np.sign(noise), np.zeros_like(noise)):
        scores, state = model.step(sound.astype(np.float32), state)
        assert scores.shape == (2, 3, len(d.labels))
        assert np.isfinite(scores).all()
        assert 0 <= scores.min() <= scores.max() <= 1
    return True


@pytest.mark.usefixtures("little_memory")
def test_a_model_with_any_byte_altered_is_refused_or_keeps_the_contract(tmp_path, loudness_model, shipped_model):
    path, draw, kept = tmp_path / "altered.onnx", random.Random(0), 0
    small, large = loudness_model.read_bytes(), shipped_model.read_bytes()
    for content, places in ((small, range(len(small))), (large, draw.sample(range(len(large)), 150))):
        for at in places:
            renew(path, content[:at] + bytes([content[at] ^ draw.randint(1, 255)]) + content[at + 1 :])
            kept += keeps_the_contract(path)
    assert 100 < kept < len(small)  # some bytes are weights and names


@pytest.mark.usefixtures("little_memory")
def test_a_model_cut_anywhere_is_refused(tmp_path, loudness_model, shipped_model):
    path = tmp_path / "cut.onnx"
    small, large = loudness_model.read_bytes(), shipped_model.read_bytes()
    for content, places in ((small, range(len(small))), (large, random.Random(0).sample(range(len(large)), 200))):
        for at in places:
            renew(path, content[:at])
            assert not keeps_the_contract(path), at


def changed(model: Path, path: Path, change: Callable[[object], None]) -> Path:
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[train]'")
    proto = onnx.load(model)
    change(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def elsewhere(graph):
    tensor = next(tensor for tensor in graph.initializer if tensor.name == "hundredth")
    tensor.ClearField("float_data")
    tensor.data_location = 1
    for key, value in {"location": "weights", "offset": "0", "length": "4"}.items():
        tensor.external_data.add(key=key, value=value)


def test_a_model_that_keeps_a_tensor_in_another_file_is_refused_and_that_file_is_not_read(tmp_path, monkeypatch, loudness_model):
    path = changed(loudness_model, tmp_path / "parts.onnx", lambda model: elsewhere(model.graph))
    monkeypatch.chdir(tmp_path)
    os.mkfifo("weights")  # who opens it to read waits for ever
    with pytest.raises(ModelError, match=r"parts\.onnx: keeps tensor 'hundredth' in another file"):
        Model(path, "cpu")


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml", "my.own"])
def test_a_model_with_an_operator_of_another_domain_is_refused_by_the_name_of_its_node(tmp_path, loudness_model, domain):
    def other(model):
        model.graph.node[4].domain, model.graph.node[4].name = domain, "the sum"

    path = changed(loudness_model, tmp_path / "other.onnx", other)
    with pytest.raises(ModelError, match=rf"other\.onnx: node 'the sum' is '{domain}\.CumSum', no operator of ONNX"):
        Model(path, "cpu")


@pytest.mark.usefixtures("little_memory")
def test_what_is_no_model_is_refused_at_once(tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.onnx").write_text("[source]\n" * 1000)
    (tmp_path / "noise.onnx").write_bytes(random.Random(0).randbytes(100_000))
    (tmp_path / "ort.onnx").write_bytes(b"\x12\x06\x00\x00ORTM")  # onnxruntime's own format, which is not looked into
    (tmp_path / "huge.onnx").touch()
    os.truncate(tmp_path / "huge.onnx", 1 << 30)
    for path in [*tmp_path.iterdir(), tmp_path / "missing.onnx", Path("/dev/zero")]:
        started_s = time.monotonic()
        with pytest.raises(ModelError) as refused:
            Model(path, "cpu")
        assert time.monotonic() - started_s < LONGEST_S
        assert str(refused.value).startswith(f"{path}: ")
        assert len(str(refused.value).splitlines()) == 1


no_gpu = pytest.mark.skipif(any(Path(node).exists() for node in GPU_NODES), reason="there is a GPU")


@no_gpu
def test_a_gpu_asked_for_and_missing_is_a_configuration_error_in_one_line(urbandetect, loudness_model):
    done = urbandetect("run", "--provider", "cuda", "--model", loudness_model, "--input", "-", stdin=None)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.splitlines() == [
        "urbandetect: --provider cuda: onnxruntime found no usable GPU; install a driver and urbandetect's extra `cuda`, "
        "or use --provider cpu"
    ]


@no_gpu
def test_a_gpu_hoped_for_that_cannot_be_used_is_warned_of_once_and_health_says_cpu(
    tmp_path, monkeypatch, caplog, capfd, loudness_model
):
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr("detector.model.GPU_NODES", (str(tmp_path / "nvidiactl"),))
    model = Model(loudness_model, "auto")
    [warning] = caplog.records
    assert warning.levelno == logging.WARNING
    assert "cannot be used" in warning.getMessage()
    assert "extra `cuda`" in warning.getMessage()
    assert health(model, 0.0, {}, {})["provider"] == "cpu"
    assert capfd.readouterr() == ("", "")


@no_gpu
@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_a_computer_without_a_gpu_is_told_nothing_of_one(caplog, capfd, loudness_model, provider):
    Model(loudness_model, provider)
    assert (caplog.text, capfd.readouterr()) == ("", ("", ""))


@pytest.mark.parametrize(
    ("name", "content", "command"),
    [
        ("bad.toml", b"a." * 130_000 + b"a = 1", "run --config"),
        ("bad.toml", b'[model]\npath = "a\\u0000b"', "scan x.wav --config"),
        ("bad.cfg", b"REPEATx" + b"9" * 5000 + b"\n[relu]\nEND", "model info"),
        ("bad.onnx", b"\x12\x06\x00\x00ORTM", "scan x.wav --model"),
        ("bad.onnx", None, "run --model"),
    ],
    ids=["dots", "zero", "digits", "format", "truncated"],
)
def test_the_program_refuses_a_hostile_file_in_one_line(urbandetect, tmp_path, name, content, command):
    with (tmp_path / name).open("wb") as file:
        file.write(content) if content else file.truncate(1 << 34)
    done = urbandetect(*command.split(), name)
    assert (done.returncode, done.stdout) == (78, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"urbandetect: {name}")
