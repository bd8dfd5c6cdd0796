"""The gallery: the blocks of its page are run one after the other, and the videos of each are shown below it.

As a program it does the running, in a process and a folder of its own: one start of Python and JAX for all.
"""

from __future__ import annotations

import html
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

# Beside the pages of the site; and what was made there, of which blocks.
FOLDER, MADE = "_gallery", "made.json"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def shown(page: str, folder: Path) -> str:
    """A page, with videos below the blocks that make them. Of the same blocks they are not made again."""
    blocks = [list(block.groups()) for block in BLOCK.finditer(page)]
    made = folder / MADE
    if not made.is_file() or json.loads(made.read_text())["blocks"] != blocks:
        shutil.rmtree(folder, ignore_errors=True)  # commands skip what is there
        folder.mkdir(parents=True)
        done = subprocess.run(
            [sys.executable, "-P", __file__], input=json.dumps(blocks), cwd=folder, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"a block of the gallery failed:\n{done.stderr[-3000:]}")
    videos = iter(json.loads(made.read_text())["videos"])
    return BLOCK.sub(lambda block: f"{block[0]}\n\n{figures(next(videos))}", page)


def figures(names: Sequence[str]) -> str:
    """Videos side by side, as HTML."""
    each = (
        f'<figure style="margin: 0"><video src="{FOLDER}/{quote(name)}" width="160" controls autoplay loop '
        f'muted playsinline aria-label="{label}"></video><figcaption>{label}</figcaption></figure>'
        for name, label in ((name, html.escape(Path(name).name)) for name in names)
    )
    return f'<div style="display: flex; flex-wrap: wrap; gap: 1rem">\n{"".join(each)}\n</div>'


def run(kind: str, block: str) -> None:
    """Runs a block in this folder; our own commands in this process."""
    if kind == "python":
        exec(block, {"__name__": "__main__"})
        return
    for line in block.replace("\\\n", " ").splitlines():
        name, *words = shlex.split(line, comments=True) or [""]
        if name == "oneforcing":
            importlib.import_module("oneforcing_jax.cli").main(words)
        elif name:
            subprocess.run(["bash", "-euc", line], check=True)


def main() -> None:
    """Runs the blocks that standard input gives, and notes the videos of each."""
    blocks, videos, known = json.load(sys.stdin), [], set[str]()
    for kind, block in blocks:
        run(kind, block)
        there = {str(file) for file in Path().rglob("*.mp4")}
        videos.append(sorted(there - known))
        known = there
    Path(MADE).write_text(json.dumps({"blocks": blocks, "videos": videos}))


if __name__ == "__main__":
    main()
