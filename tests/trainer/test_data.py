import shutil

import numpy as np
import pytest
import soundfile

from detector.errors import InputError
from trainer.data import PARTS, background_files, decode, load_dataset, read_audio


def test_the_official_layout_is_read_with_its_labels_in_order(tones):
    data = load_dataset(tones)
    assert data.labels == ("low", "middle", "high")
    assert data.folds == [1, 2, 3, 4]
    assert len(data.of_folds([2, 3])) == 36


def test_the_validation_fold_is_the_smallest_that_has_every_class_and_is_not_tested(tones, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(tones, root)
    table = root / "metadata" / "UrbanSound8K.csv"
    lines = table.read_text().splitlines()
    few = [line for line in lines if not line.startswith("3") or line.split(",")[3] != "0"]  # fold 3 loses a class
    less = [line for line in few if not line.startswith("417")]  # fold 4 one clip
    table.write_text("\n".join(less))
    assert load_dataset(root).validation_fold(1) == 4
    assert load_dataset(root).validation_fold(4) in (1, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("classID", "class_id"), "has no column classID"),
        (lambda text: text.replace(",1,0,low", ",one,0,low"), "fold 'one' and classID '0' must be whole numbers"),
        (lambda text: text.replace(",2,0,low", ",2,0,deep"), "classID 0 is low above and deep here"),
        (
            lambda text: text.replace("100-0-0-0.wav", "missing.wav"),
            r"missing\.wav: is listed in UrbanSound8K\.csv but is not there",
        ),
        (lambda text: text.splitlines()[0], "lists no clip"),
    ],
)
def test_a_wrong_csv_is_one_clear_line(tones, tmp_path, change, said):
    root = tmp_path / "copy"
    shutil.copytree(tones, root)
    table = root / "metadata" / "UrbanSound8K.csv"
    table.write_text(change(table.read_text()))
    with pytest.raises(InputError, match=said) as error:
        load_dataset(root)
    assert "\n" not in str(error.value)


def test_without_the_data_set_the_error_says_where_it_is_to_be_had(tmp_path):
    with pytest.raises(InputError, match=r"get UrbanSound8K from https://"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("rate", [11025, 22050, 48000])
def test_clips_of_any_rate_depth_and_channels_are_read_as_mono(tmp_path, subtype, rate):
    seconds = np.arange(rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)
    soundfile.write(tmp_path / "clip.wav", np.stack([tone, np.zeros(rate)], axis=1), rate, subtype=subtype)
    mono = read_audio(tmp_path / "clip.wav", 22050)
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(22050) / 22050)
    assert abs(len(mono) - 22050) <= 1
    assert np.abs(mono[2000:20000] - expected[2000:20000]).max() < 0.02


@pytest.mark.parametrize("name", ["clip.flac", "clip.ogg"])
def test_flac_and_ogg_are_read_too(tmp_path, name):
    soundfile.write(tmp_path / name, np.zeros(4000), 8000)
    assert len(read_audio(tmp_path / name, 8000)) == 4000


def test_decoded_audio_is_kept_and_a_changed_file_is_decoded_again(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(100, 0.5), 8000)
    assert decode([path], 8000)[0].tolist() == [16384] * 100
    soundfile.write(path, np.full(50, -0.5), 8000)
    assert decode([path], 8000)[0].tolist() == [-16384] * 50


def test_a_corrupt_clip_is_named_and_leaves_no_cache(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF but not really")
    with pytest.raises(InputError, match=r"bad\.wav: cannot be decoded"):
        decode([tmp_path / "bad.wav"], 8000)
    with pytest.raises(InputError, match=r"bad\.wav: cannot be decoded"):
        decode([tmp_path / "bad.wav"], 8000)


def write_damaged(folder):
    """Three files that cannot be used, each for a reason of its own."""
    (folder / "corrupt.wav").write_bytes(b"RIFF but not really")
    soundfile.write(folder / "empty.wav", np.zeros(0), 8000)
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan, 0.2]), 8000, subtype="FLOAT")
    return [folder / name for name in ("corrupt.wav", "empty.wav", "nan.wav")]


@pytest.mark.parametrize("channels", ["avg", "stereo"])
def test_clips_that_cannot_be_used_are_named_and_the_others_kept_also_from_the_cache(tmp_path, channels):
    for name, value in (("a.wav", 0.5), ("z.wav", -0.5)):
        soundfile.write(tmp_path / name, np.full(100, value), 8000)
    damaged = write_damaged(tmp_path)
    paths = [tmp_path / "a.wav", *damaged, tmp_path / "z.wav"]
    for _ in ("decoded", "from the cache"):
        said = []
        audio = decode(paths, 8000, channels=channels, bad=said.append)
        assert sorted(error.where for error in said) == sorted(map(str, damaged))
        assert {error.what for error in said} == {"cannot be decoded", "holds no sample", "holds values that are no numbers"}
        assert [len(audio[index]) for index in range(5)] == [100, 0, 0, 0, 100]
        assert (audio[0] == 16384).all()
        assert (audio[4] == -16384).all()
        assert audio[4].shape == ((100, 2) if channels == "stereo" else (100,))


@pytest.mark.parametrize("index", range(3))
def test_without_leave_to_skip_it_a_clip_that_cannot_be_used_stops_everything_also_from_the_cache(tmp_path, index):
    soundfile.write(tmp_path / "a.wav", np.full(100, 0.5), 8000)
    path = write_damaged(tmp_path)[index]
    with pytest.raises(InputError, match=path.name):
        decode([tmp_path / "a.wav", path], 8000)
    decode([tmp_path / "a.wav", path], 8000, bad=lambda _: None)
    with pytest.raises(InputError, match=path.name) as error:
        decode([tmp_path / "a.wav", path], 8000)
    assert "\n" not in str(error.value)


def test_a_data_set_in_which_nothing_can_be_used_decodes_to_nothing(tmp_path):
    audio = decode(write_damaged(tmp_path), 8000, bad=lambda _: None)
    assert [len(audio[index]) for index in range(len(audio))] == [0, 0, 0]


def test_a_clip_too_short_for_one_sample_of_the_rate_counts_as_empty(tmp_path):
    soundfile.write(tmp_path / "click.wav", np.ones(1), 192_000)
    with pytest.raises(InputError, match=r"click\.wav: holds no sample"):
        read_audio(tmp_path / "click.wav", 8000)


def test_a_file_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"none\.wav: cannot be read \(No such file or directory\)"):
        decode([tmp_path / "none.wav"], 8000, bad=lambda _: None)


def test_a_cache_of_which_a_part_is_gone_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    soundfile.write(tmp_path / "a.wav", np.full(100, 0.5), 8000)
    decode([tmp_path / "a.wav"], 8000)
    for ending in ("i16", "npy"):
        for path in (tmp_path / "cache").rglob(f"*.{ending}"):
            path.unlink()
        assert decode([tmp_path / "a.wav"], 8000)[0].tolist() == [16384] * 100


@pytest.mark.parametrize("rate", [8000, 4000])
def test_channels_are_averaged_or_one_is_taken_or_both(tmp_path, rate):
    left, right = np.full(8000, 0.5), np.full(8000, -0.25)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], axis=1), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "one.wav", left, 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "three.wav", np.stack([left, right, right], axis=1), 8000, subtype="FLOAT")
    inside = slice(500, rate - 500)

    def level(name, channels):
        audio = read_audio(tmp_path / name, rate, channels)
        assert len(audio) == rate
        return audio[inside].mean(axis=0)

    assert level("two.wav", "avg") == pytest.approx(0.125, abs=1e-3)
    assert level("two.wav", "mono") == pytest.approx(0.5, abs=1e-3)
    assert level("two.wav", "stereo") == pytest.approx([0.5, -0.25], abs=1e-3)
    assert level("one.wav", "avg") == level("one.wav", "mono") == pytest.approx(0.5, abs=1e-3)
    assert level("one.wav", "stereo") == pytest.approx([0.5, 0.5], abs=1e-3)
    assert level("three.wav", "avg") == pytest.approx(0, abs=1e-3)
    assert level("three.wav", "stereo") == pytest.approx([0.5, -0.25], abs=1e-3)


def test_each_way_with_channels_is_kept_apart_in_the_cache(tmp_path):
    soundfile.write(tmp_path / "two.wav", np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1), 8000)
    for _ in range(2):
        assert decode([tmp_path / "two.wav"], 8000, channels="mono")[0].tolist() == [16384] * 100
        assert decode([tmp_path / "two.wav"], 8000)[0].tolist() == [4096] * 100
        assert decode([tmp_path / "two.wav"], 8000, channels="stereo")[0].tolist() == [[16384, -8192]] * 100


@pytest.mark.parametrize("workers", [0, 1, 5])
def test_the_order_of_the_clips_does_not_depend_on_who_decodes_them(tmp_path, workers):
    paths = [tmp_path / f"{index}.wav" for index in range(300)]
    for index, path in enumerate(paths):
        soundfile.write(path, np.full(1 + index % 7, index / 32768), 8000)
    audio = decode(paths, 8000, workers=workers)
    assert all(audio[index].tolist() == [index] * (1 + index % 7) for index in range(300))


def test_backgrounds_fall_into_three_parts_that_never_share_a_recording_and_together_are_everything(tmp_path):
    for recording in range(100):
        for part in "AB":
            soundfile.write(tmp_path / f"{recording}-{part}.wav", np.zeros(10), 8000)
    parts = {part: background_files([tmp_path], part) for part in PARTS}
    assert sorted(parts.pop("ship")) == sorted([*parts["train"], *parts["test"]])
    assert background_files([tmp_path]) == parts["train"]
    assert sorted(path for files in parts.values() for path in files) == sorted(tmp_path.iterdir())
    recordings = [{path.stem[:-2] for path in files} for files in parts.values()]
    assert sum(map(len, recordings)) == len(set.union(*recordings)) == 100
    assert {part: round(len(files) / 200, 1) for part, files in parts.items()} == {"train": 0.5, "choose": 0.2, "test": 0.3}


@pytest.mark.parametrize(("name", "missing"), [("0-A", "train"), ("1-A", "choose"), ("5-A", "test")])
def test_backgrounds_too_few_for_a_part_are_one_clear_line_that_names_it(tmp_path, name, missing):
    soundfile.write(tmp_path / f"{name}.wav", np.zeros(10), 8000)
    said = rf"{tmp_path}: holds too few recordings \(1 files\) to leave some to {missing}; add some"
    with pytest.raises(InputError, match=said):
        background_files([tmp_path], missing)


def test_an_empty_background_folder_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="holds no audio file"):
        background_files([tmp_path])
