import shutil

import numpy as np
import pytest
import soundfile

from detector.errors import InputError
from trainer.data import background_files, decode, load_dataset, read_mono


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
    mono = read_mono(tmp_path / "clip.wav", 22050)
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(22050) / 22050)
    assert abs(len(mono) - 22050) <= 1
    assert np.abs(mono[2000:20000] - expected[2000:20000]).max() < 0.02


@pytest.mark.parametrize("name", ["clip.flac", "clip.ogg"])
def test_flac_and_ogg_are_read_too(tmp_path, name):
    soundfile.write(tmp_path / name, np.zeros(4000), 8000)
    assert len(read_mono(tmp_path / name, 8000)) == 4000


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


def test_backgrounds_fall_into_two_halves_that_never_share_a_recording(tmp_path):
    for recording in range(30):
        for part in "AB":
            soundfile.write(tmp_path / f"{recording}-{part}.wav", np.zeros(10), 8000)
    train, held = background_files([tmp_path]), background_files([tmp_path], held_out=True)
    assert len(train) + len(held) == 60
    assert not {path.stem[:-2] for path in train} & {path.stem[:-2] for path in held}
    assert 16 <= len(train) <= 44


def test_an_empty_background_folder_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="holds no audio file"):
        background_files([tmp_path])
