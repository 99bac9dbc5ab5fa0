import re

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from detector.cli import cli
from detector.errors import ConfigError, InputError

RATE = 22050
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tone of 1 kHz, 2 s long."""
    path = tmp_path_factory.mktemp("clip") / "tone.wav"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE), RATE)
    return path


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe of these augmentations."""

    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


def preview(*arguments):
    return CliRunner().invoke(cli, ["augment-preview", *map(str, arguments)], catch_exceptions=False)


def heard(path):
    """Where a WAV sounds, in seconds, and its strongest frequency there."""
    audio, rate = soundfile.read(path)
    assert rate == RATE
    level = np.sqrt(np.convolve(audio**2, np.ones(512) / 512, "same"))
    loud = np.flatnonzero(level > 0.1 * level.max())
    part = audio[loud[0] : loud[-1]]
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
    return (loud[-1] - loud[0]) / rate, spectrum.argmax() * rate / len(part)


def test_without_augmentation_the_wav_sounds_like_the_clip(clip, recipe, tmp_path):
    result = preview(clip, tmp_path / "out.wav", "--recipe", recipe(""))
    assert result.output == f"keeps {2 * RATE} samples from 0\n"
    duration_s, hz = heard(tmp_path / "out.wav")
    assert duration_s == pytest.approx(2, abs=0.1)
    assert hz == pytest.approx(1000, abs=15)


@pytest.mark.parametrize(("rate", "expected_s"), [(2.0, 1.0), (0.8, 2.0)])
def test_a_stretched_tone_keeps_its_pitch_and_sounds_as_long_as_its_rate_says(clip, recipe, tmp_path, rate, expected_s):
    """Two seconds at rate 2 are one; slower than 1, the end falls off the canvas."""
    result = preview(
        clip, tmp_path / "out.wav", "--recipe", recipe(f"[augment.stretch]\np = 0.01\nrate = [{rate}, {rate}]"), "--only", "stretch"
    )
    assert f"rate {rate:.2f}" in result.output
    duration_s, hz = heard(tmp_path / "out.wav")
    assert duration_s == pytest.approx(expected_s, abs=0.1)
    assert hz == pytest.approx(1000, abs=15)


def test_a_shifted_tone_keeps_its_length_and_changes_its_pitch(clip, recipe, tmp_path):
    result = preview(clip, tmp_path / "out.wav", "--recipe", recipe("[augment.pitch]\np = 1\nsemitones = [7, 7]"))
    assert "pitch +7.0 semitones" in result.output
    duration_s, hz = heard(tmp_path / "out.wav")
    assert duration_s == pytest.approx(2, abs=0.1)
    assert hz == pytest.approx(1000 * 2 ** (7 / 12), abs=25)


def test_a_band_is_heard_and_said(clip, recipe, tmp_path):
    """A tone of 1 kHz, an octave above the band."""
    text = "[augment.band]\np = 1\nlow_hz = [20, 20]\nhigh_hz = [500, 500]"
    result = preview(clip, tmp_path / "out.wav", "--recipe", recipe(text))
    preview(clip, tmp_path / "plain.wav", "--recipe", recipe(""))
    assert "band 20 to 500 Hz" in result.output
    level, plain = (np.std(soundfile.read(tmp_path / name)[0][RATE // 2 : RATE]) for name in ("out.wav", "plain.wav"))
    assert 20 * np.log10(level / plain) == pytest.approx(-24, abs=2)


def test_lost_blocks_are_heard_and_said(clip, recipe, tmp_path):
    result = preview(clip, tmp_path / "out.wav", "--recipe", recipe("[augment.lost]\np = 1\nshare = 1"), "--seed", 5)
    share = int(re.search(r"loses (\d+)% of its blocks", result.output)[1]) / 100
    audio, _ = soundfile.read(tmp_path / "out.wav")
    silent = np.abs(audio[: 2 * RATE].reshape(-1, 100)).max(1) < 0.1
    assert silent.mean() == pytest.approx(share, abs=0.2)
    assert 0 < silent.mean() < 1


def test_a_style_is_the_dogs_and_is_seen(clip, recipe, tmp_path):
    from trainer.draw import Augmentation, Style
    from trainer.preview import page

    said = preview(clip, tmp_path / "out.wav", "--recipe", recipe("[augment.style]\np = 1\nown = [0.25, 0.25]")).output
    assert "75% of a dog's style" in said
    plain, styled = (axes for axes in page(clip, Augmentation(style=Style(1, (0, 0))), ("style",), (), 1).axes if axes.images)
    assert (plain.get_title(loc="left"), styled.get_title(loc="left")) == ("as it is", "style (of a dog)")
    assert styled.images[0].get_array().mean(1).std() < plain.images[0].get_array().mean(1).std()


def test_the_same_seed_gives_the_same_file_and_another_one_another(clip, tmp_path):
    said = [preview(clip, tmp_path / f"{number}.wav", "--seed", seed).output for number, seed in enumerate((3, 3, 4))]
    first, again, other = ((tmp_path / f"{number}.wav").read_bytes() for number in range(3))
    assert first == again != other
    assert said[0] == said[1] != said[2]


def test_only_names_what_is_done_and_nothing_else_is(clip, tmp_path):
    result = preview(clip, tmp_path / "out.wav", "--only", "crop", "--only", "noise")
    assert " noise " in result.output
    others = ("gain", "rate", "pitch", "room", "mixed", "masks", "response", "band", "loses", "style")
    assert not any(word in result.output for word in others)


def test_a_background_is_said_only_where_there_is_one(clip, noises, tmp_path):
    with_one = preview(clip, tmp_path / "out.wav", "--only", "background", "--background", noises)
    without = preview(clip, tmp_path / "out.wav", "--seed", 4)
    assert "background " in with_one.output
    assert "background " not in without.output
    with pytest.raises(InputError, match="has no background to mix in; give a folder with --background"):
        preview(clip, tmp_path / "out.wav", "--only", "background")


def test_a_page_shows_the_clip_what_each_augmentation_does_and_some_draws(clip, recipe, tmp_path):
    from trainer.preview import DRAWS, page
    from trainer.recipe import load_recipe

    path = recipe("[augment]\nstretch = { p = 0.1 }\nmask = { p = 0.1 }\ncrop = { p = 0 }")
    result = preview(clip, tmp_path / "out.png", "--recipe", path)
    assert result.exit_code == 0
    assert (tmp_path / "out.png").read_bytes().startswith(PNG)
    augment = load_recipe(path).augment
    names = [axes.get_title(loc="left") for axes in page(clip, augment, (), (), 1).axes if axes.get_title(loc="left")]
    assert names == ["as it is", "stretch", "mask", *(f"all, draw {number}" for number in range(1, DRAWS + 1))]
    assert [axes.get_title(loc="left") for axes in page(clip, augment, ("eq",), (), 1).axes if axes.get_title(loc="left")] == [
        "as it is",
        "eq",
    ]


@pytest.mark.parametrize("out", ["out.wav", "out.png"])
def test_an_augmentation_that_does_not_exist_is_one_clear_line_and_leaves_no_file(clip, tmp_path, out):
    with pytest.raises(ConfigError, match="--only strech: is no augmentation; did you mean stretch") as error:
        preview(clip, tmp_path / out, "--only", "strech")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"missing\.wav: cannot be read \(No such file or directory\)"):
        preview(tmp_path / "missing.wav", tmp_path / "out.wav")
    (tmp_path / "bad.wav").write_bytes(b"RIFF but not really")
    with pytest.raises(InputError, match=r"bad\.wav: cannot be decoded"):
        preview(tmp_path / "bad.wav", tmp_path / "out.png")
    soundfile.write(tmp_path / "one.wav", np.ones(1), 192_000)
    with pytest.raises(InputError, match=r"one\.wav: holds no sample"):
        preview(tmp_path / "one.wav", tmp_path / "out.wav")


def test_a_kind_of_picture_that_is_not_known_is_one_clear_line(clip, tmp_path):
    with pytest.raises(InputError, match=r"out\.xyz: \.xyz is not a kind of picture known here; use .*\.pdf, \.wav"):
        preview(clip, tmp_path / "out.xyz", "--only", "mask")
