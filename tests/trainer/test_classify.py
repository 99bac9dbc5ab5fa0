import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

from detector.cli import cli
from detector.errors import InputError, ModelError
from detector.model import Model
from trainer.cfg import parse_cfg
from trainer.classify import FLOOR, ROWS_AT_ONCE, Classifier, classify, load_classifier, log_mel, pool
from trainer.crnn import CRNN
from trainer.crnn import pool as pool_torch
from trainer.data import read_audio
from trainer.exporter import export
from trainer.frontend import FLOOR as TORCH_FLOOR
from trainer.frontend import LogMel
from trainer.layers import Frontend
from trainer.thresholds import DEFAULT

LABELS = ("low", "middle", "high")
CFG = """
[frontend]
sample_rate=8000
n_fft=256
hop_length=128
n_mels=16
[convs_module]
[conv2d]
out_channels=8
kernel_size=3
[batchnorm2d]
[relu]
[maxpool2d]
kernel_size=[2,4]
[moddims]
permute=[2,1,0]
collapse=[1,2]
[recur_module]
[lstm]
hidden_size=16
[dense_module]
[linear]
out_features=3
"""
WHOLE_CLIP = CFG.replace("n_mels=16", "n_mels=16\nnorm=whiten")
POOLINGS = ("mean", "logit_mean", "max", "last")


def network(text: str) -> CRNN:
    torch.manual_seed(1)
    model = CRNN(parse_cfg(text)).eval()
    for parameter in model.layers["linear_0"].parameters():
        parameter.data *= 8  # answers that differ
    return model


def write_checkpoint(model: CRNN, path: Path) -> Path:
    torch.save({"cfg": model.cfg.text, "labels": LABELS, "weights": model.state_dict(), "training": {}}, path)
    return path


def write_onnx(model: CRNN, path: Path) -> Path:
    thresholds = dict.fromkeys(LABELS, DEFAULT)
    export(model, path, name="tones", version="1", labels=LABELS, thresholds=thresholds, training={}, metrics={})
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same network as checkpoint and .onnx, and one that needs whole clips."""
    folder = tmp_path_factory.mktemp("models")
    streams = network(CFG)
    write_checkpoint(streams, folder / "model.pt")
    write_onnx(streams, folder / "model.onnx")
    write_checkpoint(network(WHOLE_CLIP), folder / "whole.pt")
    return folder


def call(*arguments: object) -> str:
    return CliRunner().invoke(cli, ["classify", *map(str, arguments)], catch_exceptions=False).output


def clips(tones: Path) -> list[Path]:
    return sorted((tones / "audio" / "fold1").glob("*.wav"))[:6]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_answer_is_that_of_the_evaluation_for_every_pooling(tones, tmp_path, pooling):
    model = network(f"{CFG}\n[output]\nclip_pooling={pooling}\n")
    onnx, checkpoint = write_onnx(model, tmp_path / "m.onnx"), write_checkpoint(model, tmp_path / "m.pt")
    by_onnx, by_torch = load_classifier(onnx), load_classifier(checkpoint)
    d = Model(onnx, "cpu").description
    assert d.clip_pooling == pooling
    for file in clips(tones):
        audio = read_audio(file, d.sample_rate)
        with torch.no_grad():
            logits = model.clip_logits(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
        expected = dict(zip(LABELS, logits.softmax(1)[0].tolist(), strict=True))
        for classifier in (by_onnx, by_torch):
            answer = classify(classifier, file)
            assert answer.shares == pytest.approx(expected, abs=2e-4)
            assert answer.label == max(expected, key=lambda label: expected[label])
            assert list(answer.shares.values()) == sorted(answer.shares.values(), reverse=True)


def test_the_answer_is_that_of_trainer_run_for_the_same_model_file(tones, models):
    from trainer.classify import clip_answer

    classifier, model = load_classifier(models / "model.onnx"), Model(models / "model.onnx", "cpu")
    for file in clips(tones):
        logits, _ = clip_answer(model, read_audio(file, 8000))
        assert classify(classifier, file).label == LABELS[logits.argmax()]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_without_torch_gives_the_numbers_of_torch(pooling):
    scores = np.random.default_rng(1).uniform(0, 1, (40, 10)).astype(np.float32)
    scores[3, 4], scores[5, 6] = 0, 1
    logits = torch.logit(torch.from_numpy(scores), eps=1e-7)[None]
    assert pool(scores, pooling) == pytest.approx(pool_torch(logits, torch.tensor([40]), pooling)[0].numpy(), abs=1e-4)


@pytest.mark.parametrize(
    "frontend",
    [
        Frontend(norm="none"),
        Frontend(sample_rate=8000, n_fft=256, hop_length=128, n_mels=16, norm="none"),
        Frontend(sample_rate=44100, n_fft=2048, hop_length=512, n_mels=128, f_min=50, f_max=16000, norm="none"),
    ],
)
def test_the_log_mel_without_torch_is_that_of_the_network(frontend):
    assert FLOOR == TORCH_FLOOR
    length = 1200 * frontend.hop_length + frontend.n_fft
    time = np.arange(length) / frontend.sample_rate
    audio = (0.3 * np.sin(2 * np.pi * 700 * time) + 0.01 * np.random.default_rng(1).standard_normal(length)).astype(np.float32)
    audio[: length // 3] = 0
    expected = LogMel(frontend)(torch.from_numpy(audio)[None])[0].numpy()
    assert np.abs(log_mel(audio, frontend) - expected).max() < 1e-3


def test_a_long_recording_is_heard_in_pieces_with_the_scores_of_one_window(models):
    classifier, model = load_classifier(models / "model.onnx"), Model(models / "model.onnx", "cpu")
    d = model.description
    audio = 0.1 * np.random.default_rng(1).standard_normal(d.hop * (2 * ROWS_AT_ONCE + 3) - 5).astype(np.float32)
    _, scores = classifier.hear(audio)
    expected, _ = model.step(np.pad(audio, (d.context, 5))[None], model.fresh_state(1))
    assert scores.shape == expected[0].shape
    assert np.abs(scores - expected[0]).max() < 1e-4


def test_one_file_is_one_line_with_the_best_label_first(tones, models):
    [file, *_] = clips(tones)
    answer = classify(load_classifier(models / "model.onnx"), file)
    [line] = call(file, "--model", models / "model.onnx", "--top", 2).splitlines()
    best = [f"{label} {share:.1%}" for label, share in list(answer.shares.items())[:2]]
    assert line == f"{file}  {'  '.join(best)}"


def test_several_files_are_a_line_each_and_json_says_the_same(tones, models):
    files = clips(tones)
    told = call(*files, "--model", models / "model.pt").splitlines()
    facts = [json.loads(line) for line in call(*files, "--model", models / "model.pt", "--json", "--top", 1).splitlines()]
    assert [fact["file"] for fact in facts] == [str(file) for file in files]
    assert [line.split()[1] for line in told] == [fact["label"] for fact in facts]
    assert all(fact["shares"] == {fact["label"]: fact["share"]} for fact in facts)


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_still_answered(tones, models, tmp_path):
    bad, empty = tmp_path / "bad.wav", tmp_path / "empty.wav"
    bad.write_bytes(b"RIFF but not really")
    soundfile.write(empty, np.zeros(0), 8000)
    good = clips(tones)[0]
    result = CliRunner().invoke(cli, ["classify", *map(str, [bad, empty, good, "--model", models / "model.onnx"])])
    assert isinstance(result.exception, InputError)
    assert "2 of 3 files could not be read" in str(result.exception)
    wrong, hollow, right = result.output.splitlines()
    assert "bad.wav: cannot be decoded" in wrong
    assert "empty.wav: holds no sample" in hollow
    assert right.startswith(str(good))
    with pytest.raises(InputError, match=r"gone\.wav: no such file"):
        call(tmp_path / "gone.wav", "--model", models / "model.onnx")


@pytest.mark.parametrize("name", ["bad.onnx", "bad.pt"])
def test_a_broken_model_is_one_clear_line(tones, tmp_path, name):
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(ModelError, match=name) as error:
        call(clips(tones)[0], "--model", tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt", "whole.pt"])
def test_the_picture_of_a_clip_is_written_whole(tones, models, tmp_path, name):
    out = tmp_path / "clip.png"
    call(clips(tones)[0], "--model", models / name, "--plot", out)
    assert soundfile.info(clips(tones)[0]).duration > 0.4
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert list(tmp_path.iterdir()) == [out]


def test_a_network_of_whole_clips_answers_without_scores_over_time(tones, models):
    classifier: Classifier = load_classifier(models / "whole.pt")
    answer = classify(classifier, clips(tones)[0])
    assert answer.scores is None
    assert sum(answer.shares.values()) == pytest.approx(1)


def test_pictures_of_several_clips_go_into_a_folder_under_their_names(tones, models, tmp_path):
    files = clips(tones)[:2]
    call(*files, "--model", models / "model.onnx", "--plot", tmp_path / "pictures")
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [f"{file.stem}.png" for file in files]
    with pytest.raises(InputError, match="give a folder"):
        call(*files, "--model", models / "model.onnx", "--plot", tmp_path / "one.png")
    with pytest.raises(InputError, match="files of different names"):
        call(files[0], files[0], "--model", models / "model.onnx", "--plot", tmp_path / "same")


def test_a_clip_shorter_than_a_frame_is_answered_and_drawn(models, tmp_path):
    soundfile.write(tmp_path / "click.wav", np.full(50, 0.5), 8000)
    for name in ("model.onnx", "whole.pt"):
        assert "click.wav" in call(tmp_path / "click.wav", "--model", models / name, "--plot", tmp_path / f"{name}.svg")


def test_a_model_file_needs_no_torch_even_for_the_picture(tones, models, tmp_path):
    blocked = "import sys; sys.modules['torch'] = sys.modules['torchaudio'] = None; from detector.cli import main; main()"
    file, out = clips(tones)[0], tmp_path / "clip.png"
    command = [sys.executable, "-c", blocked, "classify", str(file), "--model", str(models / "model.onnx"), "--plot", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert out.exists()
    without = [sys.executable, "-c", blocked, "classify", str(file), "--model", str(models / "model.pt")]
    done = subprocess.run(without, capture_output=True, text=True, timeout=60)
    assert done.returncode == 78
    assert "needs torch" in done.stderr


def test_the_shipped_model_knows_the_dog_of_the_demo(shipped_model):
    street = shipped_model.parent.parent / "detector" / "demo" / "street.ogg"
    assert call(street).split()[1:2] == ["dog_bark"]
