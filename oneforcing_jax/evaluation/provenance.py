"""Says where videos come from: what their metadata say, and whether their pixels have generate's mark.

    python -m oneforcing_jax.evaluation.provenance cat.mp4 dog.mp4
    python -m oneforcing_jax.evaluation.provenance --key=SECRET --cropped cat.mp4

Metadata say what their writer put there, and are easily removed or changed. The mark stays in resized and
encoded copies. docs/provenance.md says how well it is found.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from oneforcing_jax.data import mark
from oneforcing_jax.data.origin import flat, read_origin
from oneforcing_jax.data.video import frames_of
from oneforcing_jax.system.command import Help, any_path, ending


def said(path: Path) -> str:
    """What the metadata of a video say, in a line.

    Raises:
      MissingInput, InputError: a video that cannot be read.
    """
    origin = read_origin(path)
    if origin is None:
        return "metadata: not of this package"
    return "metadata: " + ", ".join(f"{name} {value}" for name, value in flat(origin).items())


def seen(path: Path, key: str, cropped: bool) -> str:
    """Whether a video has the mark, in a line.

    Args:
      path: of the video.
      key: of the mark.
      cropped: look for parts of marked frames, which takes seconds more.

    Raises:
      MissingInput, InputError: a video that cannot be read, or too small for a mark.
    """
    found = (mark.search if cropped else mark.detect)(mark.average(frames_of(path)), key)
    where = f", of a frame cut to {found.rows:.1%} x {found.columns:.1%}" if cropped else ""
    return (
        f"mark: {'found' if found.marked else 'not found'}, z = {found.z:.2f}, by chance at most "
        f"{max(found.false_alarm, 1e-300):.1e} (found at {mark.FALSE_ALARM:g}){where}"
    )


def main(
    arguments: Sequence[str] | None = None, prog: str = "oneforcing_jax.evaluation.provenance"
) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=Help,
    )
    parser.add_argument("files", nargs="+", type=any_path, help="videos")
    parser.add_argument("--key", default=mark.KEY, help="of the mark, as given to generate --mark")
    parser.add_argument("--cropped", action="store_true", help="look for parts of marked frames")
    args = parser.parse_args(arguments)
    with ending("what is printed is whole"):
        for path in tqdm(args.files, unit="video", disable=None):
            lines = [seen(path, args.key, args.cropped), said(path)]
            tqdm.write("\n  ".join([str(path), *reversed(lines)]))


if __name__ == "__main__":
    main()
