import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.calibration import LEAST, calibrate, fold, last_linear, row_logits, row_targets
from trainer.cfg import load_cfg, parse_cfg
from trainer.crnn import CRNN
from trainer.streams import BLOCK, Soundscape


def rows_of(scale, offset, seed=1, shape=(10_000, 3)):
    """Logits whose calibrated ones are scale * logit + offset, and what sounded."""
    random = np.random.default_rng(seed)
    true = random.normal(-1, 2, shape)
    return ((true - offset) / scale).astype(np.float32), random.random(shape) < 1 / (1 + np.exp(-true))


@settings(max_examples=8, deadline=None)
@given(st.floats(0.2, 2), st.floats(-2, 2))
def test_a_known_scale_and_offset_are_found(scale, offset):
    logits, targets = rows_of(scale, offset)
    found = calibrate([logits[:5000], logits[5000:]], [targets[:5000], targets[5000:]])
    assert found.scale == pytest.approx(scale, rel=0.1)
    assert found.offset == pytest.approx(offset, abs=0.15)
    assert found.ece_after < 0.01
    assert found.ece_after <= found.ece_before + 0.003


@pytest.mark.parametrize("sounds", [False, True])
def test_rows_that_are_told_apart_without_a_fault_give_finite_numbers(sounds):
    logits = np.array([[-3.0, 2.0]], np.float32)
    found = calibrate([logits], [(logits > 0) | sounds])
    assert np.isfinite([found.scale, found.offset]).all()
    assert found.scale >= LEAST


def test_a_network_worse_than_chance_is_not_turned_round():
    logits, targets = rows_of(1.0, 0.0)
    assert calibrate([logits], [~targets]).scale == LEAST


def test_folded_into_the_weights_it_changes_every_score_as_said_and_no_answer(cfg_file):
    torch.manual_seed(1)
    model = CRNN(load_cfg(cfg_file)).eval()
    audio = np.random.default_rng(1).normal(0, 0.1, 8000).astype(np.float32)
    before = row_logits(model, audio)
    found = calibrate(*[[each] for each in rows_of(0.5, -1.0)])
    layer = last_linear(model)
    assert layer is not None
    fold(found, layer)
    after = row_logits(model, audio)
    np.testing.assert_allclose(after, found.scale * before + found.offset, atol=1e-5)
    assert (after.argmax(1) == before.argmax(1)).all()
    assert "ECE" in found.said


def test_a_network_that_does_not_end_in_a_linear_layer_with_a_bias_or_does_not_stream_is_left_alone(cfg_file):
    text = cfg_file.read_text()
    for changed in (text + "bias=False\n", text + "[sigmoid]\n", text.replace("n_mels=16", "n_mels=16\nnorm=whiten")):
        assert last_linear(CRNN(parse_cfg(changed, "x.cfg"))) is None


def test_rows_of_logits_are_those_of_the_stream_and_their_targets_what_sounds_in_their_middle(cfg_file):
    model = CRNN(load_cfg(cfg_file)).eval()
    audio = np.random.default_rng(1).normal(0, 0.1, 5000).astype(np.float32)
    rows = row_logits(model, audio)
    window = np.pad(audio, (model.cfg.context, len(rows) * model.cfg.hop - len(audio)))
    scores, _ = model.step(torch.from_numpy(window[None]), model.fresh_state(1))
    np.testing.assert_allclose(1 / (1 + np.exp(-rows)), scores[0].detach(), atol=1e-6)
    active = np.zeros((5, 2), bool)
    active[2:, 1] = True
    soundscape = Soundscape(np.zeros(5 * BLOCK, np.float32), (), active, np.zeros_like(active))
    assert row_targets(soundscape, 12, BLOCK // 2)[:, 1].tolist() == [False] * 4 + [True] * 8
