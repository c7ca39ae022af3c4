import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)

from keras_resnet.classification import Metrics
from keras_resnet.classification.report import _largest_of_blocks, draw_confusion


def predictions(images=200, classes=12, seed=0):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (images, classes))
    labels = random.integers(0, classes - 1, images)  # none of the last class
    logits[np.arange(images), labels] += 1.5
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels


def added(probabilities, labels, batches=1):
    metrics = Metrics(probabilities.shape[1])
    for part in np.array_split(np.arange(len(labels)), batches):
        with np.errstate(divide="ignore"):  # certainty leaves zero for the others
            metrics.update(np.log(probabilities[part]), labels[part])
    return metrics


def test_figures_are_scikit_learns():
    probabilities, labels = predictions()
    metrics = added(probabilities, labels)
    classes = np.arange(12)
    figures = metrics.figures()
    assert figures["top1"] == accuracy_score(labels, probabilities.argmax(1))
    assert figures["top5"] == top_k_accuracy_score(labels, probabilities, k=5, labels=classes)
    assert figures["loss"] == pytest.approx(log_loss(labels, probabilities, labels=classes))
    expected = confusion_matrix(labels, probabilities.argmax(1), labels=classes)
    np.testing.assert_array_equal(metrics.confusion, expected)


def test_classes_are_scikit_learns():
    probabilities, labels = predictions()
    predicted = probabilities.argmax(1)
    arguments = {"labels": np.arange(12), "average": None, "zero_division": np.nan}
    recall = recall_score(labels, predicted, **arguments)
    precision = precision_score(labels, predicted, **arguments)
    rows = added(probabilities, labels).per_class()
    for index, row in enumerate(rows[:-1]):
        assert row.images == (labels == index).sum()
        assert row.predicted == (predicted == index).sum()
        assert row.top1 == pytest.approx(recall[index])
        assert row.precision == pytest.approx(precision[index])
    assert rows[-1].images == 0
    assert rows[-1].top1 is None
    assert rows[-1].confused_with is None


def expected_calibration_error(probabilities, labels, bins=15):
    """As its definition reads: Guo et al., On Calibration of Modern Neural Networks, equation 3."""
    error = 0.0
    confidences, right = probabilities.max(1), probabilities.argmax(1) == labels
    for m in range(1, bins + 1):
        inside = [i for i, c in enumerate(confidences) if (m - 1) / bins < c <= m / bins]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            error += len(inside) / len(labels) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("classes", [2, 12])
def test_the_calibration_error_is_that_of_its_definition(classes):
    probabilities, labels = predictions(classes=classes)
    metrics = added(probabilities, labels)
    expected = expected_calibration_error(probabilities, labels)
    assert 0.01 < expected < 0.9
    assert metrics.figures()["calibration_error"] == pytest.approx(expected)
    assert sum(row["images"] for row in metrics.reliability()) == 200


def test_certainty_and_even_chances_have_their_bins():
    metrics = added(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0, 1]))
    assert metrics.reliability() == [
        {"images": 1, "confidence": 0.5, "accuracy": 0.0},
        {"images": 1, "confidence": 1.0, "accuracy": 1.0},
    ]


def test_batches_do_not_matter():
    probabilities, labels = predictions()
    whole, parts = added(probabilities, labels), added(probabilities, labels, batches=7)
    assert parts.images == 200
    assert parts.figures() == pytest.approx(whole.figures(), rel=1e-12)
    np.testing.assert_array_equal(parts.confusion, whole.confusion)


@pytest.mark.parametrize(("label", "top1", "top5"), [(0, 1, 1), (4, 0, 1), (5, 0, 0)])
def test_among_equals_the_lower_index_comes_first(label, top1, top5):
    figures = added(np.full((1, 8), 1 / 8), np.array([label])).figures()
    assert (figures["top1"], figures["top5"]) == (top1, top5)


def test_among_fewer_than_five_classes_each_is_in_the_top_five():
    probabilities, labels = predictions(classes=3)
    assert added(probabilities, labels).figures()["top5"] == 1


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        Metrics(2).update(np.array([[np.nan, 0.0]]), np.array([0]))


def test_mistakes_are_listed_by_their_number():
    labels = np.array([0, 0, 0, 1, 2, 2, 2, 2])
    predicted = np.array([1, 1, 0, 1, 0, 0, 0, 1])
    metrics = added(np.eye(3)[predicted] * 0.8 + 0.1, labels)
    assert metrics.confusions(10) == [(2, 0, 3), (0, 1, 2), (2, 1, 1)]
    assert metrics.confusions(1) == [(2, 0, 3)]
    assert [row.confused_with for row in metrics.per_class()] == [(1, 2), None, (0, 3)]


@pytest.mark.parametrize("classes", [10, 1000])
def test_the_picture_of_few_and_of_many_classes(tmp_path, classes):
    metrics = Metrics(classes)
    labels = np.arange(classes)
    metrics.confusion[labels, labels] = 40
    metrics.confusion[3, 7] = 10
    names = [f"a $_$ 猫 class with a long name of its own, number {index}" for index in labels]
    draw_confusion(metrics, names, "imagenet2012 validation, ten_crop", tmp_path / "a.png")
    draw_confusion(metrics, names, "imagenet2012 validation, ten_crop", tmp_path / "b.png")
    picture = tf.io.decode_png((tmp_path / "a.png").read_bytes()).numpy()
    assert min(picture.shape[:2]) >= (600 if classes == 10 else 1000)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_lone_mistake_is_drawn_among_many_classes():
    shares = np.zeros((1201, 1201))
    shares[700, 1200] = 0.25
    drawn = _largest_of_blocks(shares)
    assert drawn.shape == (401, 401)
    assert np.argwhere(drawn).tolist() == [[233, 400]]
    assert drawn.max() == 0.25
    assert _largest_of_blocks(shares[:10, :10]).shape == (10, 10)
