"""Images made to take memory or time, and 2,000 damaged ones, through all ways into the decoder."""

import json

import pytest
from helpers.damaged_images import corpus
from helpers.image_bombs import bombs
from helpers.processes import ROOT, finish, start

SERVED = ("png", "jpeg")
REFUSED = (
    "png of 90 megapixels",
    "png with alpha, of 16 bits and 65 megapixels",
    "png with texts",
    "progressive jpeg of 81 megapixels",
    "jpeg of 19 scans and 81 megapixels",
    "jpeg of 3000 scans",
    "gif with a frame beyond its screen",
    "gif of 89 megapixels",
)
LIMIT = 600  # MiB


def measured(folder, *arguments, timeout=800):
    """The child's rows; a crash or a hang fails the test, and the output ends with the last file."""
    script = ROOT / "tests" / "helpers" / "image_entrances.py"
    status, output = finish(
        start([str(script), str(folder), *arguments], PYTHONPATH=str(ROOT)), timeout=timeout
    )
    assert status == 0, output[-3000:]
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_no_image_takes_much_memory(tmp_path):
    files = bombs()
    for name, file in files.items():
        (tmp_path / name).write_bytes(file)
    rows = measured(tmp_path)
    elongated = sum(" x " in name for name in files)
    assert len(rows) == 4 * len(files) + 3 * elongated
    assert {(row["name"], row["entrance"]): row["grown"] for row in rows if row["grown"] > LIMIT} == {}
    for row in rows:
        name, entrance = row["name"], row["entrance"]
        refused = name in REFUSED
        refused |= entrance == "served" and not any(word in SERVED for word in name.split())
        refused |= entrance in ("evaluate ten crops", "evaluate scales")
        assert row["answer"] != refused, row


@pytest.mark.slow
def test_damaged_images_have_the_same_answer_everywhere(tmp_path):
    files = corpus(2_100)
    assert len(files) >= 2_000
    folder, names = tmp_path / "files", list(files)
    folder.mkdir()
    for index, file in enumerate(files.values()):
        (folder / f"{index:05}").write_bytes(file)
    rows = measured(folder, "together")
    answers = {row["entrance"]: row["answers"] for row in rows}
    assert set(answers) == {"served", "check", "train", "evaluate"}
    for entrance, found in answers.items():
        assert len(found) == len(files)
        odd = [
            (names[index], expected)
            for index, expected in enumerate(answers["check"])
            if found[index] != expected
            and not (entrance == "served" and is_served_otherwise(files[names[index]]))
            # A part may be whole where the image is not.
            and not (entrance == "train" and found[index])
        ]
        assert odd == [], entrance
    assert 300 < sum(answers["check"]) < len(files) - 300


def is_served_otherwise(file):
    return not file.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))
