"""A student, its codec and its text encoder as a folder that diffusers loads as one pipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from oneforcing_jax.causal.plan import make_plan
from oneforcing_jax.convert import keys, sizes, theirs, to_torch
from oneforcing_jax.convert.to_student import Student
from oneforcing_jax.convert.to_torch import Stored
from oneforcing_jax.convert.torch_io import write_safetensors
from oneforcing_jax.families import encoders, records
from oneforcing_jax.generation.pretrained import Source
from oneforcing_jax.models.umt5 import UMT5Config
from oneforcing_jax.models.vae_layers import VAEConfig
from oneforcing_jax.system import room
from oneforcing_jax.system.files import staged

# Networks beside the transformer: our folder, its record's kind, their folder, library and class, and the
# name of the file of weights.
PARTS = (
    (encoders.CODEC, VAEConfig, "vae", "diffusers", "AutoencoderKLWan", to_torch.WEIGHTS),
    (encoders.TEXT, UMT5Config, "text_encoder", "transformers", "UMT5EncoderModel", "model.safetensors"),
)  # fmt: skip
# The file that makes videos of these folders, which is copied into them.
CODE, CLASS = "causal_pipeline", "OneForcingPipeline"


def export(student: Student, out: Path, dtype: str | None = None) -> None:
    """Writes transformer, VAE, text encoder, tokenizer, scheduler and the pipeline's file.

    Args:
      student: from `to_student.find`.
      out: the folder.
      dtype: of the transformer, "float32" or "bfloat16"; None: as stored. The others are as stored.

    Raises:
      InputError: too little room on the disk.
    """
    source, stored, beside = student
    parts = [Stored(beside / ours, "model", False) for ours, *_ in PARTS]
    needed = sum(room.size(part.tree, None) for part in (stored, *parts))
    room.check_disk(f"pipeline of {stored.path}", needed, out)
    with staged(out) as temporary:
        temporary.mkdir()
        to_torch.write_folder(stored, temporary / "transformer", dtype, source.config.num_heads)
        for part, (ours, kind, name, _, _, file) in zip(parts, PARTS, strict=True):
            _write(part, records.described(beside / ours, kind), temporary / name, file)
        tokenizer = beside / encoders.TEXT / records.TOKENIZER
        shutil.copytree(tokenizer, temporary / records.TOKENIZER)
        _scheduler(temporary / "scheduler", source.shift)
        shutil.copy(Path(__file__).with_name(f"{CODE}.py"), temporary)
        index = _index(source, temporary / records.TOKENIZER)
        (temporary / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    print(f"{stored.path} and the encoders of {beside} -> {out}")


def _write(stored: Stored, config: Any, out: Path, file: str) -> None:
    """One network beside the transformer, in the names of its library, with its config.json."""
    import torch

    out.mkdir()
    with torch.device("meta"):
        empty = theirs.empty("vae" if isinstance(config, VAEConfig) else "text", config, {})
    if isinstance(config, VAEConfig):
        empty.save_config(out)
    else:
        empty.config.save_pretrained(out)
    key_map = theirs.key_map(config)
    state = empty.state_dict()
    shapes = {name: tuple(state[name].shape) for name in key_map}
    dtypes = {name: to_torch.plain_dtype(stored, leaf) for name, leaf in key_map.items()}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, leaf, array in stored.leaves(key_map):
            yield name, keys.tensor(leaf, array, shapes[name])

    write_safetensors(out / file, shapes, dtypes, tensors())


def _scheduler(out: Path, shift: float) -> None:
    """What a pipeline of Wan must have; this one asks it nothing."""
    import diffusers

    diffusers.FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(out)


def _index(source: Source, tokenizer: Path) -> dict[str, Any]:
    """model_index.json: classes of the parts, and what the pipeline's file asks for."""
    import diffusers

    first = source.first_frames or source.block_frames
    own, steps = source.block_frames, (source.steps, source.shift)
    plan = make_plan(first + own, own, *steps, first, source.first_steps)
    time, space = source.family.strides
    said = json.loads((tokenizer / "tokenizer_config.json").read_text())
    return {
        "_class_name": [CODE, CLASS],
        "_diffusers_version": diffusers.__version__,
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "tokenizer": ["transformers", said.get("tokenizer_class", "T5TokenizerFast")],
        **{name: [library, kind] for _, _, name, library, kind, _ in PARTS},
        "sigmas": plan[-1].sigmas,
        "first_sigmas": plan[0].sigmas,
        "block_frames": source.block_frames,
        "first_frames": first,
        "num_frames": 1 + (source.frames - 1) * time,
        "height": source.rows * space,
        "width": source.columns * space,
        "text_len": source.config.text_len or sizes.TEXT_LEN,
    }
