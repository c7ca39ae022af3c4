"""COCO's JSON files as users have them: what is filled in, and what is refused."""

import json
import os

import numpy as np
import pytest
from helpers.data_helpers import write_image

from keras_resnet.detection import RECIPES, open_detection_dataset
from keras_resnet.detection.data.annotations import Faults
from keras_resnet.detection.data.files import read_file
from keras_resnet.detection.task import DetectionTask
from keras_resnet.errors import InputError

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]


def annotations():
    return {
        "images": [
            {"id": 397133, "file_name": "a.jpg", "width": 64, "height": 48},
            {"id": 5, "file_name": "b.png", "width": 30, "height": 40},
        ],
        "categories": [dict(category) for category in CATEGORIES],
        "annotations": [
            {
                "id": 1,
                "image_id": 397133,
                "category_id": 18,
                "bbox": [10, 20, 30.5, 8],
                "area": 100,
                "iscrowd": 1,
            },
            {"id": 2, "image_id": 397133, "category_id": 90, "bbox": [-0.5, 0, 5, 48.4]},
        ],
    }


def write(folder, value, split="val2017", images="val2017"):
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(value))
    write_image(folder / images / "a.jpg", np.zeros((48, 64, 3), "uint8"))
    write_image(folder / images / "b.png", np.full((40, 30, 3), 7, "uint8"))
    return open_detection_dataset(f"coco:{folder}")


def test_a_folder(tmp_path):
    dataset = write(tmp_path, annotations())
    assert dataset.split_names == ("val2017",)
    assert dataset.class_names == ("person", "dog", "toothbrush")
    split = dataset.split("val2017")
    assert split.class_ids == (1, 18, 90)
    assert split.image_ids == (397133, 5)
    assert split.image_names == ("a.jpg", "b.png")
    np.testing.assert_array_equal(split.sizes, [[48, 64], [40, 30]])
    objects, none = split.objects
    np.testing.assert_array_equal(objects.boxes, np.float32([[10, 20, 40.5, 28], [0, 0, 4.5, 48]]))
    np.testing.assert_array_equal(objects.labels, [1, 2])
    np.testing.assert_array_equal(objects.crowd, [True, False])
    np.testing.assert_allclose(objects.areas, [100, 5 * 48.4])
    assert len(none) == 0
    np.testing.assert_array_equal(split.read_image(1), np.full((40, 30, 3), 7))


def test_what_other_programs_write(tmp_path):
    """Null for what is missing, floats from pandas, and Roboflow's group of all classes."""
    value = annotations()
    value["annotations"][0].update(iscrowd=None, area=None, image_id=397133.0, category_id=18.0)
    value["images"][0]["id"] = 397133.0
    value["categories"] = [{**row, "supercategory": "dog"} for row in value["categories"]]
    value["categories"].append({"id": 0, "name": "dog", "supercategory": "none"})
    split = write(tmp_path, value).split("val2017")
    assert split.class_names == ("person", "dog", "toothbrush")
    objects = split.objects[0]
    assert (objects.labels[0], objects.crowd[0], objects.areas[0]) == (1, False, 30.5 * 8)


def test_clipped_boxes_are_counted(tmp_path):
    faults = Faults(collect=True)
    write(tmp_path, annotations()).loaders["val2017"](faults)
    assert faults.rows == []
    assert faults.repaired == {"boxes clipped to their image": 1}


@pytest.mark.parametrize("images", ["val2017", "images/val2017", "images", ".", "annotations"])
def test_places_of_the_images(tmp_path, images):
    assert write(tmp_path, annotations(), images=images).split("val2017").read_image(0).shape == (48, 64, 3)


def test_one_file_and_roboflow(tmp_path):
    for folder in ("train", "valid"):
        write_image(tmp_path / folder / "a.jpg", np.zeros((48, 64, 3), "uint8"))
        write_image(tmp_path / folder / "b.png", np.zeros((40, 30, 3), "uint8"))
        (tmp_path / folder / "_annotations.coco.json").write_text(json.dumps(annotations()))
    dataset = open_detection_dataset(f"coco:{tmp_path}")
    assert dataset.split_names == ("train", "valid")
    assert dataset.split("valid").read_image(0).shape == (48, 64, 3)
    dataset = open_detection_dataset(f"coco:{tmp_path}/valid/_annotations.coco.json")
    assert dataset.split(dataset.split_names[0]).read_image(0).shape == (48, 64, 3)


def annotation(**fields):
    return lambda value: value["annotations"][0].update(fields)


def image(**fields):
    return lambda value: value["images"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (annotation(bbox=[1, 2, 0, 5]), "annotation 1 of image 397133 .a.jpg. has the bbox .1, 2, 0, 5."),
        (annotation(bbox=[1, 2, 5, -3]), "width and height must be above 0"),
        (annotation(bbox=[1, 2, 5, float("nan")]), "annotation 1 .* finite numbers"),
        (annotation(bbox=[1, 2, 5, 10**400]), "expected .x, y, width, height."),
        (annotation(bbox=[1, 2, 5]), "expected .x, y, width, height."),
        (annotation(bbox=[60, 2, 6, 5]), "outside of its image of 64 x 48 pixels"),
        (annotation(category_id=3), "has the category_id 3; the categories have 1 to 90"),
        (annotation(image_id=6), "annotation 1 has the image_id 6, but no image has this id"),
        (annotation(image_id="5"), "annotation 1 has the image_id '5', but no image has this id"),
        (annotation(iscrowd="no"), "iscrowd no; expected 0 or 1"),
        (annotation(area=-4), "has the area -4"),
        (image(width=-1), "image 397133 .a.jpg. has width -1 and height 48; they must be"),
        (image(id=5), "image 5 .b.png. has the id of another image, a.jpg"),
        (image(file_name="c.jpg"), "image 397133 .c.jpg. has no file in"),
        (
            image(file_name="../a.jpg"),
            "image 397133 has the file_name ../a.jpg, which is not a path inside the folder",
        ),
        (image(file_name="b.png"), "has the file of another image"),
        (image(file_name=None), "image 397133 has no file_name"),
    ],
)
def test_faults_name_the_file_and_the_id(tmp_path, change, message):
    value = annotations()
    change(value)
    dataset = write(tmp_path, value)
    with pytest.raises(InputError, match=f"instances_val2017.json: .*{message}.*`detection check`") as caught:
        dataset.split("val2017")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value["categories"][0].pop("name"), "category 18 has no name"),
        (lambda value: value["categories"][0].update(id=1), "category 1 .person. occurs twice"),
        (lambda value: value["categories"][0].update(name="person"), "category 1 .person. occurs twice"),
        (lambda value: value["categories"][0].update(id="x"), "has no integer id"),
        (lambda value: value.pop("annotations"), "has no list 'annotations'"),
        (lambda value: value.update(categories=[]), "has no categories"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path, change, message):
    value = annotations()
    change(value)
    with pytest.raises(InputError, match=f"instances_val2017.json.*{message}"):
        write(tmp_path, value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "is not a valid JSON file"),
        ("[" * 100_000, "is not a valid JSON file"),
        ("[]", "is a list, perhaps of detections"),
        ("7", "has no list 'images'"),
    ],
)
def test_other_files(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=f"x.json {message}"):
        open_detection_dataset(f"coco:{tmp_path}/x.json")


def test_sizes_of_files(tmp_path):
    """COCO's largest JSON file has 470 million bytes."""
    path = tmp_path / "x.json"
    path.touch()
    os.truncate(path, 470_000_000)
    with pytest.raises(InputError, match="has 470000000 bytes; the limit is 300000000"):
        read_file(str(path), 300_000_000)
    assert len(read_file(str(path), 2**31)) == 470_000_000
    with pytest.raises(InputError, match="is not a regular file"):
        read_file(str(tmp_path), 100)


def test_missing_folders(tmp_path):
    with pytest.raises(InputError, match="there is no folder or file '/nowhere'; the layout is"):
        open_detection_dataset("coco:/nowhere")
    with pytest.raises(InputError, match="has no JSON file; the layout is"):
        open_detection_dataset(f"coco:{tmp_path}")


def test_splits_with_other_categories(tmp_path):
    write(tmp_path, annotations())
    value = annotations()
    value["categories"][0]["name"] = "cat"
    dataset = write(tmp_path, value | {"info": "longer"}, "train2017")
    with pytest.raises(InputError, match="different categories"):
        [dataset.split(name) for name in dataset.split_names]


def test_faulty_objects_can_be_skipped(tmp_path):
    value = annotations()
    value["annotations"][0]["bbox"] = [1, 2, 1.03, 0.0]  # as in image 200365 of train2017
    write(tmp_path, value)
    dataset = open_detection_dataset(f"coco:{tmp_path}", skip_faulty=True)
    assert [len(objects) for objects in dataset.split("val2017").objects] == [1, 0]
    recipe = RECIPES["detect_scenes"].replace(
        dataset=f"coco:{tmp_path}", train_split="val2017", val_split="val2017", batch_size=1
    )
    with pytest.raises(InputError, match=r"annotation 1 of image 397133 .*--set=skip_faulty=true"):
        DetectionTask(recipe).open(None)
    task = DetectionTask(recipe.set(["skip_faulty=true"]))
    task.open(None)
    assert task.epoch_steps == 2


def test_images_that_are_not_as_annotated(tmp_path):
    value = annotations()
    value["images"][0].update(width=48, height=64)
    value["annotations"] = []
    split = write(tmp_path, value).split("val2017")
    with pytest.raises(InputError, match=r"a.jpg has 64 x 48 pixels, but is annotated with 48 x 64.*Exif"):
        split.read_image(0)
    (tmp_path / "val2017" / "b.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"b.png is not a usable image: not a JPEG, PNG, GIF or BMP image"):
        split.read_image(1)
