"""Places: a path on a disk, or the URL of a bucket (gs://, s3://). Nothing else knows URLs.

Credentials and endpoints are the environment's: AWS_* and AWS_ENDPOINT_URL, Google's application default
credentials and STORAGE_EMULATOR_HOST.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any, cast

from oneforcing_jax.errors import InputError, MissingPackage

# The package that reads and writes files of a bucket, by the scheme of its URLs.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
# A request that fails is repeated for half a minute; one without an answer fails after `SILENCE` seconds.
RETRIES = {"max_retries": 8, "initial_delay": "200ms", "max_delay": "8s"}
SILENCE = 30


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
    if not is_url(text):
        return Path(text)
    scheme, _, rest = text.partition("://")
    if scheme not in PACKAGES or not rest.partition("/")[0]:
        raise InputError(
            f"place {text!r}: expected a path, gs://BUCKET/NAME or s3://BUCKET/NAME, found another URL"
        )
    _prepare(scheme)
    from etils import epath

    return cast(Path, epath.Path(text.rstrip("/")))


def within(folder: Path, name: str) -> Path:
    """What a config or a record names: a URL, or a path, which begins in a folder unless it is whole.

    Raises:
      InputError, MissingPackage: as `path`.
    """
    whole = is_url(name) or os.path.isabs(name)
    return path(name) if whole else folder / name


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
            # Otherwise gcsfs asks Google itself what kind of bucket this is.
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # TensorStore waits for ever, unless it is told what counts as silence.
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(SILENCE))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
