"""Places: a path on a disk, or the URL of a bucket (gs://, s3://). Nothing else knows URLs.

Credentials and endpoints are the environment's: AWS_* and AWS_ENDPOINT_URL, Google's application default
credentials and STORAGE_EMULATOR_HOST.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from oneforcing_jax.errors import InputError, MissingPackage

# The package that reads and writes files of a bucket, by the scheme of its URLs.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
# A URL with a slash too few, which would make a folder of that name here.
_MISTYPED = re.compile(r"[a-z][a-z0-9+.-]*:/|(gs|s3):", re.IGNORECASE)
# A request that fails is repeated for half a minute; one without an answer fails after `SILENCE` seconds.
RETRIES = {"max_retries": 8, "initial_delay": "200ms", "max_delay": "8s"}
SILENCE = 30
AGAIN = "see to the server or the credentials, and the same command continues"


def is_url(name: str | os.PathLike[str]) -> bool:
    """Whether a name is a URL, not a path on a disk."""
    return "://" in os.fspath(name)


def path(name: str | os.PathLike[str]) -> Path:
    """A file or folder by its name: a path, or for a URL an object with the methods of a path.

    Raises:
      InputError: a URL of another kind.
      MissingPackage: what reads such URLs is not installed.
    """
    text = os.fspath(name)
    if not is_url(text) and not _MISTYPED.match(text):
        return Path(text)
    scheme, _, rest = text.partition("://")
    if scheme not in PACKAGES or not rest.partition("/")[0] or set("*?[") & set(rest):
        raise InputError(
            f"place {text!r}: expected a path, or gs://BUCKET/NAME or s3://BUCKET/NAME without any of *?[, "
            "found another URL"
        )
    _prepare(scheme)
    from etils import epath

    return cast(Path, epath.Path(text.rstrip("/")))


def absolute(name: str | os.PathLike[str]) -> Path:
    """A place by a name that holds in every folder; a URL does. It raises as `path` does."""
    place = path(name)
    return place if is_url(place) else place.absolute()


def within(folder: Path, name: str) -> Path:
    """What a config or a record names: a URL, or a path, which begins in a folder unless it is whole.

    Raises:
      InputError, MissingPackage: as `path`.
    """
    whole = is_url(name) or os.path.isabs(name)
    place = path(name)
    return place if whole else folder / name


def normal(place: Path) -> Path:
    """The same place without ".." in its name."""
    if not is_url(place):
        return Path(os.path.normpath(place))
    scheme, _, rest = os.fspath(place).partition("://")
    return path(f"{scheme}://{os.path.normpath(rest)}")


def relative(place: Path, start: Path) -> str:
    """The name of a place as `within` finds it from `start`, also when both are moved; the whole name, where
    one of them is on a disk and the other in a bucket."""
    place, start = (p if is_url(p) else p.resolve() for p in (place, start))
    if is_url(place) != is_url(start) or is_url(place) and place.parts[:3] != start.parts[:3]:
        return os.fspath(place)
    return os.path.relpath(os.fspath(place), os.fspath(start))


def kvstore(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The specification for TensorStore of what lies below a folder.

    Args:
      folder: a path or a URL; keys are names below it.
    """
    text = os.fspath(folder)
    if not is_url(text):
        return {"driver": "file", "path": f"{os.path.abspath(text)}/"}
    place = path(text)
    scheme, _, rest = os.fspath(place).partition("://")
    bucket, _, name = rest.partition("/")
    spec: dict[str, Any] = {"bucket": bucket, "path": f"{name}/" if name else ""}
    if scheme == "gs":
        return spec | {"driver": "gcs", "gcs_request_retries": RETRIES}
    spec |= {"driver": "s3", "s3_request_retries": RETRIES}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        # A server of one's own has no regions; requests are signed with one all the same.
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    if "AWS_ACCESS_KEY_ID" in os.environ:
        # Nothing is asked for elsewhere, where the lack of it would be printed.
        spec |= {"aws_credentials": {"type": "environment"}}
    return spec


def store(folder: Path) -> Any:
    """What lies below a folder as TensorStore's store of keys and values, which can write on a condition."""
    import tensorstore

    return tensorstore.KvStore.open(kvstore(folder)).result()


def make(folder: Path) -> None:
    """Makes a folder, and those around it, on a disk. A bucket has names alone."""
    if not is_url(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write(file: Path, content: bytes) -> None:
    """Writes an object of a bucket by one request, which makes all of it visible, or nothing.

    Raises:
      OSError: it could not be written; says why.
    """
    with failures(file, "could not be written"):
        store(file.parent).write(file.name, content).result()


def read(file: Path) -> bytes:
    """What is in a file, by one request: an object that is replaced meanwhile is the old or the new one.

    Raises:
      FileNotFoundError: there is none.
      OSError: it could not be read; says why.
    """
    if not is_url(file):
        return file.read_bytes()
    with failures(file, "could not be read"):
        found = store(file.parent).read(file.name).result()
        if found.state != "value":
            raise FileNotFoundError(f"{file}: expected a file, found none")
        return bytes(found.value)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files below a folder, by their relative names; in a bucket by one list, without reading.

    Raises:
      OSError: a bucket cannot be listed; says why.
    """
    if not is_url(folder):
        found = (file for file in folder.rglob("*") if file.is_file())
        return {file.relative_to(folder).as_posix(): file.stat().st_size for file in found}
    return {name: int(said["size"]) for name, said in _listed(folder).items()}


def tags(folder: Path) -> dict[str, str]:
    """What a bucket's server calls the content of the files below a folder, by their relative names.

    Raises:
      OSError: the bucket cannot be listed; says why.
    """
    return {name: str(said.get("ETag") or said["crc32c"]) for name, said in _listed(folder).items()}


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    scheme, _, name = os.fspath(folder).partition("://")
    import fsspec

    with failures(folder, "could not be listed"):
        listed = fsspec.filesystem(scheme).find(name, detail=True)
    return {file.removeprefix(f"{name}/"): said for file, said in listed.items()}


def size(file: Path) -> int:
    """Bytes of a file that is there."""
    found: Any = file.stat()
    return int(found.length if is_url(file) else found.st_size)


@contextlib.contextmanager
def on_disk(folder: Path) -> Iterator[Path]:
    """A folder of a disk as it is; one of a bucket as a copy, for the time of the context.

    Raises:
      OSError: a server failed.
    """
    if not is_url(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name in sizes(folder):
            copy = Path(scratch) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((folder / name).read_bytes())
        yield Path(scratch)


def remove(folder: Path) -> None:
    """Removes a folder with what is in it, or a file; if there is one.

    Raises:
      OSError: a server failed; says why.
    """
    if is_url(folder):
        with failures(folder, "could not be removed"):
            cast(Any, folder).rmtree(missing_ok=True)
    elif folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)


@contextlib.contextmanager
def failures(place: Path, what: str) -> Iterator[None]:
    """Turns what clients of buckets raise about a place into one line; what is raised about a disk stays.

    Raises:
      OSError: says what failed and why.
    """
    try:
        yield
    except (FileNotFoundError, InputError):
        raise
    except Exception as error:
        if not is_url(place):
            raise
        raise OSError(f"{place} {what}: {reason(error)}; {AGAIN}") from error


def reason(error: BaseException) -> str:
    """Why a request failed, in one line; what TensorStore adds about its sources is left out."""
    lines = str(error).splitlines()
    return lines[0].split(" [")[0] if lines else type(error).__name__


def is_of_server(error: BaseException) -> bool:
    """Whether an exception is of the packages that speak to buckets, which share no base class."""
    return type(error).__module__.partition(".")[0] in {
        "aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs",
    }  # fmt: skip


@functools.cache
def _prepare(scheme: str) -> None:
    """Settings of the libraries for one kind of buckets, before the first use.

    Raises:
      MissingPackage: what reads such URLs is not installed.
    """
    if importlib.util.find_spec(PACKAGES[scheme]) is None:
        raise MissingPackage(
            f"{scheme}:// needs the package {PACKAGES[scheme]}: pip install 'oneforcing_jax[buckets]'"
        )
    import fsspec

    # Other processes write there: what was listed before is not what is there now.
    settings = fsspec.config.conf.setdefault(scheme, {})
    settings["use_listings_cache"] = False
    if scheme == "gs":
        settings["requests_timeout"] = SILENCE
        if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
            address = emulator if "://" in emulator else f"http://{emulator}"
            os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", address)
            # Otherwise gcsfs looks for keys, and asks Google itself what kind of bucket this is.
            settings["token"] = "anon"
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    else:
        patience = {"retries": {"mode": "standard", "max_attempts": 5}, "read_timeout": SILENCE}
        settings["config_kwargs"] = patience
    _teach_orbax()
    # TensorStore waits for ever, unless it is told what counts as silence.
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(SILENCE))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")


def _teach_orbax() -> None:
    """Orbax writes to disks and to gs:// alone, and S3 can do all that it asks of gs://.

    Raises:
      MissingPackage: this version of Orbax has other parts.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    def normal(name: str) -> str:
        return name.rstrip("/") if is_url(name) else os.path.normpath(name)

    def spec(name: str) -> dict[str, Any]:
        found = kvstore(name)
        return found | {"path": found["path"].rstrip("/")}

    for module, name, value in (
        (gcs_utils, "_GCS_PATH_PREFIX", ("gs://", "s3://")),
        (gcs_utils, "get_kvstore_for_gcs", spec),
        (tensorstore_utils, "_use_gcs_driver", is_url),
        (tensorstore_utils, "_normalize_path", normal),
    ):
        if not hasattr(module, name):
            raise MissingPackage(
                "gs:// and s3:// need a known version of Orbax: pip install 'orbax-checkpoint~=0.12.8'"
            )
        setattr(module, name, value)
