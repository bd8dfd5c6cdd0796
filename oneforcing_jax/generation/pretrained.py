"""Finding a trained transformer, and the encoders that belong to it, from one folder's name."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from oneforcing_jax import families, methods, sharding
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.families import Family, records
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.families.records import MODEL
from oneforcing_jax.methods import Method
from oneforcing_jax.models.model import Model
from oneforcing_jax.models.products import Product
from oneforcing_jax.models.products.low_rank import LowRank
from oneforcing_jax.models.products.plain import PLAIN
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup.dtypes import DTYPES
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import checkpoint, places, room, saved
from oneforcing_jax.system.files import MORE, read_versioned

EXPECTED = (
    "a folder of tools/convert_wan.py, a stage of a training run (WORKDIR/STAGE), or one of its "
    f"checkpoints (WORKDIR/STAGE/{checkpoint.FOLDER}/NUMBER)"
)
# In the record of a network, below `MORE`: the dtype that it computes in, where nobody chooses one.
COMPUTES = "computes"
# The same, of what a published student makes: the fields of `Source` below, where they are not its family's.
VIDEO = "video"
LAYOUT = (
    "shift", "frames", "rows", "columns", "fps", "block_frames", "first_frames", "steps", "first_steps",
)  # fmt: skip
# Stores of which one was made from the other. A damaged record may lead round in a circle.
MOST_STORES = 16


@dataclasses.dataclass(frozen=True)
class Source:
    """A transformer on disk, and what it was trained to make.

    Attributes:
      folder: of Orbax checkpoints.
      net: name of the network in them.
      ema: whether to read its moving average.
      model: the transformer.
      family: that it is of.
      shift: of the noise schedule.
      frames, rows, columns: of the latents.
      fps: frames per second of the videos.
      block_frames, first_frames: latent frames of a block, and of the first; None: as the others.
      steps, first_steps: unwarped timesteps of a block, and of the first; None: as the others.
      family_name: as records say it.
      causal: whether it makes videos block by block, or whole clips in many steps; None: nobody says.
    """

    folder: Path
    net: str
    ema: bool
    model: Model
    family: Family
    shift: float
    frames: int
    rows: int
    columns: int
    fps: float
    block_frames: int
    first_frames: int | None
    steps: tuple[float, ...]
    first_steps: tuple[float, ...] | None
    family_name: str = families.FIRST
    causal: bool | None = None

    @property
    def config(self) -> WanConfig:
        """Sizes of the transformer."""
        config: WanConfig = self.model.config
        return config

    def check(self, teacher: bool) -> None:
        """Refuses a sampler that would make noise of these weights.

        Args:
          teacher: whether they are to make whole clips in many steps.

        Raises:
          InputError: they are known to be of the other kind.
        """
        if self.causal in (None, not teacher):
            return
        kinds = ["a causal student", "a bidirectional model, which makes whole clips in many steps"]
        expected, found = reversed(kinds) if teacher else kinds
        advice = "leave out --teacher" if teacher else "generate's --teacher samples it"
        raise InputError(
            f"checkpoint {self.folder}: expected {expected}, found {found}; {advice}, or name "
            "another checkpoint"
        )

    @functools.cached_property
    def identity(self) -> str:
        """A SHA-256 that names the weights, from the checksums that lie beside them."""
        return saved.identity(self.folder, self.net, self.ema)

    def params(self, mesh: Mesh | None = None) -> Any:
        """The parameters over a mesh, by default on the first device."""
        mesh = mesh or sharding.first_device()
        abstract, devices = self.model.in_use(mesh), list(mesh.devices.flat)
        needed = room.per_device(abstract) * len(devices)
        advice = "choose --dtype=bfloat16, a smaller model or more devices"
        room.check_memory(f"weights of {self.folder}", needed, advice, devices)
        return saved.load_net(self.folder, self.net, abstract, self.ema)


def find(
    folder: str | Path, ema: bool = False, dtype: str | None = None, shift: float | None = None
) -> Source:
    """The transformer of a folder.

    Args:
      folder: see `EXPECTED`; for a converted model also the folder around its transformer/.
      ema: its moving average.
      dtype: compute dtype, "float32" or "bfloat16"; None: of the run; for a converted one as its record says,
        or bfloat16.
      shift: of the noise schedule; None: of the run, or of its family for a converted one.

    Raises:
      MissingInput: there is no such folder.
      InputError: it is another kind of folder, or lacks the network.
    """
    folder = places.path(folder)
    if not folder.is_dir():
        raise MissingInput(f"checkpoint: expected {EXPECTED}, found nothing at {folder}")
    source = _find(folder, ema, dtype)
    return dataclasses.replace(source, shift=shift or source.shift)


def _find(folder: Path, ema: bool, dtype: str | None) -> Source:
    for place in (folder, folder / "transformer"):
        if (place / MODEL).is_file():
            return _converted(place, ema, dtype)
    stage = _stage(folder)
    if (stage / checkpoint.FOLDER).is_dir() and _record(stage).is_file():
        made = _trained(stage, ema, dtype)
        return made if stage == folder else dataclasses.replace(made, folder=folder)
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
    raise InputError(f"checkpoint: expected {EXPECTED}, found {found} in {folder}")


def _stage(folder: Path) -> Path:
    """The folder of a stage, where `folder` is one of its checkpoints; else `folder`."""
    return folder.parents[1] if folder.parent.name == checkpoint.FOLDER else folder


def _converted(folder: Path, ema: bool, dtype: str | None) -> Source:
    nets = records.read(folder, "nets")
    wanted = ("ema_generator",) if ema else ("params_generator", "params_model")
    name = next((name for name in wanted if name in nets), None)
    if name is None or nets[name].get("kind") != WanConfig.__name__:
        kinds = {item: net.get("kind") for item, net in nets.items()}
        raise InputError(
            f"checkpoint {folder}: expected a transformer among {', '.join(wanted)}, found {kinds}; "
            "add or leave out --ema, or give another folder"
        )
    more = nets[name].get(MORE, {})
    usual = "float32" if more.get(COMPUTES) == "float32" else "bfloat16"
    config: Any = records.config_of(nets[name], DTYPES[dtype or usual], folder / MODEL)
    family = families.of(nets[name], folder / MODEL)
    video, (frames, rows, columns) = family.video, family.latents
    # Records of before say it by their items alone: a folder of Wan's is a teacher, a file has a generator.
    causal = more.get("causal", name != "params_model")
    source = Source(
        folder, name.split("_", 1)[1], ema, family.model(config), family, video.shift,
        frames=frames, rows=rows, columns=columns, fps=video.fps, block_frames=1, first_frames=None,
        steps=video.steps, first_steps=video.first_steps, causal=causal,
        family_name=families.name_of(nets[name]),
    )  # fmt: skip
    return dataclasses.replace(source, **_layout(more.get(VIDEO, {}), source))


def described(source: Source) -> dict[str, Any]:
    """What the record of converted weights says of a transformer, its dtype left out: sizes, family,
    arithmetic, and what its videos are. `find` reads it."""
    video = {name: getattr(source, name) for name in LAYOUT}
    more = {
        families.FIELD: source.family_name,
        "causal": source.causal is not False,
        COMPUTES: np.dtype(source.config.dtype).name,
        VIDEO: video,
    }
    return {**records.describe(source.config), MORE: more}


def _layout(said: Any, like: Source) -> dict[str, Any]:
    """What a record says of a student's videos.

    Raises:
      InputError: what no student has.
    """
    usual = {name: getattr(like, name) for name in LAYOUT}
    usual["first_frames"] = like.block_frames
    found = {}
    for name, value in said.items() if isinstance(said, dict) else [("", said)]:
        absent = value is None and name.startswith("first_")
        if name not in usual or not (absent or records.fits(usual[name], value, 2**20)):
            raise InputError(
                f"{like.folder / MODEL}: expected the {VIDEO} of a student, found {name} {str(value)[:60]}; "
                "use the release that wrote it, or get it again"
            )
        found[name] = tuple(value) if isinstance(value, list) else value
    return found


def _trained(folder: Path, ema: bool, dtype: str | None) -> Source:
    run = _run(folder)
    method = _method(run, folder)
    if method.sampled is None:
        raise InputError(f"checkpoint {folder}: expected a method that makes videos, found none")
    changes = {"dtype": DTYPES[dtype]} if dtype else {}
    made = method.nets[method.sampled.net].model.with_config(remat="none", **changes)
    size, blocks, said = run.latents, run.blocks, folder / checkpoint.FOLDER / saved.RUN_FILE
    if said.is_file():
        read_versioned(said)  # refuses what a newer release trained
    # One step is too few for a first block, which sees nothing.
    family = families.of_run(run)
    alone = family.video.first_steps if len(blocks.steps) == 1 else None
    return Source(
        folder / checkpoint.FOLDER, method.sampled.net, ema, made, family, run.shift,
        frames=size.frames, rows=size.rows, columns=size.columns, fps=run.fps,
        block_frames=blocks.frames, first_frames=blocks.first_frames or None,
        steps=blocks.steps, first_steps=blocks.first_steps or alone,
        causal=method.sampled.plan is not None, family_name=run.family or families.FIRST,
    )  # fmt: skip


def _run(folder: Path) -> Run:
    """The run that a stage's folder belongs to."""
    file = _record(folder)
    run = Run.read(file)
    if folder.name not in run.stages:
        raise InputError(
            f"{file}: expected a stage {folder.name!r} in it, found {list(run.stages)}; give a stage's folder"
        )
    return run


def _method(run: Run, folder: Path) -> Method:
    """The method of the stage in a folder."""
    return methods.of_stage(run, folder.name)


def _record(folder: Path) -> Path:
    """The config that a stage was run with: its own, or in runs of version 0.1 the work directory's."""
    own, said = folder / checkpoint.CONFIG, folder / checkpoint.FOLDER / saved.RUN_FILE
    if own.is_file():
        return own
    if said.is_file() and checkpoint.SETTINGS in read_versioned(said):
        raise InputError(
            f"{own}: expected the config that the stage was trained with, found none; restore it from a copy"
        )
    return folder.parent / checkpoint.CONFIG


def product(folder: str | Path, net: str) -> Product:
    """How a network of a stage multiplies; that of any other folder does it plainly.

    Raises:
      InputError: as `find`.
    """
    folder = places.path(folder)
    stage = folder.parent if folder.name == checkpoint.FOLDER else _stage(folder)
    if not _record(stage).is_file():
        return PLAIN
    nets = _method(_run(stage), stage).nets
    return nets[net].model.product if net in nets else PLAIN


def adapters(folder: str | Path, net: str) -> LowRank | None:
    """What the adapters of a stage's network were trained as; None: it has none."""
    stage = _stage(places.path(folder))
    if not _record(stage).is_file():
        return None
    found = methods.adapters_of(_run(stage), stage.name).get(net)
    return found if found and found.rank else None


def find_encoders(folder: str | Path) -> Path:
    """The folder of the encoders of a checkpoint.

    They lie in a converted folder itself or beside its transformer/. Those of a training run lie in the
    store that its data was first encoded into, or the store notes where they are.

    Raises:
      InputError: there are none.
    """
    folder = _stage(places.path(folder))
    tried = [folder, folder.parent]
    if _record(folder).is_file():
        run, stage = _run(folder), folder.name
        # A store that was made from another one (the pairs of an ODE) leads to that one.
        while (data := run.stages.get(stage, {}).get("data")) and len(tried) < MOST_STORES:
            tried.append(places.within(folder.parent, str(data)))
            stage = str(data).partition("/")[0]
    for place in tried:
        if encoding.are_in(place):
            return place
    raise InputError(
        f"encoders: expected vae/ and text/ of tools/convert_wan.py, or a store with its codec, in one "
        f"of {', '.join(str(p) for p in tried)}, found none; name their folder with --encoders"
    )
