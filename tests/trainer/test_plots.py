import itertools

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from detector.errors import InputError
from detector.model import Description, Threshold
from trainer.hearing import told
from trainer.levels import Level
from trainer.plots import SUFFIXES, WRONG, clip, confusion, folds, save, spectrograms
from trainer.stream_evaluation import Example, Heard
from trainer.stream_metrics import Truth
from trainer.stream_plot import RIGHT, TRUE, streams

LABELS = ["air_conditioner", "car_horn", "a_label_named_at_great_length"]
COUNTS = np.array([[31, 4, 0], [2, 0, 7], [0, 0, 0]])


def words(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_confusion_picture_says_every_count_with_recall_and_precision_at_its_margins():
    said = words(confusion(COUNTS, LABELS, "fold 1"))
    assert said[:9] == [str(count) for count in COUNTS.flat]
    assert said[9:15:2] == ["89%", "0%", "-"]  # recall: a label without clips has none
    assert said[10:15:2] == ["94%", "0%", "0%"]
    assert said[15] == "70%"


def test_in_the_confusion_picture_no_label_is_cut_off_or_runs_into_another():
    figure = confusion(np.ones((10, 10), int), [f"{index}_a_label_of_some_length" for index in range(10)], "a $title_with$ signs")
    figure.draw_without_rendering()
    [axes] = figure.axes
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(lower.y1 < upper.y0 for upper, lower in itertools.pairwise(boxes))
    everything = [*axes.get_yticklabels(), *axes.get_xticklabels(), *axes.texts]
    page = figure.bbox
    for label in everything:
        box = label.get_window_extent()
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1


def test_a_clip_is_drawn_in_seconds_and_hertz_with_the_best_labels_named():
    rng = np.random.default_rng(1)
    features = rng.normal(-5, 2, (16, 50)).astype(np.float32)
    scores = rng.uniform(0, 0.1, (7, 3))
    scores[:, 1] += 0.8
    centres = np.geomspace(60, 3900, 16).tolist()
    figure = clip(features, scores, LABELS, 0.1, 0.016, centres, "dog.wav", ["car_horn", "air_conditioner"])
    assert words(figure) == ["car_horn", "air_conditioner", "1 other"]
    spectrum, curves = figure.axes[:2]
    assert curves.get_xlim() == pytest.approx((0, 0.8))
    assert [label.get_text() for label in spectrum.get_yticklabels()] == ["100", "200", "500", "1 k", "2 k"]
    drawn = np.array([patch.get_data().values for patch in curves.patches])
    assert any(np.array_equal(curve, scores[:, 1]) for curve in drawn)
    assert len(curves.patches) == 4  # three curves, the best one filled


def test_a_network_without_scores_over_time_has_its_spectrogram_alone():
    figure = clip(np.zeros((16, 50)), None, LABELS, 0.1, 0.016, np.geomspace(60, 3900, 16).tolist(), "silence.wav")
    assert len(figure.axes) == 1
    words(figure)


def test_every_fold_has_a_bar_with_its_value_and_the_mean_its_line():
    figure = folds(["1", "2"], [0.5, 0.75], 0.625, 0.125, "two folds")
    assert words(figure) == ["50.0%", "75.0%", "mean 62.5%\n± 12.5%"]
    assert [bar.get_height() for bar in figure.axes[0].patches[1:]] == [0.5, 0.75]


@pytest.mark.parametrize("count", [1, 4, 5])
def test_a_page_of_spectrograms_shows_each_at_its_own_length_on_one_scale(count):
    images = [np.random.default_rng(index).normal(size=(16, 20 + index)) for index in range(count)]
    figure = spectrograms(images, [f"clip $ {index}" for index in range(count)])
    words(figure)
    drawn = [axes.images[0] for axes in figure.axes if axes.images]
    assert [np.asarray(image.get_array()).shape[1] for image in drawn] == [20 + index for index in range(count)]
    assert len({image.get_clim() for image in drawn}) == 1


def a_stream():
    """What a model of two labels hears in 4 s: a horn that is told, a conditioner that is not and is told where there is none."""
    scores = np.full((40, 3), 0.05, np.float32)
    scores[10:20, 1] = scores[30:35, 0] = 0.9
    thresholds = {label: Threshold(0.5, 0.25, 0.1, 0.1) for label in LABELS}
    description = Description("street", "1", "", 8000, 800, 0, tuple(LABELS), thresholds, "mean", {})
    truth = [Truth("air_conditioner", 0.0, 1.5), Truth("car_horn", 1.0, 2.2)]
    return description, Example(3, truth, Heard(4.0, scores, told(scores, description)))


def test_a_soundscape_is_drawn_with_a_lane_a_label_that_sounds_or_is_told_and_says_what_was_found():
    description, example = a_stream()
    figure = streams((), example, description, "street")
    words(figure)
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == LABELS[:2]
    assert axes.get_xlim() == (0, 4)
    assert axes.get_title("left") == "Soundscape 3: 1 of 2 events found"
    drawn = [
        (*path.get_extents().intervalx, to_hex(bars.get_facecolor()[0])) for bars in axes.collections for path in bars.get_paths()
    ]
    bars = [(round(float(first), 2), round(float(end), 2), colour) for first, end, colour in drawn]
    assert bars == [(0, 1.5, TRUE), (3, 3.5, WRONG), (1, 2.2, TRUE), (1, 2, RIGHT)]


def test_the_operating_curve_marks_the_models_own_level_and_leaves_out_where_events_have_grown_together():
    rates = {-1.0: 6.0, -0.5: 80.0, 0.0: 10.0, 0.5: 0.0}
    levels = [Level(shift, round(2 * rate), rate, 0.0, 0.5 - shift / 4, 0.4 - shift / 4, 0.1) for shift, rate in rates.items()]
    description, example = a_stream()
    figure = streams(levels, example, description, "street")
    assert words(figure) == ["50%", "40%"]
    curve = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(curve.get_xdata(), [80, 10, 0.25])  # none at half an event in these 2 h
    np.testing.assert_allclose(curve.get_ydata(), [0.625, 0.5, 0.375])
    assert figure.axes[0].get_xticklabels()[0].get_text() == "0"
    assert len(figure.axes) == 2


@pytest.mark.parametrize(("suffix", "starts"), [(".png", b"\x89PNG"), (".SVG", b"<?xml"), (".pdf", b"%PDF")])
def test_a_picture_is_saved_as_its_suffix_says(tmp_path, suffix, starts):
    save(folds(["1"], [0.5], 0.5, 0.0, "one"), tmp_path / "new folder" / f"folds{suffix}")
    [file] = (tmp_path / "new folder").iterdir()
    assert file.read_bytes().startswith(starts)


def test_an_unknown_suffix_is_one_line_that_names_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"\.gif is not a kind of picture known here") as error:
        save(folds(["1"], [0.5], 0.5, 0.0, "one"), tmp_path / "folds.gif")
    assert all(suffix in str(error.value) for suffix in SUFFIXES)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    file = tmp_path / "folds.png"
    file.write_text("old")
    figure = folds(["1"], [0.5], 0.5, 0.0, "one")
    figure.savefig = lambda partial, **how: (partial.write_bytes(b"half"), (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(InputError, match="cannot be written"):
        save(figure, file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
