"""VOC's XML files as users have them: the convention of the coordinates, and what is refused."""

import numpy as np
import pytest
from helpers.data_helpers import write_image

from keras_resnet.detection import open_detection_dataset
from keras_resnet.errors import InputError

OBJECT = """<object><name>{name}</name><pose>Left</pose><truncated>1</truncated>{difficult}
<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"""
PAGE = """<annotation><folder>VOC2007</folder><filename>{image}</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>"""


def xml_object(name="dog", xmin=1, ymin=1, xmax=64, ymax=48, difficult="<difficult>0</difficult>"):
    return OBJECT.format(name=name, xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax, difficult=difficult)


def page(*objects, width=64, height=48):
    return PAGE.format(image="x.jpg", width=width, height=height, objects="".join(objects))


def write(folder, pages, splits=None, ending=".jpg"):
    (folder / "Annotations").mkdir()
    for name, text in pages.items():
        (folder / "Annotations" / f"{name}.xml").write_text(text)
        write_image(folder / "JPEGImages" / f"{name}{ending.lower()}", np.zeros((48, 64, 3), "uint8"))
        (folder / "JPEGImages" / f"{name}{ending.lower()}").rename(folder / "JPEGImages" / f"{name}{ending}")
    for split, names in (splits or {}).items():
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return open_detection_dataset(f"voc:{folder}")


def test_a_folder(tmp_path):
    """Coordinates count from 1 and include both ends: 1 to 64 is the whole width, 0.0 to 64.0 here."""
    pages = {
        "000012": page(xml_object(), xml_object("person", 9, 10, 9, 12, "<difficult>1</difficult>")),
        "000017": page(),
    }
    splits = {
        "trainval": ["000012", "000017"],
        "test": ["000017"],
        "dog_trainval": ["000012 1"],
        "train_2": ["000012"],
    }
    dataset = write(tmp_path, pages, splits)
    assert dataset.split_names == ("test", "train_2", "trainval")
    assert dataset.class_names[11] == "dog"
    assert dataset.classes == 20
    split = dataset.split("trainval")
    assert split.image_ids == ("000012", "000017")
    objects, none = split.objects
    np.testing.assert_array_equal(objects.boxes, [[0, 0, 64, 48], [8, 9, 9, 12]])
    np.testing.assert_array_equal(objects.labels, [11, 14])
    np.testing.assert_array_equal(objects.difficult, [False, True])
    np.testing.assert_array_equal(objects.areas, [64 * 48, 3])
    assert not objects.crowd.any()
    assert len(none) == 0
    assert split.read_image(-1).shape == (48, 64, 3)


def test_folders_as_users_have_them(tmp_path):
    """Other classes in upper and lower case, no lists, no <difficult>, coordinates from 0, endings ".JPG"."""
    pages = {
        "a": page(xml_object("Helmet", 0, 0, 10, 10, "")),
        "b": page(xml_object("helmet"), xml_object(" Vest ")).replace("annotation>", "ANNOTATION>"),
    }
    dataset = write(tmp_path, pages, ending=".JPG")
    assert dataset.class_names == ("helmet", "Vest")
    split = dataset.split("all")
    assert [objects.labels.tolist() for objects in split.objects] == [[0], [0, 1]]
    np.testing.assert_array_equal(split.objects[0].boxes, [[0, 0, 10, 10]])
    assert not split.objects[0].difficult.any()
    assert split.image_names == ("JPEGImages/a.JPG", "JPEGImages/b.JPG")
    assert split.read_image(0).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (page(xml_object(xmin=30, xmax=20)), r"object 1 \(dog\) has swapped corners: xmin 30, .* xmax 20"),
        (page(xml_object(ymax="nan")), r"object 1 \(dog\) has the box .* finite numbers"),
        (page(xml_object(ymax="x")), r"object 1 \(dog\) has the <bndbox> .*; expected numbers"),
        (page(xml_object(), xml_object(xmax=66)), r"object 2 \(dog\) .* outside of its image of 64 x 48"),
        (
            page(xml_object(difficult="<difficult>?</difficult>")),
            r"object 1 \(dog\) has <difficult> \?; expected 0 or 1",
        ),
        (page(xml_object(name="")), "object 1 has no <name>"),
        (page(xml_object(), width=0), "the image has width '0' and height '48'; they must be"),
        (page(xml_object()).replace("size>", "other>"), "has no <size>"),
        ("<annotation>", "is not a valid XML file: no element found"),
        ("<a>" * 40 + "</a>" * 40, "is nested deeper than 32 elements"),
        ('<!DOCTYPE a [<!ENTITY e "x">]><a>&e;</a>', "declares a document type"),
    ],
)
def test_faults_name_the_file_and_the_object(tmp_path, text, message):
    dataset = write(tmp_path, {"good": page(xml_object()), "odd": text})
    with pytest.raises(InputError, match=f"Annotations/odd.xml: {message}.*`detection check`") as caught:
        dataset.split("all")
    assert "\n" not in str(caught.value)


def test_entities_are_not_read(tmp_path):
    (tmp_path / "secret").write_text("<x/>")
    text = f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{tmp_path}/secret">]>' + page(xml_object(name="&e;"))
    with pytest.raises(InputError, match=r"Annotations/a.xml declares a document type"):
        write(tmp_path, {"a": text})


def test_folders_without_objects(tmp_path):
    with pytest.raises(InputError, match="has no objects; the layout is"):
        write(tmp_path, {"a": page()})
    (tmp_path / "Annotations" / "a.xml").write_bytes(
        '<?xml version="1.0" encoding="gbk"?><a>狗</a>'.encode("gbk")
    )
    with pytest.raises(InputError, match=r"Annotations/a.xml is not a valid XML file"):
        open_detection_dataset(f"voc:{tmp_path}")


def test_a_folder_around_it(tmp_path):
    inner = tmp_path / "VOCdevkit" / "VOC2007"
    inner.mkdir(parents=True)
    write(inner, {"a": page(xml_object())})
    assert len(open_detection_dataset(f"voc:{tmp_path}").split("all")) == 1
    (tmp_path / "VOCdevkit" / "VOC2012" / "Annotations").mkdir(parents=True)
    with pytest.raises(InputError, match=r"several folders of VOC's layout; choose .*VOC2007"):
        open_detection_dataset(f"voc:{tmp_path}")


def test_missing_files(tmp_path):
    dataset = write(tmp_path, {"a": page(xml_object()), "b": page()}, {"train": ["a", "b"], "val": ["c"]})
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    dataset = open_detection_dataset(f"voc:{tmp_path}")
    with pytest.raises(InputError, match=r"Annotations/b.xml: its image is missing in JPEGImages"):
        dataset.split("train")
    with pytest.raises(InputError, match=r"split val: image c has no file Annotations/c.xml"):
        dataset.split("val")
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\na\n")
    with pytest.raises(InputError, match=r"val.txt lists a twice"):
        open_detection_dataset(f"voc:{tmp_path}")
    with pytest.raises(InputError, match="there is no folder '/nowhere'"):
        open_detection_dataset("voc:/nowhere")
    with pytest.raises(InputError, match="has no Annotations"):
        open_detection_dataset(f"voc:{tmp_path}/JPEGImages")


def test_identity_depends_on_the_annotations(tmp_path):
    dataset = write(tmp_path, {"a": page(xml_object())})
    before = dataset.identity
    assert before == open_detection_dataset(f"voc:{tmp_path}").identity
    (tmp_path / "Annotations/a.xml").write_text(page(xml_object(xmin=2)))
    assert open_detection_dataset(f"voc:{tmp_path}").identity != before
