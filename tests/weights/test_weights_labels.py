"""ImageNet's classes and their order, and decoded predictions."""

import sys

import keras
import numpy as np
import pytest

from keras_resnet import InputError
from keras_resnet.weights.labels import decode_predictions, labels

# From timm's imagenet_synsets.txt and imagenet_synset_to_lemma.txt, which the file was not made from.
ANCHORS = {
    0: ("n01440764", "tench"),
    1: ("n01443537", "goldfish"),
    65: ("n01751748", "sea snake"),
    153: ("n02085936", "maltese dog"),
    207: ("n02099601", "golden retriever"),
    281: ("n02123045", "tabby"),
    333: ("n02342885", "hamster"),
    388: ("n02510455", "giant panda"),
    497: ("n03028079", "church"),
    569: ("n03417042", "garbage truck"),
    701: ("n03888257", "parachute"),
    817: ("n04285008", "sports car"),
    954: ("n07753592", "banana"),
    999: ("n15075141", "toilet tissue"),
}


def one_hot(*indices):
    """Descending scores at the indices, zeros elsewhere."""
    row = np.zeros(1000, "float32")
    row[list(indices)] = np.linspace(0.5, 0.25, len(indices))
    return row


def test_a_thousand_classes_with_an_identifier_and_a_name_each():
    classes = labels("imagenet")
    assert len(classes) == 1000
    assert all(len(pair) == 2 and all(pair) for pair in classes)
    assert all(wnid[0] == "n" and wnid[1:].isdigit() and len(wnid) == 9 for wnid, _ in classes)
    assert all(name == name.strip() for _, name in classes)


def test_identifiers_are_sorted_and_unique_and_so_are_names():
    wnids, names = zip(*labels("imagenet"), strict=True)
    assert list(wnids) == sorted(set(wnids))
    assert len(set(names)) == 1000  # "crane" the bird and the machine, "maillot" twice


@pytest.mark.parametrize("index", ANCHORS)
def test_classes_are_those_of_another_source(index):
    wnid, name = labels("imagenet")[index]
    assert (wnid, name.lower()) == ANCHORS[index]


def test_another_label_set_is_unknown():
    with pytest.raises(InputError, match="unknown label set 'imagnet'; did you mean imagenet"):
        labels("imagnet")


def test_decode_predictions():
    decoded = decode_predictions(np.stack([one_hot(207, 281), one_hot(0, 999)]), top=2)
    assert decoded == [
        [("n02099601", "golden retriever", 0.5), ("n02123045", "tabby", 0.25)],
        [("n01440764", "tench", 0.5), ("n15075141", "toilet tissue", 0.25)],
    ]


def test_decoded_like_keras_applications(monkeypatch):
    """Keras' function with our classes instead of the file that it downloads."""
    module = sys.modules[keras.applications.imagenet_utils.decode_predictions.__module__]
    index = {str(i): list(pair) for i, pair in enumerate(labels("imagenet"))}
    monkeypatch.setattr(module, "CLASS_INDEX", index)
    scores = np.random.default_rng(0).random((3, 1000), "float32")
    assert decode_predictions(scores, 7) == module.decode_predictions(scores, 7)


def test_five_classes_by_default():
    assert [len(row) for row in decode_predictions(np.stack([one_hot(3)] * 2))] == [5, 5]


def test_ties_are_ordered_by_index():
    scores = np.arange(1000) % 7
    (row,) = decode_predictions(scores[None], top=1000)
    order = sorted(range(1000), key=lambda index: -scores[index])  # Python's sorting is stable
    assert [pair[:2] for pair in row] == [labels("imagenet")[index] for index in order]


@pytest.mark.parametrize(
    "convert",
    [
        keras.ops.convert_to_tensor,
        lambda scores: keras.ops.cast(scores, "bfloat16"),
        lambda scores: (scores * 100).astype("uint8"),
        np.ndarray.tolist,
    ],
    ids=["tensor", "bfloat16", "uint8", "list"],
)
def test_tensors_and_other_types(convert):
    (row,) = decode_predictions(convert(one_hot(281, 207)[None]), top=2)
    assert [wnid for wnid, *_ in row] == ["n02123045", "n02099601"]
    assert all(type(score) is float for *_, score in row)


def test_no_images_give_no_rows():
    assert decode_predictions(np.zeros((0, 1000))) == []


@pytest.mark.parametrize("shape", [(1000,), (1, 999), (1, 1001), (1, 1, 1000)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match=r"must have the shape \(batch, 1000\); got \("):
        decode_predictions(np.zeros(shape))


@pytest.mark.parametrize("top", [0, -1, 1001, 2.0, True, None])
def test_top_out_of_range_is_refused(top):
    with pytest.raises(InputError, match="top must be an integer from 1 to 1000; got "):
        decode_predictions(np.zeros((1, 1000)), top)
