"""Repositories of Hugging Face: their names, and their files as folders of this machine."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import oneforcing_jax
from oneforcing_jax.errors import InputError

# OWNER/NAME[@REVISION][:FILE]
REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([^:@]+))?(?::(.+))?")
# The name of a commit, which stays what it is.
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MISSING = 'needs huggingface_hub, which is not installed; run pip install "oneforcing_jax[torch]"'


@contextlib.contextmanager
def _asked(absent: str, failed: str, advice: str) -> Iterator[None]:
    """Asks the hub, and says in a line that its package is absent, or why it failed."""
    try:
        yield
    except ImportError as error:
        raise InputError(absent) from error
    except Exception as error:  # network, disk, names, login, quotas: a dozen types
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{failed} ({reason}); {advice}") from error


def download(
    source: str, repository: str, revision: str | None, patterns: list[str] | None
) -> Path:
    """A folder with files of a repository, which is downloaded, or its download resumed.

    Args:
      source: what the user named, for errors.
      repository: OWNER/NAME.
      revision: a branch, a tag or a commit; None: the newest of the main branch.
      patterns: of the names of files; None: all of them.

    Raises:
      InputError: huggingface_hub is not installed, or the files cannot be had.
    """
    with _asked(
        f"{source}: not on disk, and downloading {_MISSING} or download it by hand",
        f"{source}: not on disk, and it could not be downloaded",
        "check the name and the connection, and run the same command again: what is there already is kept",
    ):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))


def upload(folder: Path, repository: str, private: bool, files: list[str]) -> str:
    """Uploads files of a folder, as one commit, whose name is returned.

    Args:
      folder: of this machine.
      repository: OWNER/NAME, which is made if it is not there.
      private: of a new repository.
      files: their paths in the folder.

    Raises:
      InputError: huggingface_hub is not installed, or the hub refuses them.
    """
    with _asked(
        f"{repository}: uploading {_MISSING}",
        f"{repository}: could not be uploaded",
        "log in with hf auth login, check the name and the connection, and run the same command again",
    ):
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=files,
            commit_message=f"A student of oneforcing_jax {oneforcing_jax.__version__}",
        )
        return str(made.oid)


def commit(snapshot: Path) -> str | None:
    """The commit of a repository that a downloaded folder is named after."""
    return snapshot.name if _COMMIT.fullmatch(snapshot.name) else None
