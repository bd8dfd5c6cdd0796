"""Files of adapters beside a transformer while it makes videos: chosen without a compilation.

All that are given are read when the model is loaded. Every choice of them has the same shapes, for what it
lacks of the common rank is zero; and parameters are arguments of the compiled programs.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from oneforcing_jax import sharding
from oneforcing_jax.convert import lora
from oneforcing_jax.convert.lora import Lora, Place
from oneforcing_jax.errors import InputError
from oneforcing_jax.generation import pretrained, streaming
from oneforcing_jax.generation.streaming import VideoModel
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models.model import Model
from oneforcing_jax.models.products import low_rank
from oneforcing_jax.models.products.low_rank import DOWN, UP, LowRank
from oneforcing_jax.models.products.plain import PLAIN
from oneforcing_jax.models.trees import Params


class File(NamedTuple):
    """A file of adapters, and what they are multiplied by."""

    file: Path
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Of the file or folder, without its ending."""
        return self.file.stem

    @classmethod
    def of(cls, text: str) -> File:
        """ "FILE" or "FILE:WEIGHT", of an option."""
        name, _, number = text.rpartition(":")
        try:
            weight = float(number) if name else math.nan
        except ValueError:
            weight = math.nan
        if math.isfinite(weight):
            return cls(Path(name), weight)
        return cls(Path(text))

    @property
    def said(self) -> str:
        """What names the file and its weight in a video's file."""
        file = self.file / lora.WEIGHTS if self.file.is_dir() else self.file
        lora.check_there(file)
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return f"{digest[:16]}:{self.weight:g}"


class Adapters:
    """Adapters of files beside one transformer.

    Args:
      model: the transformer, without adapters of its own.
      given: files and weights; their names differ.
      together: whether all may be chosen at once; otherwise one at a time, in products of less rank.

    Attributes:
      model: with the adapters as leaves.
      weights: of each file by its name, as given.

    Raises:
      MissingInput, InputError: a file that cannot be read or is of another model, one name twice, or a model
        that has adapters already.
    """

    def __init__(self, model: Model, given: Sequence[File], together: bool = True) -> None:
        self.weights = {one.name: one.weight for one in given}
        if len(self.weights) < len(given):
            raise InputError(
                f"lora: expected files of different names, found {[one.name for one in given]}; rename one"
            )
        if model.product is not PLAIN:
            raise InputError(
                "lora: expected plain weights, found some with adapters of their own; merge these first with "
                "oneforcing import-lora"
            )
        self._files = {one.name: lora.read(one.file) for one in given}
        shapes = sharding.unbox(model.shapes)
        for file in self._files.values():
            file.check(shapes)
        ranks = [_ranks([file]) for file in self._files.values()]
        ranks += [_ranks(self._files.values())] if together else []
        most = max((rank for found in ranks for rank in found.values()), default=0)
        names = {_name(path) for found in ranks for path, _ in found}
        where = tuple(re.escape(name) for name in sorted(names))
        self.model = (
            model.with_product(low_rank.product(LowRank(most, where=where))) if most else model
        )

    def chosen(self, base: Params, weights: Mapping[str, float], mesh: Mesh) -> Params:
        """Parameters with some files, each times its weight; what they do not change is shared with `base`.

        Args:
          base: parameters of the plain transformer, whose layers lie apart.
          weights: by names of files; none gives what the base gives.
          mesh: where they lie.

        Raises:
          InputError: a name that is not known, or more files at once than were expected.
        """
        if unknown := [name for name in weights if name not in self._files]:
            raise InputError(
                f"lora: expected a name among {sorted(self._files)}, found {unknown[0]!r}; choose one"
            )
        chosen = [(self._files[name], weight) for name, weight in weights.items() if weight]
        flat, like = _flat(base), _flat(self.model.in_use(mesh, apart=True))
        new: dict[Any, np.ndarray] = {
            path: np.zeros(leaf.shape, np.float32)
            for path, leaf in like.items()
            if path[-1] in (DOWN, UP)
        }
        taken: dict[Place, int] = {}
        for file, weight in chosen:
            for place, pair in file.pairs.items():
                path = _path(place)[:-1]
                start = taken.get(place, 0)
                taken[place] = end = start + pair.rank
                down, up = new[*path, DOWN], new[*path, UP]
                if end > len(up):
                    raise InputError(
                        f"lora: expected one file at a time, found {list(weights)}; choose one of them"
                    )
                down[:, start:end] = pair.down
                up[start:end] = weight * pair.scale * np.asarray(pair.up, np.float32)
            for place, difference in file.differences.items():
                where = _path(place)
                old = np.asarray(new.get(where, flat[where]), np.float32)
                new[where] = old + weight * np.reshape(
                    np.asarray(difference, np.float32), old.shape
                )
        placed = {
            p: jax.device_put(x.astype(like[p].dtype), like[p].sharding) for p, x in new.items()
        }
        found = unflatten_dict(flat | placed)
        return found | {"blocks": tuple(found["blocks"][i] for i in range(len(base["blocks"])))}


class Adapted(VideoModel):
    """A causal student that may be given adapters.

    Args:
      student: makes latents, without adapters.
      model: what the student is of, and the encoders.
      adapters: that it may be given.

    Attributes:
      adapters: as given.
    """

    def __init__(self, student: Student, model: VideoModel, adapters: Adapters) -> None:
        with_leaves = Student(adapters.model, student.params, student.window, student.mesh)
        super().__init__(with_leaves, model.source, model.encoders, model.mesh, model.encode)
        self.adapters, self._student, self._base = adapters, with_leaves, student.params

    def adapted(self, weights: Mapping[str, float]) -> Adapted:
        """The same compiled programs with some adapters; see `Adapters.chosen`."""
        other, mesh = copy.copy(self), self.mesh or sharding.first_device()
        other.maker = self._student.of(self.adapters.chosen(self._base, weights, mesh))
        return other


def load(
    checkpoint: str | Path,
    encoders: str | Path | None,
    files: Sequence[File],
    together: bool = True,
    **options: Any,
) -> Adapted:
    """A causal student with its encoders, and adapters.

    Args:
      checkpoint, encoders, options: see `streaming.load`.
      files: of adapters.
      together: whether it begins with all of them; otherwise with none, and `adapted` chooses one at a time.

    Raises:
      MissingInput, InputError: see `streaming.load` and `Adapters`.
    """
    source = pretrained.find(checkpoint, options.get("ema", False), options.get("dtype"))
    adapters = Adapters(source.model, files, together)  # files are refused before weights are read
    model = streaming.load(checkpoint, encoders, **options)
    student: Any = model.maker
    made = Adapted(student, model, adapters)
    return made.adapted(adapters.weights if together else {})


def _flat(params: Any) -> dict[Any, Any]:
    """Leaves by their paths, of parameters whose layers lie apart; a layer's number is part of its path."""
    return flatten_dict(dict(params) | {"blocks": dict(enumerate(params["blocks"]))})


def _path(place: Place) -> tuple[Any, ...]:
    (first, *rest), layer = place
    return (first, *rest) if layer is None else (first, layer, *rest)


def _name(path: tuple[str, ...]) -> str:
    """Of the matrix with this kernel, as products know it."""
    return ".".join(path[1 if path[0] == "blocks" else 0 : -1])


def _ranks(files: Iterable[Lora]) -> dict[Place, int]:
    """Ranks that files need together."""
    found: dict[Place, int] = {}
    for file in files:
        for place, pair in file.pairs.items():
            found[place] = found.get(place, 0) + pair.rank
    return found
