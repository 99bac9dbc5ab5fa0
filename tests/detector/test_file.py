from __future__ import annotations

import io
import os
import threading
import time

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from detector.audio.file import FileSource, mono, open_input
from detector.audio.source import LONGEST_BLOCK_S
from detector.errors import InputError


def heard(source):
    """Everything a source gives, checked to follow on without a gap."""
    blocks, deadline = [], time.monotonic() + 10
    while not source.ended:
        assert time.monotonic() < deadline
        if block := source.read():
            assert block.first == sum(map(len, blocks))
            assert len(block.samples) <= LONGEST_BLOCK_S * source.rate
            assert block.samples.dtype == np.float32
            blocks.append(block.samples)
        else:
            time.sleep(min(0.01, source.wait_s(1)))
    source.close()
    return np.concatenate([np.zeros(0, np.float32), *blocks])


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("rate", [8000, 22050, 96000])
@pytest.mark.parametrize(
    ("format_", "subtype", "error"),
    [
        ("WAV", "PCM_U8", 2**-7),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-22),
        ("WAV", "PCM_32", 2**-22),
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 0),
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-22),
        ("OGG", "VORBIS", 0.1),
    ],
)
def test_every_kind_of_file_is_heard_as_mono_float32(tmp_path, format_, subtype, error, rate, channels):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)
    file = tmp_path / f"tone.{format_.lower()}"
    soundfile.write(file, np.stack([tone] * channels, axis=1).astype(np.float32), rate, subtype, format=format_)
    source = FileSource(file)
    assert source.rate == rate
    np.testing.assert_allclose(heard(source), tone, atol=error + 1e-7)


def test_the_channels_are_averaged():
    assert mono(np.array([[1, 0], [0.5, -0.5]], np.float32)).tolist() == [0.5, 0]


@given(st.lists(st.floats(width=32), min_size=2, max_size=20))
def test_whatever_a_float_file_holds_is_between_minus_one_and_one_afterwards(values):
    samples = np.array(values, np.float32)
    for heard in (mono(samples[:, None]), mono(np.stack([samples, samples], axis=1))):
        assert (np.abs(heard) <= 1).all()
        sane = np.abs(samples) <= 1e38
        np.testing.assert_array_equal(heard[sane], np.clip(samples[sane], -1, 1))


def test_a_long_file_comes_in_blocks_that_the_pipeline_can_take(tmp_path):
    sound = np.random.default_rng(0).uniform(-1, 1, 8000 * 20).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", sound, 8000, "FLOAT")
    np.testing.assert_array_equal(heard(FileSource(tmp_path / "long.wav")), sound)


def test_at_real_time_a_file_takes_as_long_as_it_lasts(tmp_path):
    soundfile.write(tmp_path / "short.wav", np.zeros(4000), 8000)
    start = time.monotonic()
    assert len(heard(FileSource(tmp_path / "short.wav", speed=1.0))) == 4000
    assert 0.45 < time.monotonic() - start < 2


@pytest.mark.parametrize(
    "name", ["missing.wav", "empty.wav", "text.wav", "text.raw", "folder", "folder.wav", "cut.flac", "header.wav"]
)
def test_a_file_that_is_not_audio_is_an_error_of_one_line_that_names_it(tmp_path, name):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("to be or not to be\n" * 100)
    (tmp_path / "text.raw").write_text("to be or not to be\n" * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.wav").mkdir()
    soundfile.write(tmp_path / "header.wav", np.zeros(100), 8000)
    soundfile.write(tmp_path / "cut.flac", np.random.default_rng(0).uniform(-1, 1, 8000), 8000)
    for broken in ("header.wav", "cut.flac"):
        (tmp_path / broken).write_bytes((tmp_path / broken).read_bytes()[:20])
    with pytest.raises(InputError) as caught:
        FileSource(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["flac", "mp3"])
def test_a_damaged_file_is_heard_to_the_damage_which_is_then_said(tmp_path, kind):
    soundfile.write(tmp_path / f"whole.{kind}", np.random.default_rng(0).uniform(-0.5, 0.5, 160000), 8000)
    content = (tmp_path / f"whole.{kind}").read_bytes()
    (tmp_path / f"damaged.{kind}").write_bytes(content[: len(content) // 2] + bytes(5000) + content[len(content) // 2 + 5000 :])
    source, blocks = FileSource(tmp_path / f"damaged.{kind}"), []
    with pytest.raises(InputError, match=r"breaks off at (9\.[5-9]|10\.[0-5]) s; it is damaged"):
        blocks.extend(iter(source.read, None))
    sound = np.concatenate([block.samples for block in blocks])
    assert 9.5 < len(sound) / 8000 < 10.5
    whole = heard(FileSource(tmp_path / f"whole.{kind}"))
    np.testing.assert_allclose(sound[:72000], whole[:72000], atol=1e-4)


def test_a_flac_file_cut_off_in_the_middle_is_heard_to_there(tmp_path):
    soundfile.write(tmp_path / "whole.flac", np.random.default_rng(0).uniform(-1, 1, 160000), 8000)
    content = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: int(len(content) * 0.58)])
    source = FileSource(tmp_path / "cut.flac")
    blocks = [source.read(), source.read()]
    assert 11 < sum(len(block.samples) for block in blocks) / 8000 < 11.6
    with pytest.raises(InputError, match="breaks off at 11"):
        source.read()


def test_flac_that_was_written_to_a_pipe_tells_no_length_and_is_heard_to_its_end(tmp_path):
    av = pytest.importorskip("av", reason="needs PyAV: pip install -e '.[stream]'")
    read_end, write_end = os.pipe()
    kept = []
    with os.fdopen(read_end, "rb") as file:
        reader = threading.Thread(target=lambda: kept.append(file.read()))
        reader.start()
        with os.fdopen(write_end, "wb") as sink, av.open(sink, "w", format="flac") as out:
            track = out.add_stream("flac", rate=8000, layout="mono")
            for _ in range(14):
                frame = av.AudioFrame.from_ndarray(np.full((1, 4000), 1000, np.int16), "s16", "mono")
                frame.sample_rate = 8000
                out.mux(track.encode(frame))
            out.mux(track.encode(None))
        reader.join()
    (tmp_path / "piped.flac").write_bytes(kept[0])
    source = FileSource(tmp_path / "piped.flac")
    assert len(heard(source)) == 56000
    assert source.ended


@pytest.fixture
def stdin(monkeypatch):
    """Give bytes, in pieces, through a real pipe that is standard input."""
    opened, threads = [], []

    def pipe(data: bytes, piece: int = 1 << 16) -> None:
        read_end, write_end = os.pipe()
        opened.append(os.fdopen(read_end))
        monkeypatch.setattr("sys.stdin", opened[-1])

        def write() -> None:
            with os.fdopen(write_end, "wb", buffering=0) as out:
                for at in range(0, len(data), piece):
                    out.write(data[at : at + piece])

        threads.append(threading.Thread(target=write))
        threads[-1].start()

    yield pipe
    for thread in threads:
        thread.join()
    for file in opened:
        file.close()


@pytest.mark.parametrize("piece", [1 << 16, 7])
@pytest.mark.parametrize(
    ("subtype", "channels", "error"),
    [("PCM_16", 1, 2**-15), ("PCM_16", 2, 2**-15), ("PCM_24", 1, 2**-22), ("PCM_32", 2, 2**-22), ("FLOAT", 1, 0)],
)
def test_wav_on_standard_input_is_heard_as_it_arrives(stdin, subtype, channels, error, piece):
    tone = 0.9 * np.sin(np.arange(3000) / 7)
    file = io.BytesIO()
    soundfile.write(file, np.stack([tone] * channels, axis=1).astype(np.float32), 8000, subtype, format="WAV")
    stdin(file.getvalue(), piece)
    source = open_input("-", speed=1.0)
    assert source.rate == 8000
    np.testing.assert_allclose(heard(source), tone, atol=error + 1e-7)


def test_chunks_before_the_sound_of_a_piped_wav_are_passed_over(stdin):
    file = io.BytesIO()
    soundfile.write(file, np.full(100, 0.5), 8000, "PCM_16", format="WAV")
    whole = file.getvalue()
    stdin(whole[:12] + b"odd \x03\0\0\0abc\0" + whole[12:])
    assert heard(open_input("-", 0)).tolist() == [0.5] * 100


def test_any_other_format_on_standard_input_is_read_to_its_end(stdin):
    file = io.BytesIO()
    soundfile.write(file, np.full(5000, 0.5), 8000, "PCM_16", format="FLAC")
    stdin(file.getvalue())
    assert heard(open_input("-", 0)).tolist() == [0.5] * 5000


WAV = b"RIFF\xff\xff\xff\xffWAVE"
FORMAT = b"fmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF",
        b"hello, world",
        WAV,
        WAV + FORMAT,
        WAV + FORMAT[:20],
        WAV + b"data\0\0\0\0",
        WAV + b"fmt \x04\0\0\0\x01\0\x01\0data\0\0\0\0",
        WAV + b"LIST\xff\xff\xff\xff",
        WAV + FORMAT[:-2] + b"\x08\0data\0\0\0\0",
        WAV + FORMAT[:10] + b"\0\0" + FORMAT[12:] + b"data\0\0\0\0",
    ],
)
def test_standard_input_that_is_not_audio_is_an_error_of_one_line(stdin, data):
    stdin(data)
    with pytest.raises(InputError, match=r"^standard input: .+$"):
        open_input("-", 0)


@given(data=st.binary(max_size=60))
def test_no_header_whatever_breaks_the_reader_of_standard_input(data):
    read_end, write_end = os.pipe()
    os.write(write_end, WAV + data + FORMAT + data + b"data\0\0\0\0" + data)
    os.close(write_end)
    with os.fdopen(read_end) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", file)
        try:
            heard(open_input("-", 0))
        except InputError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 - it may also be readable


@pytest.mark.parametrize("length", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_pipe_that_states_no_true_length_is_heard_to_its_end(stdin, length):
    stdin(WAV + FORMAT + b"data" + length.to_bytes(4, "little") + b"\0\x40" * 100)
    assert heard(open_input("-", 0)).tolist() == [0.5] * 100


def test_a_pipe_is_looked_at_when_it_may_have_enough_and_ever_less_often_when_it_is_late():
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", file)
        os.write(write_end, WAV + FORMAT + b"data\0\0\0\0" + bytes(2000))
        source = open_input("-", 0)
        assert source.wait_s(1) == 0
        source.read()
        assert 0.7 < source.wait_s(source.rate) <= 1
        assert source.wait_s(1 << 20) < 16384 / source.rate  # no longer than a pipe holds
        time.sleep(0.5)
        assert 0.03 < source.wait_s(source.rate // 10) < 0.1
        os.write(write_end, bytes(2))
        assert source.wait_s(source.rate) == 0
        os.close(write_end)


def test_what_follows_the_sound_of_a_piped_file_is_not_heard(stdin):
    stdin(WAV + FORMAT + b"data\xc8\0\0\0" + b"\0\x40" * 100 + b"LIST\x04\0\0\0junk")
    assert heard(open_input("-", 0)).tolist() == [0.5] * 100


def test_a_closed_standard_input_is_an_input_error(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="standard input"):
        open_input("-", 0)
