"""One run in a place: on a disk, and in buckets of servers that run here."""

import threading

import pytest
import servers

from oneforcing_jax import lock, places
from oneforcing_jax.errors import InputError

SCHEMES = ["s3", "gs"]


@pytest.fixture(scope="module")
def fronts():
    with servers.fronted("s3") as s3, servers.fronted("gs") as gs:
        yield {"s3": s3, "gs": gs}


@pytest.fixture
def bucket(fronts, request, monkeypatch):
    """A folder of its own in a bucket, and a lock that is looked at often."""
    scheme = request.param
    for name, value in servers.environment(scheme, fronts[scheme].url).items():
        monkeypatch.setenv(name, value)
    for name, value in (("RENEW", 0.1), ("LEASE", 1.0), ("LOOK", 0.02)):
        monkeypatch.setattr(lock, name, value)
    return places.path(f"{scheme}://{servers.BUCKET}/{request.node.name}")


def tried(place, done, inside, refused, end):
    try:
        with lock.held(place):
            inside.append(None)
            done.wait()
            end.wait(5)
    except InputError as error:
        refused.append(str(error))
        done.wait()


@pytest.mark.parametrize("bucket", SCHEMES, indirect=True)
def test_of_two_at_once_one_goes_on(bucket):
    for turn in range(50):
        inside, refused, end = [], [], threading.Event()
        done = threading.Barrier(3, timeout=10)
        both = [
            threading.Thread(target=tried, args=(bucket / f"{turn}", done, inside, refused, end))
            for _ in range(2)
        ]
        for thread in both:
            thread.start()
        done.wait()
        assert (len(inside), len(refused)) == (1, 1)
        assert "expected no other run in it, found process" in refused[0]
        end.set()
        for thread in both:
            thread.join()
