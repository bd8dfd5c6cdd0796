"""Makes of a toy's run the student that comes with the package (`oneforcing_jax.demos`).

python -m oneforcing_jax.toy.ship --run runs/toy      # after all of its stages, the report too
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

import oneforcing_jax
from oneforcing_jax import demos
from oneforcing_jax.convert.card import README
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.families import FIELD, encoders, records
from oneforcing_jax.generation import pretrained
from oneforcing_jax.generation.pretrained import COMPUTES, LAYOUT, Source
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import checkpoint, files, integrity, places
from oneforcing_jax.system.command import Help, any_path, commit, ending
from oneforcing_jax.system.files import FORM, MORE, VERSION, read_record, write_whole
from oneforcing_jax.toy import encoders as toy
from oneforcing_jax.toy.gallery import Config
from oneforcing_jax.toy.world import World
from oneforcing_jax.training.lineage import AVERAGE
from oneforcing_jax.training.metrics import read_rows

STAGE, NET = "one_forcing", "generator"
REPORT = Path("report") / "scores.json"
# Rows of the report that a card shows beside the student's own.
BESIDE = ("real", "teacher")
# What all files may have, in bytes.
MOST = 3_000_000


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="oneforcing_jax.toy.ship", description=__doc__, formatter_class=Help
    )
    parser.add_argument("--run", required=True, type=any_path, help="its work directory")
    parser.add_argument(
        "--out", type=Path, default=demos.folder("toy"), help="folder, which is made anew"
    )
    given = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax; what matters of it is raised.
    with ending("what was there before is still there"):
        ship(given.run, given.out)


def ship(workdir: Path, out: Path) -> None:
    """Writes the moving average of a run's one-step student, its encoders and a card into a folder.

    Args:
      workdir: of a finished run of the toy.
      out: the folder; an older demo in it is replaced.

    Raises:
      MissingInput, InputError: stages that are missing; a run whose videos are not those of the toy's
        family; weights that do not fit 16 bits; a folder of something else, or one that would be too large.
    """
    if out.exists() and not (out / demos.CARD).is_file():
        raise InputError(
            f"out: expected nothing or a demo in {out}, found something else; remove it"
        )
    if not (workdir / REPORT).is_file():
        raise MissingInput(
            f"{workdir}: expected the scores of a finished run in {REPORT}, found none; run its stage report"
        )
    source = pretrained.find(workdir / STAGE, ema=True, dtype="float32")
    run = Run.read(workdir / checkpoint.CONFIG)
    said = card(run, workdir)
    with files.staged(out) as folder:
        folder.mkdir()
        _save_weights(folder, source)
        found = encoders.load(pretrained.find_encoders(workdir / STAGE))
        toy.save(folder, found.codec, found.text)  # type: ignore[arg-type]
        write_whole(folder / demos.CARD, files.record(said))
        write_whole(folder / README, page(said).encode())
        integrity.seal(folder)
        _check(folder, source)
        places.remove(out)
    size = sum(places.sizes(out).values())
    print(f"{len(places.sizes(out))} files of {size:,} bytes in {out}; {said[demos.KNOWS]}")


def _save_weights(folder: Path, source: Source) -> None:
    """One item of float16 and its record. Weights of a small network are exacter so than in bfloat16."""
    whole = jax.tree.map(np.asarray, source.params())
    with np.errstate(over="ignore"):
        half = jax.tree.map(lambda x: x.astype(np.float16), whole)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(half)):
        raise InputError(f"{source.folder}: expected weights that 16 bits hold, found larger ones")
    item = f"params_{NET}"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)) as checkpointer:
        checkpointer.save((folder / records.STEP / item).absolute(), ocp.args.PyTreeSave(half))
    more = {FIELD: toy.KIND, "causal": True, COMPUTES: "float32"}
    nets = {item: {**records.describe(source.config), "dtype": "float16", MORE: more}}
    write_whole(folder / records.MODEL, files.record({VERSION: FORM, "nets": nets}))


def _check(folder: Path, source: Source) -> None:
    """Refuses a folder that would not make the run's videos, for its record leaves them to the family, or is
    too large."""
    found = pretrained.find(folder)
    for name in LAYOUT:
        was, is_ = getattr(source, name), getattr(found, name)
        if was != is_:
            raise InputError(
                f"{source.folder}: expected a run with {name} {is_} as the toy's family has, found {was}; "
                "ship a run of configs/toy.py"
            )
    if (size := sum(places.sizes(folder).values())) > MOST:
        raise InputError(
            f"{source.folder}: expected a student of {MOST:,} bytes or less, found {size:,}; ship another"
        )


def card(run: Run, workdir: Path) -> dict[str, Any]:
    """What a demo says of itself: how it was made, what it knows, and its scores.

    Raises:
      InputError: its report does not score this student.
    """
    world = run.view(Config).world
    scores = read_record(workdir / REPORT)
    students = dict(run.stages["report"]["students"])
    own = next((row for row in scores if students.get(row) == f"{AVERAGE}{STAGE}:{NET}"), None)
    if own is None:
        raise InputError(
            f"{workdir / REPORT}: expected scores of {AVERAGE}{STAGE}:{NET}, found {', '.join(scores)}; "
            "add it to the students of the report"
        )
    rows = {row: scores[row] for row in (*BESIDE, own) if row in scores}
    seconds = {stage: _seconds(workdir / stage) for stage in run.run}
    return {
        demos.KNOWS: knows(world),
        "clips": run.stages["world"]["count"],
        "seed": run.seed,
        "seconds": {stage: spent for stage, spent in seconds.items() if spent},
        "scores": rows,
        "student": own,
        "versions": {
            "oneforcing_jax": oneforcing_jax.__version__,
            "jax": importlib.metadata.version("jax"),
            "commit": commit(),
        },
        "config": json.loads(run.text),
    }


def knows(world: World) -> str:
    """What prompts may say, in words: 'a circle', 'a square', ..., each 'moving left', ..."""
    said = [world.parse(caption) for caption in world.captions()]
    parts = [list(dict.fromkeys(values)) for values in zip(*said, strict=True)]
    colours, shapes, directions = (" or ".join(words) for words in parts)
    middle = f"{colours} {shapes or 'thing'}".strip()
    return f"prompts like {world.captions()[0]!r}: a {middle} moving {directions}".strip()


def _seconds(stage: Path) -> int:
    """What the updates of a stage took, by its metrics; 0: it has none."""
    total, before = 0.0, 0
    for row in read_rows(stage):
        total += (row["iteration"] - before) * row.get("rates/seconds_per_iteration", 0.0)
        before = row["iteration"]
    return round(total)


def page(said: Mapping[str, Any]) -> str:
    """A card as a page, with the sections of `convert.card`."""
    names = list(dict.fromkeys(name for row in said["scores"].values() for name in row))
    table = ["|" + "|".join(["", *names]) + "|", "|" + "---|" * (len(names) + 1)]
    for row, scores in said["scores"].items():
        cells = [f"{scores[name]:.3g}" if name in scores else "" for name in names]
        table.append("|" + "|".join([row, *cells]) + "|")
    seconds, versions = said["seconds"], said["versions"]
    return "\n".join([
        "# The toy's one-step student\n",
        f"It comes with oneforcing_jax to be tried: `oneforcing generate --demo`. It knows "
        f"{said[demos.KNOWS]}.\n",
        "## Licence\n",
        "That of the package, Apache-2.0: all was learned from the data below, and nobody else's weights are "
        "in it.\n",
        "## Data\n",
        f"{said['clips']} clips that the first stage renders, of nobody else.\n",
        "## How it was made\n",
        f"`oneforcing train --config=toy --workdir=runs/toy` with the config in {demos.CARD}, seed "
        f"{said['seed']}, then `python -m oneforcing_jax.toy.ship --run runs/toy`. The weights are the "
        "moving average, in float16.\n",
        f"{sum(seconds.values()):,} seconds of updates by the clock, beside what else ran "
        f"({', '.join(f'{stage} {n}' for stage, n in seconds.items())}). Versions when it was packed: "
        f"{', '.join(f'{name} {v}' for name, v in versions.items())}.\n",
        "## Scores\n",
        f"Of the report, before the weights became 16 bits; the student's row is {said['student']!r}, one "
        "step in every block:\n",
        *table,
        "\n## Limits\n",
        "It knows no other words, one shape at a time, and the sizes of the toy; where it fails is in "
        "docs/toy.md.\n",
        "## Provenance\n",
        "`oneforcing check` compares all files with checksums.json. Its videos say in their metadata that "
        "they were made with them (docs/provenance.md).",
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
