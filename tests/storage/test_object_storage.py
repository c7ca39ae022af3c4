"""The mirror of a run's folder, with a store that is in memory."""

import sys
from pathlib import Path

import obstore
import pytest

from keras_resnet import object_storage
from keras_resnet.errors import InputError, TryAgain
from keras_resnet.object_storage import mirrored
from keras_resnet.run_folder import RunFolder, open_run_folder

URL = "s3://bucket/runs/one"


@pytest.fixture
def mirror(store):
    with mirrored(URL, ("checkpoints",)) as opened:
        opened.folder.mkdir(exist_ok=True)
        yield opened


@pytest.fixture
def requests(monkeypatch):
    """The changes that are made to the store, in order."""
    made = []
    put, delete = obstore.put, obstore.delete
    monkeypatch.setattr(obstore, "put", lambda s, name, *rest: made.append(f"+{name}") or put(s, name, *rest))
    monkeypatch.setattr(obstore, "delete", lambda s, name: made.append(f"-{name}") or delete(s, name))
    return made


def write(mirror, name, content="content"):
    path = mirror.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_changes_are_uploaded_once_in_the_order_of_writing(mirror, requests):
    for name in ("recipe.json", "checkpoints/step-2.h5", "a.csv"):
        write(mirror, name)
    mirror.upload()
    assert requests == ["+recipe.json", "+checkpoints/step-2.h5", "+a.csv"]
    mirror.upload()
    assert len(requests) == 3
    write(mirror, "checkpoints/step-4.h5")
    write(mirror, "a.csv", "same length")
    write(mirror, "a.csv", "same LENGTH")
    (mirror.folder / "checkpoints/step-2.h5").unlink()
    mirror.upload()
    assert requests[3:] == ["+checkpoints/step-4.h5", "+a.csv", "-checkpoints/step-2.h5"]


def test_hidden_files_links_and_the_lock_stay_local(mirror, store):
    for name in (".a.csv.tmp-01234567", "export/.rejected/model.onnx", "lock"):
        write(mirror, name)
    (mirror.folder / "link").symlink_to(__file__)
    mirror.upload()
    assert store.names() == []


def test_only_what_is_needed_is_downloaded(store):
    for name in (
        "recipe.json",
        "lock",
        "checkpoints/1",
        "tensorboard/events",
        "export/1/model",
        ".x",
        "a/.b/c",
    ):
        store.write(name, name.encode())
    with mirrored(URL, ("checkpoints", "a")) as opened:
        files = {str(path.relative_to(opened.folder)) for path in opened.folder.rglob("*") if path.is_file()}
        assert files == {"recipe.json", "checkpoints/1"}
        assert (opened.folder / "checkpoints/1").read_bytes() == b"checkpoints/1"
        folder = opened.folder
    assert not folder.parent.exists()
    assert "tensorboard/events" in store.names()  # what was not downloaded is not taken for deleted


def test_large_files_are_read_in_parts(store, monkeypatch):
    monkeypatch.setattr(object_storage, "_RANGE", 7)
    content = bytes(range(100)) * 2
    store.write("model", content)
    store.write("empty", b"")
    with mirrored(URL, ()) as opened:
        assert (opened.folder / "model").read_bytes() == content
        assert (opened.folder / "empty").read_bytes() == b""


def test_the_newest_process_owns_the_folder(store):
    with mirrored(URL, ()) as old:
        old.folder.mkdir()
        old.take_over()
        write(old, "recipe.json")
        old.upload()
        with mirrored(URL, ()) as new:
            new.take_over()
            write(old, "history.csv")
            with pytest.raises(
                InputError, match=r"^another process has taken over s3://bucket/runs/one \(process \d+ on "
            ):
                old.upload()
            write(new, "history.csv", "new")
            new.upload()
        (old.folder / "history.csv").unlink()
    assert store.read("history.csv") == b"new"


def test_a_folder_that_was_deleted(mirror, store):
    mirror.take_over()
    obstore.delete(store.store, "lock")
    write(mirror, "a.csv")
    with pytest.raises(InputError, match=f"^{URL} was deleted; this process stops$"):
        mirror.upload()
    (mirror.folder / "a.csv").unlink()


def test_a_folder_that_has_changed_since_the_download(mirror, store):
    store.write("checkpoints/1", b"")
    with pytest.raises(
        TryAgain, match=f"^another process is writing to {URL}; start again when it has ended$"
    ):
        mirror.take_over()
    assert "lock" not in store.names()


def test_a_file_that_vanishes_and_a_bucket_that_does_not_exist(mirror, store, monkeypatch):
    def missing(store, name, path):
        if name == "gone":
            path.unlink()
        raise FileNotFoundError("NoSuchBucket")

    monkeypatch.setattr(obstore, "put", missing)
    write(mirror, "gone")
    mirror.upload()
    write(mirror, "a.csv")
    with pytest.raises(InputError, match=f"^cannot use {URL}: NoSuchBucket$"):
        mirror.upload()
    (mirror.folder / "a.csv").unlink()


@pytest.mark.parametrize(
    ("kind", "raised", "message"),
    [
        ("PermissionDeniedError", InputError, f"cannot use {URL}: no"),
        ("UnauthenticatedError", InputError, f"cannot use {URL}: no"),
        ("GenericError", TryAgain, f"{URL}: no; the same command may succeed later"),
    ],
)
def test_errors_of_the_store_are_one_line(mirror, monkeypatch, kind, raised, message):
    def fail(*arguments):
        raise getattr(obstore.exceptions, kind)("no\n\nDebug source:\nmuch more")

    write(mirror, "a.csv")
    with monkeypatch.context() as patch:
        patch.setattr(obstore, "put", fail)
        with pytest.raises(raised) as caught:
            mirror.upload()
    assert str(caught.value) == message


def test_errors_name_the_url_and_what_was_written_is_uploaded(store):
    def write_and_fail(name, kind):
        with mirrored(URL, ()) as opened:
            write(opened, name)
            raise kind(f"{opened.folder}/recipe.json is not JSON")

    with pytest.raises(InputError) as caught:
        write_and_fail("bad_images.csv", InputError)
    assert str(caught.value) == f"{URL}/recipe.json is not JSON"
    assert store.names() == ["bad_images.csv"]
    # But not if the store has failed, which was tried long enough.
    with pytest.raises(TryAgain):
        write_and_fail("history.csv", TryAgain)
    assert store.names() == ["bad_images.csv"]


@pytest.mark.parametrize("url", ["s3://bucket", "gs://bucket/", "s3:///", "s3://bucket/../other", "s3://"])
def test_urls_without_a_folder(url, store):
    with pytest.raises(InputError, match=r"names no folder; give (s3|gs)://BUCKET/FOLDER$"):
        mirrored(url, ()).__enter__()


def test_urls_are_made_equal(store):
    for url in (URL, f"{URL}/", Path(URL)):
        with open_run_folder(url) as folder:
            assert (str(folder), folder.path.name) == (URL, "one")


def test_local_folders_and_open_folders_are_used_as_they_are(tmp_path):
    with open_run_folder(tmp_path) as folder, open_run_folder(folder) as again:
        assert again is folder
        assert (Path(folder), str(folder)) == (tmp_path, str(tmp_path))
        folder.upload()
    with pytest.raises(InputError, match="is a URL"):
        RunFolder(URL)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    monkeypatch.setitem(sys.modules, "obstore", None)
    message = r"^obstore is not installed; .*: pip install 'keras-resnet-zoo\[remote\]'$"
    with pytest.raises(InputError, match=message):
        mirrored(URL, ()).__enter__()


def test_the_package_opens_both_kinds_of_stores(monkeypatch):
    from obstore.store import GCSStore, S3Store

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert isinstance(object_storage._open_store(URL), S3Store)
    assert isinstance(object_storage._open_store("gs://bucket/run"), GCSStore)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/does/not/exist.json")
    with pytest.raises(InputError, match=r"^cannot use gs://bucket/run: ."):
        object_storage._open_store("gs://bucket/run")
