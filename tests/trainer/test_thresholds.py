import numpy as np
import pytest
import torch

from trainer.cfg import load_cfg
from trainer.crnn import CRNN
from trainer.thresholds import LOWEST, choose_thresholds, held, stream_scores


def test_a_label_holds_the_lowest_score_of_its_best_run():
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.7, 0.2], [0.2, 0.6]], np.float32)
    np.testing.assert_allclose(held(scores, 1), [0.8, 0.9])
    np.testing.assert_allclose(held(scores, 2), [0.7, 0.2])
    np.testing.assert_allclose(held(scores, 5), [0, 0])


@pytest.fixture
def model(cfg_file):
    torch.manual_seed(1)
    return CRNN(load_cfg(cfg_file)).eval()


def noise(seconds, seed):
    return (2000 * np.random.default_rng(seed).standard_normal(int(8000 * seconds))).astype(np.int16)


def test_thresholds_keep_the_stated_number_of_false_events_and_fit_the_short_clips_of_a_label(model):
    quiet = [noise(60, seed) for seed in range(60)]
    clips = [(noise(1, 100 + i), i % 3) for i in range(9)]
    chosen, said = choose_thresholds(model, ("a", "b", "c"), quiet, clips, [[4.0] * 9, [0.5] * 9, []])
    assert "in 1.00 h of held-out backgrounds" in said
    scores = [stream_scores(model, audio) for audio in quiet]
    for column, label in enumerate("abc"):
        on, hold_s = chosen[label]["on"], chosen[label]["min_on_s"]
        rows = max(1, int(np.ceil(hold_s * 8000 / model.cfg.hop - 1e-9)))
        false = sum(held(each, rows)[column] >= on for each in scores)
        assert false <= 2
        assert LOWEST <= on <= 0.98
        assert chosen[label]["off"] == pytest.approx(on / 2, abs=1e-3)
    assert chosen["b"]["min_on_s"] == chosen["c"]["min_on_s"] == 0.15
