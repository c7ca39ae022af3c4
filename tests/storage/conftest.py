"""A store in memory, and a real S3 server on this machine."""

import obstore
import pytest
from helpers import s3
from obstore.store import MemoryStore

from keras_resnet import object_storage


class Store:
    """A folder of a store, from a test's view."""

    def __init__(self, store):
        self.store = store

    def names(self):
        return sorted(each["path"] for chunk in obstore.list(self.store) for each in chunk)

    def read(self, name):
        return bytes(obstore.get(self.store, name).bytes())

    def write(self, name, content):
        obstore.put(self.store, name, content)


@pytest.fixture
def store(monkeypatch):
    """The store that every URL names."""
    opened = Store(MemoryStore())
    monkeypatch.setattr(object_storage, "_open_store", lambda url: opened.store)
    return opened


@pytest.fixture(scope="session")
def s3_python(pytestconfig):
    """The Python of the environment with the S3 server."""
    return s3.install(pytestconfig.cache.mkdir("s3_server"))


@pytest.fixture
def proxy(s3_python, monkeypatch):
    """A new S3 server with the bucket "bucket", which the store's environment variables name."""
    with s3.serving(s3_python) as opened:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{opened.server_port}")
        for name, value in (
            ("ACCESS_KEY_ID", "key"),
            ("SECRET_ACCESS_KEY", "secret"),
            ("REGION", "us-east-1"),
        ):
            monkeypatch.setenv(f"AWS_{name}", value)
        yield opened


@pytest.fixture
def s3_store(proxy):
    """The folder of the run."""
    return Store(object_storage._open_store("s3://bucket/runs/one"))
