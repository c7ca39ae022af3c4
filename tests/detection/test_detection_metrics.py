"""COCO's statistics against pycocotools as its demo uses it, and VOC's against py-faster-rcnn's rule."""

import json

import numpy as np
import pytest
from helpers.made_detections import NOTHING, detected, made_split, objects, random_case
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from keras_resnet.detection.metrics import COCO_STATISTICS, coco_statistics, voc_average_precision
from keras_resnet.errors import InputError

BIG = (0, 0, 100, 100)


def write_coco_files(folder, split, detections):
    """The split as an annotation file and the detections as a results file, in COCO's formats."""
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in split.image_ids]
    categories = [{"id": i, "name": n} for i, n in zip(split.class_ids, split.class_names, strict=True)]
    annotations, results = [], []
    for number, truth, found in zip(split.image_ids, split.objects, detections, strict=True):
        for row in range(len(truth)):
            x1, y1, x2, y2 = truth.boxes[row].tolist()
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": number,
                    "category_id": split.class_ids[truth.labels[row]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(truth.areas[row]),
                    "iscrowd": int(truth.crowd[row]),
                }
            )
        for row in range(len(found)):
            x1, y1, x2, y2 = found.boxes[row].tolist()
            results.append(
                {
                    "image_id": number,
                    "category_id": split.class_ids[found.labels[row]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(found.scores[row]),
                }
            )
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "categories": categories, "annotations": annotations})
    )
    (folder / "results.json").write_text(json.dumps(results))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_statistics_are_those_of_pycocotools_reading_files(tmp_path, capsys, seed):
    truth, found = random_case(seed)
    ids = np.random.default_rng(seed).permutation(1000)[: len(truth)].tolist()  # another order than ours
    names = ("a", "b", "c", "d")
    split = made_split(truth, names, class_ids=(3, 7, 20, 90), image_ids=ids)
    ours = coco_statistics(split, found)
    assert capsys.readouterr().out == ""

    write_coco_files(tmp_path, split, found)
    annotations = COCO(str(tmp_path / "instances.json"))
    theirs = COCOeval(annotations, annotations.loadRes(str(tmp_path / "results.json")), "bbox")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    assert list(ours.figures) == list(COCO_STATISTICS)
    assert list(ours.figures.values()) == theirs.stats.tolist()
    assert 0 < ours.figures["AP"] < ours.figures["AP50"] < 1
    np.testing.assert_array_equal(ours.precision, theirs.eval["precision"][:, :, :, 0, 2])
    for label, category in enumerate(split.class_ids):
        theirs.params.catIds = [category]
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
        expected = dict(zip(COCO_STATISTICS[:6], theirs.stats[:6].tolist(), strict=True))
        assert ours.per_class[label] == pytest.approx(expected, abs=1e-12)


def test_one_object_is_found_with_an_overlap_of_82_percent():
    """It counts at the seven thresholds .5, .55, ..., .8; its area, 100 x 100, is a large one."""
    found = coco_statistics(made_split([objects(BIG)]), [detected((0.9, 0, 0, 100, 82))]).figures
    assert found["AP"] == found["APlarge"] == pytest.approx(0.7)
    assert (found["AP50"], found["AP75"]) == pytest.approx((1, 1))
    assert found["AR1"] == found["AR100"] == found["ARlarge"] == pytest.approx(0.7)
    assert found["APsmall"] == found["APmedium"] == found["ARsmall"] == -1


def test_sizes_are_those_of_the_annotated_areas():
    """COCO's areas are those of the segmentations: this box of 100 x 100 is a small object."""
    split = made_split([objects(BIG, areas=900.0)])
    found = coco_statistics(split, [detected((0.9, *BIG))])
    assert (found.figures["APsmall"], found.figures["APlarge"]) == pytest.approx((1, -1))
    assert (found.per_class[0]["APsmall"], found.per_class[0]["APlarge"]) == pytest.approx((1, -1))


def test_detections_in_images_without_objects_are_false():
    split = made_split([objects(BIG), objects()])
    right, wrong = detected((0.5, *BIG)), detected((0.9, *BIG))
    assert coco_statistics(split, [right, wrong]).figures["AP"] == pytest.approx(0.5)
    assert coco_statistics(split, [right, NOTHING]).figures["AP"] == pytest.approx(1)
    assert coco_statistics(split, [right, None]).figures["AP"] == pytest.approx(1)


def test_detections_in_crowd_regions_do_not_count():
    boxes = (0, 0, 300, 300), (400, 0, 500, 100)
    found = detected((0.9, 10, 10, 60, 60), (0.8, 50, 50, 100, 100), (0.7, 400, 0, 500, 100))
    split = made_split([objects(*boxes, crowd=[True, False])])
    assert coco_statistics(split, [found]).figures["AP"] == pytest.approx(1)
    split = made_split([objects(*boxes, crowd=False)])
    assert coco_statistics(split, [found]).figures["AP50"] < 0.5


def test_no_detections():
    figures = coco_statistics(made_split([objects(BIG), objects()]), [NOTHING, NOTHING]).figures
    assert figures["AP"] == figures["AP50"] == figures["AR1"] == figures["AR100"] == figures["APlarge"] == 0


def test_no_objects_and_no_images():
    split = made_split([objects(), objects()])
    for found in ([NOTHING, detected((0.9, *BIG))], [None, None]):
        assert set(coco_statistics(split, found).figures.values()) == {-1}


def test_only_a_hundred_detections_of_an_image_count():
    split = made_split([objects(BIG)])
    for others, recall in ((99, 1), (100, 0)):
        rows = [(0.9, 300, 300, 310 + row, 320) for row in range(others)]
        figures = coco_statistics(split, [detected(*rows, (0.5, *BIG))]).figures
        assert (figures["AR100"], figures["AR10"]) == (recall, 0)
        assert figures["AP50"] == pytest.approx(recall / 100)


def test_classes_without_objects_are_left_out_of_means():
    split = made_split([objects(BIG)], ("thing", "absent"))
    found = detected((0.9, *BIG), (0.8, *BIG), label=[0, 1])
    statistics = coco_statistics(split, [found])
    assert statistics.figures["AP"] == pytest.approx(1)
    assert [figures["AP50"] for figures in statistics.per_class] == pytest.approx([1, -1])
    for metric in ("11-point", "area"):
        np.testing.assert_array_equal(voc_average_precision(split, [found], metric), [1, np.nan])


def voc_case():
    """Two objects to find and a difficult one; by score: right, false, again, difficult, IoU .5, IoU .6."""
    truth = [
        objects((0, 0, 10, 10), (20, 0, 30, 10), difficult=[False, True]),
        objects((0, 0, 10, 10)),
        objects(),
    ]
    found = [
        detected((0.9, 0, 0, 10, 10), (0.7, 1, 0, 10, 10), (0.6, 20, 0, 30, 9)),
        detected((0.5, 0, 0, 10, 5), (0.4, 0, 0, 10, 6)),
        detected((0.8, 0, 0, 10, 10)),
    ]
    return made_split(truth), found


@pytest.mark.parametrize(
    ("metric", "expected"),
    # Recalls 1/2, ..., 1/2, 1 with precisions 1, 1/2, 1/3, 1/4, 2/5; the difficult one is not among them.
    [("11-point", (6 * 1 + 5 * 0.4) / 11), ("area", 0.5 * 1 + 0.5 * 0.4)],
)
def test_voc_by_hand(metric, expected):
    assert voc_average_precision(*voc_case(), metric).tolist() == pytest.approx([expected])


def test_voc_takes_the_best_object_even_if_it_was_found_already():
    """The second detection overlaps the first object by .94 and the second by .85."""
    split = made_split([objects((0, 0, 10, 10), (0, 0, 10, 8))])
    found = [detected((0.9, 0, 0, 10, 10), (0.8, 0, 0, 10, 9.4))]
    assert voc_average_precision(split, found).tolist() == [0.5]
    assert coco_statistics(split, found).figures["AP50"] == pytest.approx(1)


def py_faster_rcnn(split, detections, label, eleven_points):
    """The rule of its `voc_eval.py`: loops over boxes that include their last pixel, with "+ 1"."""
    npos, taken, rows = 0, {}, []
    for image, truth in enumerate(split.objects):
        npos += int((truth.labels == label)[~(truth.difficult | truth.crowd)].sum())
        rows += [
            (-score, image, place)
            for place, score in enumerate(detections[image].scores)
            if detections[image].labels[place] == label
        ]
    tp, fp = [], []
    for _, image, place in sorted(rows):
        truth = split.objects[image]
        box = detections[image].boxes[place].astype(float) - [0, 0, 1, 1]
        best, which = -np.inf, None
        for index in np.flatnonzero(truth.labels == label):
            other = truth.boxes[index].astype(float) - [0, 0, 1, 1]
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            inter = max(width, 0) * max(height, 0)
            union = sum((b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)) - inter
            if inter / union > best:
                best, which = inter / union, index
        is_difficult = best > 0.5 and (truth.difficult | truth.crowd)[which]
        is_right = best > 0.5 and not is_difficult and not taken.get((image, which))
        if is_right:
            taken[image, which] = True
        tp.append(is_right)
        fp.append(not is_right and not is_difficult)
    tp, fp = np.cumsum(tp), np.cumsum(fp)
    recall, precision = tp / npos, tp / np.maximum(tp + fp, np.finfo(float).eps)
    if eleven_points:
        levels = np.arange(0.0, 1.1, 0.1)
        return sum(precision[recall >= t].max() / 11 if (recall >= t).any() else 0 for t in levels)
    recall, precision = np.concatenate([[0], recall, [1]]), np.concatenate([[0], precision, [0]])
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return np.sum((recall[steps + 1] - recall[steps]) * precision[steps + 1])


@pytest.mark.parametrize("metric", ["11-point", "area"])
def test_voc_is_that_of_py_faster_rcnn(metric):
    truth, found = random_case(seed=2, images=20, classes=3)
    split = made_split(truth, ("a", "b", "c"))
    expected = [py_faster_rcnn(split, found, label, metric == "11-point") for label in range(3)]
    assert 0 < min(expected) < max(expected) < 1
    assert voc_average_precision(split, found, metric).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [coco_statistics, voc_average_precision])
@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "expected detections of each of the 1 images; got 0"),
        ([detected((0.5, 0, 0, 4, 4), label=1)], "image 0 have labels outside of 0 to 0"),
        ([detected((0.5, 0, 0, 4, 4), label=-1)], "image 0 have labels outside of 0 to 0"),
        ([detected((0.5, 0, np.nan, 4, 4))], "image 0 have boxes or scores that are not numbers"),
        ([detected((np.nan, 0, 0, 4, 4))], "image 0 have boxes or scores that are not numbers"),
    ],
)
def test_detections_that_do_not_fit_are_refused(metric, found, message):
    with pytest.raises(InputError, match=message):
        metric(made_split([objects((0, 0, 4, 4))]), found)


def test_unknown_metrics_are_refused():
    with pytest.raises(InputError, match="unknown VOC metric '12-point'; did you mean 11-point"):
        voc_average_precision(*voc_case(), "12-point")


def test_images_of_joined_files_may_have_the_same_ids():
    truth, found = random_case(0)
    unique = coco_statistics(made_split(truth, ("a", "b", "c", "d")), found)
    same = made_split(truth, ("a", "b", "c", "d"), image_ids=[index // 2 for index in range(len(truth))])
    assert coco_statistics(same, found).figures == unique.figures
