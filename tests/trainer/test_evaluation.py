import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import classification as reference

from trainer.evaluation import METRICS, Figures, accuracy_interval, as_json, average_precision, figures_of, text
from trainer.stream_metrics import calibration_error

LABELS = ("drilling", "jackhammer", "siren", "dog_bark", "gun_shot", "children_playing")
# torchmetrics warns of a label without clips and gives it AP 0; here it has no figures and counts in no mean.
pytestmark = pytest.mark.filterwarnings("ignore:No positive samples")


@st.composite
def answers(draw):
    """Logits and targets: 1 to 60 clips of 2 to 6 labels, some labels perhaps without clips, some clips perhaps alike."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    clips, labels = draw(st.integers(1, 60)), draw(st.integers(2, 6))
    targets = random.integers(0, draw(st.integers(1, labels)), clips)
    logits = random.normal(0, draw(st.sampled_from([0.1, 1.0, 4.0])), (clips, labels))
    logits[np.arange(clips), targets] += draw(st.sampled_from([0.0, 1.0, 3.0]))
    logits = 7 * np.tanh(logits / 7)  # no share rounds to 1 in torchmetrics' float32: it would get a bin of its own
    if draw(st.booleans()):
        logits = logits[random.integers(0, max(1, clips // 3), clips)]
    return logits.astype(np.float32), targets, LABELS[:labels]


@settings(deadline=None, max_examples=150)
@given(answers())
def test_precision_recall_f1_and_average_precision_are_those_of_torchmetrics(case):
    logits, targets, labels = case
    figures = figures_of(logits, targets, labels)
    share, truth = torch.from_numpy(logits).double().softmax(1), torch.from_numpy(targets)
    present = np.unique(targets)
    assert list(figures.per_label) == [labels[index] for index in present]
    for name in ("precision", "recall", "average_precision", "f1"):
        function = getattr(reference, "multiclass_f1_score" if name == "f1" else f"multiclass_{name}")
        expected = function(share, truth, len(labels), average=None).numpy()[present]
        np.testing.assert_allclose([getattr(one, name) for one in figures.per_label.values()], expected, atol=1e-6, err_msg=name)
        assert getattr(figures, name) == pytest.approx(expected.mean(), abs=1e-6)
        if len(present) == len(labels):
            macro = function(share, truth, len(labels), average="macro").item()
            assert getattr(figures, name) == pytest.approx(macro, abs=1e-6)


@settings(deadline=None, max_examples=150)
@given(answers())
def test_loss_accuracy_confusion_and_calibration_error_are_those_of_torch_and_torchmetrics(case):
    logits, targets, labels = case
    figures = figures_of(logits, targets, labels)
    raw, truth = torch.from_numpy(logits).double(), torch.from_numpy(targets)
    assert figures.loss == pytest.approx(torch.nn.functional.cross_entropy(raw, truth).item(), rel=1e-6)
    assert figures.accuracy == pytest.approx(reference.multiclass_accuracy(raw, truth, len(labels), average="micro").item())
    np.testing.assert_array_equal(figures.confusion, reference.multiclass_confusion_matrix(raw, truth, len(labels)))
    expected = reference.multiclass_calibration_error(raw.softmax(1), truth, len(labels), n_bins=15)
    assert figures.ece == pytest.approx(expected.item(), abs=1e-5)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40).filter(lambda rows: any(hit for _, hit in rows))
)
def test_average_precision_of_tied_scores_is_that_of_torchmetrics_and_not_moved_by_the_order_of_the_clips(rows):
    scores, positive = np.array([score / 4 for score, _ in rows]), np.array([hit for _, hit in rows])
    expected = reference.binary_average_precision(torch.from_numpy(scores), torch.from_numpy(positive).long()).item()
    assert average_precision(scores, positive) == pytest.approx(expected, abs=1e-6)
    assert average_precision(scores[::-1], positive[::-1]) == pytest.approx(expected, abs=1e-6)


def test_average_precision_by_hand():
    scores, positive = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert average_precision(scores, positive) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision(np.full(4, 0.5), positive) == 0.5  # knowing nothing is worth the share of positives


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_and_certainty_to_the_last():
    # Guo et al.: bins are (a, b]. torchmetrics takes [a, b) and puts exactly 1 in a bin of its own.
    edge = np.linspace(0, 1, 16)[9]
    assert calibration_error(np.array([edge - 0.01, edge]), np.array([True, False])) == pytest.approx(edge - 0.005 - 0.5)
    assert calibration_error(np.array([0.96, 1.0]), np.array([True, False])) == pytest.approx(0.98 - 0.5)


def test_a_label_never_answered_has_precision_0_and_a_label_without_clips_counts_in_no_mean():
    truth, answered = np.array([0, 0, 1, 1]), np.array([0, 2, 0, 0])
    figures = figures_of(np.eye(3, dtype=np.float32)[answered], truth, LABELS[:3])
    assert set(figures.per_label) == {"drilling", "jackhammer"}
    assert figures.per_label["jackhammer"].precision == 0
    assert figures.precision == pytest.approx((1 / 3 + 0) / 2)
    assert figures.recall == pytest.approx((1 / 2 + 0) / 2)
    assert figures.f1 == pytest.approx((2 / 5 + 0) / 2)
    assert figures.confusion.tolist() == [[1, 0, 1], [2, 0, 0], [0, 0, 0]]


def test_certain_answers_of_any_size_give_finite_figures():
    figures = figures_of(np.array([[1e4, -1e4], [1e4, -1e4]], np.float32), np.array([0, 1]), LABELS[:2])
    assert (figures.loss, figures.ece, figures.accuracy) == (1e4, 0.5, 0.5)


def test_clips_of_one_recording_widen_the_interval_because_recordings_are_drawn_whole():
    random = np.random.default_rng(3)
    right = np.repeat(random.random(40) < 0.8, 20)  # 40 recordings, each all right or all wrong
    recordings = np.repeat([f"{index}" for index in range(40)], 20)
    by_clip, by_recording = accuracy_interval(right), accuracy_interval(right, recordings)
    assert by_clip[0] <= right.mean() <= by_clip[1]
    assert np.ptp(by_recording) == pytest.approx(np.ptp(by_clip) * 20**0.5, rel=0.15)
    shuffled = random.permutation(len(right))
    assert accuracy_interval(right[shuffled], recordings[shuffled]) == by_recording


def test_the_interval_is_that_of_drawing_recordings_one_by_one():
    random = np.random.default_rng(4)
    group = random.integers(0, 30, 300)
    right = random.random(300) < random.random(30)[group]
    kept = [np.flatnonzero(group == index) for index in range(30)]
    drawn = [right[np.concatenate([kept[i] for i in random.integers(0, 30, 30)])].mean() for _ in range(4000)]
    assert accuracy_interval(right, [str(one) for one in group]) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.012)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    random = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        chance = np.repeat(random.beta(3, 1, 60), 5)  # 60 recordings of 5 clips; the truth is 3/4
        low, high = accuracy_interval(random.random(300) < chance, np.repeat([f"{index}" for index in range(60)], 5))
        covered += low <= 0.75 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_one_recording_has_no_interval_and_an_epoch_need_not_pay_for_one():
    logits, targets = np.eye(2, dtype=np.float32), np.array([0, 0])
    assert figures_of(logits, targets, LABELS[:2], ["7", "7"]).interval is None
    assert figures_of(logits[:1], targets[:1], LABELS[:2]).interval is None
    assert figures_of(logits, targets, LABELS[:2], interval=False).interval is None
    assert figures_of(logits, targets, LABELS[:2], ["7", "8"]).interval == (0, 1)


def test_the_whole_data_set_takes_well_under_a_second():
    random = np.random.default_rng(6)
    logits, targets = random.normal(size=(8732, 10)).astype(np.float32), random.integers(0, 10, 8732)
    started = time.process_time()
    figures_of(logits, targets, [f"label {index}" for index in range(10)], [str(one) for one in random.integers(0, 1297, 8732)])
    assert time.process_time() - started < 1


@pytest.fixture
def figures():
    confusion = {(0, 0): 6, (1, 0): 4, (1, 1): 2, (0, 1): 1, (0, 3): 2, (3, 3): 5, (3, 1): 1}
    truth, answered = np.array([pair for pair, count in confusion.items() for _ in range(count)]).T
    logits = 3 * np.eye(4, dtype=np.float32)[answered]
    return figures_of(logits, truth, LABELS[:4], [str(index // 2) for index in range(len(truth))])


def test_the_figures_of_a_model_file_survive_json_and_keep_the_keys_its_readers_know(figures):
    told = as_json(figures)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["accuracy"] == 0.619
    assert told["clips"] == 21
    assert told["recall"] == {"drilling": 0.667, "jackhammer": 0.333, "dog_bark": 0.833}
    assert told["macro_recall"] == 0.6111
    assert told["per_label"]["jackhammer"] == {
        "clips": 6,
        "precision": 0.5,
        "recall": 0.3333,
        "f1": 0.4,
        "average_precision": pytest.approx(0.4, abs=0.2),
    }
    assert told["confusion"][1] == [4, 2, 0, 0]
    assert as_json(figures_of(np.eye(2, dtype=np.float32)[:1], np.array([0]), LABELS[:2]))["interval"] is None


def test_every_metric_that_training_may_choose_by_is_a_number_of_the_figures(figures):
    assert set(METRICS) <= set(Figures.__annotations__)
    assert all(isinstance(getattr(figures, name), float) for name in METRICS)
    better = figures_of(3 * np.eye(4, dtype=np.float32), np.arange(4), LABELS[:4])
    assert all((getattr(better, name) > getattr(figures, name)) == more for name, more in METRICS.items())


def test_the_text_has_a_row_per_label_the_means_and_the_three_confusions_met_most(figures):
    lines = text(figures).splitlines()
    assert lines[0].split() == ["clips", "precision", "recall", "F1", "AP"]
    assert lines[1].split()[:5] == ["drilling", "9", "60.0%", "66.7%", "63.2%"]
    assert lines[3].split() == ["siren", "0", "-", "-", "-", "-"]
    assert lines[5].split()[:2] == ["macro", "21"]
    assert len({len(line) for line in lines[:6]}) == 1
    low, high = figures.interval
    assert lines[6].startswith(f"accuracy 61.9% (95% interval {low:.1%} to {high:.1%}), cross-entropy ")
    assert lines[7:] == [
        "jackhammer taken for drilling 4 times",
        "drilling taken for dog_bark 2 times",
        "drilling taken for jackhammer 1 time",
    ]


def test_answers_that_are_all_right_name_no_confusion():
    lines = text(figures_of(np.eye(2, dtype=np.float32), np.arange(2), LABELS[:2], interval=False)).splitlines()
    assert lines[-1].startswith("accuracy 100.0%, cross-entropy 0.313 nats, ECE ")
