import numpy as np

from trainer.thresholds import held


def test_a_label_holds_the_lowest_score_of_its_best_run():
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.7, 0.2], [0.2, 0.6]], np.float32)
    np.testing.assert_allclose(held(scores, 1), [0.8, 0.9])
    np.testing.assert_allclose(held(scores, 2), [0.7, 0.2])
    np.testing.assert_allclose(held(scores, 5), [0, 0])
