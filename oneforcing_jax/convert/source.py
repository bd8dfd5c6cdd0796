"""Where published checkpoints are: which files of a folder or repository are which model.

Wan2.1's folder holds `diffusion_pytorch_model*.safetensors` with `config.json`, and two `.pth`
files; a folder of diffusers holds `transformer/`, `vae/` and `text_encoder/`; ComfyUI has one
`.safetensors` file of any name for each; distilled generators are one `.pt` file, and the tiny decoder is
`taew2_1` or `taew2_2`, .pth or .safetensors.
"""

from __future__ import annotations

import dataclasses
import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oneforcing_jax.convert import refused
from oneforcing_jax.convert.keys import Tensors
from oneforcing_jax.convert.tiny_decoder import TELLING
from oneforcing_jax.convert.torch_io import SafeTensors, TorchTensors, load_torch
from oneforcing_jax.errors import InputError
from oneforcing_jax.system import hub
from oneforcing_jax.system.files import read_record

PARTS = ("transformer", "vae", "text")
# A model that no folder of Wan2.1 holds.
TINY = "tiny"
# Endings of PyTorch's files.
TORCH = (".pt", ".pth")
# Files of one model, at most.
SHARDS = 10_000
_STEM = "diffusion_pytorch_model"
_PTH = {
    "vae": ("Wan2.1_VAE.pth", "Wan2.2_VAE.pth"),
    "text": ("models_t5_umt5-xxl-enc-bf16.pth",),
}
_FOLDERS = {
    "transformer": ("transformer", _STEM),
    "vae": ("vae", _STEM),
    "text": ("text_encoder", "model"),
}
EXPECTED = (
    f"a folder of Wan2.1 ({_STEM}*.safetensors, {_PTH['vae'][0]}, {_PTH['text'][0]}) or Wan2.2's 5B, one of "
    "diffusers (transformer/, vae/, text_encoder/), one .safetensors file of such a model, a .pt file, or "
    "taew2_1.pth"
)
# Folders with the tokenizer, of Wan2.1 and of diffusers.
_TOKENIZERS = ("google/umt5-xxl", "tokenizer")
# Small files of a repository by which a model with two experts is known.
_TELLING = ["model_index.json", "*/config.json"]
# A shard: what it is of, its number, and of how many.
_NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
# A file of an index, which lies beside it.
_PLAIN = re.compile(r"[^/\\\0]+\.safetensors")


@dataclasses.dataclass(frozen=True)
class Part:
    """The files of one model.

    Attributes:
      name: of `PARTS`, or `TINY`.
      files: safetensors files, or one file of PyTorch.
      settings: config.json; empty where there is none.
      tokenizer: folder of the text encoder's tokenizer; None where there is none.
    """

    name: str
    files: tuple[Path, ...]
    settings: Mapping[str, Any]
    tokenizer: Path | None = None

    def open(self) -> Tensors:
        """Its tensors, to be read one at a time."""
        if self.files[0].suffix in TORCH:
            return TorchTensors(self.files[0])
        shapes = {
            key: shape for file in self.files for key, (shape, _) in SafeTensors.specs(file).items()
        }
        return SafeTensors(self.files, refused.prefix(shapes))

    def __str__(self) -> str:
        return str(self.files[0] if len(self.files) == 1 else self.files[0].parent)


def check_parts(only: Sequence[str] | None) -> None:
    """Raises InputError unless every name is one of `PARTS`."""
    if unknown := [part for part in only or () if part not in PARTS]:
        raise InputError(f"expected parts among {', '.join(PARTS)}, found {unknown[0]!r}")


def locate(
    source: str, only: Sequence[str] = PARTS, begun: str | None = None
) -> tuple[Path, str | None]:
    """The folder or file on disk; a Hugging Face repository is downloaded, or its download resumed.

    Args:
      source: a path; OWNER/NAME[@REVISION]; or with :FILE behind it for one file of a repository.
      only: parts to download.
      begun: the commit that a conversion of this source began with; None: the revision's newest.

    Returns:
      the place, and the commit that was downloaded; None: the source was on disk.

    Raises:
      InputError: neither on disk nor to be had.
    """
    path = Path(source)
    if path.exists():
        _check_one(path, only)
        return path, None
    if not (named := hub.REPOSITORY.fullmatch(source)):
        raise InputError(
            f"{source}: expected {EXPECTED}, or a Hugging Face repository OWNER/NAME[@REVISION][:FILE], "
            "found nothing of that name; check the path"
        )
    repository, revision, file = named[1], begun or named[2], named[3]
    _check_one(Path(repository) / (file or ""), only)
    patterns = [file] if file else [pattern for name in only for pattern in _patterns(name)]
    if not file:  # what tells an unsupported model is small
        small = hub.download(source, repository, revision, _TELLING)
        _check_one(small, only)
        revision = hub.commit(small) or revision  # a branch may move between two requests
    folder = hub.download(source, repository, revision, patterns)
    if file and not (folder / file).is_file():
        raise InputError(f"{source}: the repository has no file {file}; check its list of files")
    return (folder / file if file else folder), hub.commit(folder)


def _check_one(path: Path, only: Sequence[str]) -> None:
    if "transformer" in only:
        refused.check_experts(path)


def _patterns(name: str) -> list[str]:
    folder, stem = _FOLDERS[name]
    patterns = [f"{folder}/config.json", f"{folder}/{stem}*.safetensors*"]
    if name == "text":
        patterns += [f"{tokenizer}/*" for tokenizer in _TOKENIZERS]
    if name in _PTH:
        return [*patterns, *_PTH[name]]
    return [*patterns, "config.json", f"{stem}*.safetensors*"]


def parts(folder: Path, only: Sequence[str] | None = None) -> list[Part]:
    """The models in a folder.

    Args:
      folder: in the layout of Wan2.1 or of diffusers, or of files that say by their tensors what they are.
      only: the ones that must be there; None: whichever are.

    Raises:
      InputError: one that must be there is not, there is no model at all, or files are missing.
    """
    found = {name: part for name in PARTS if (part := _part(folder, name)) is not None}
    found = found or _loose(folder)
    missing = [name for name in only or () if name not in found]
    if missing or not found:
        names = sorted(path.name for path in folder.iterdir())
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        pt = [name for name in names if name.endswith(".pt")]
        advice = f"give the file {folder / pt[0]}" if pt else "give the folder that holds them"
        what = f"no {' and no '.join(missing)}" if missing else "no model"
        raise InputError(
            f"{folder}: expected {EXPECTED}, found {what} among: {shown or 'nothing'}; {advice}"
        )
    return [found[name] for name in only or PARTS if name in found]


def single(path: Path) -> Part | None:
    """The model that one file holds, with the other shards of it; None for networks in a .pt file.

    Raises:
      InputError: it is not readable, holds another model, or shards of it are missing.
    """
    if path.suffix in TORCH:
        content = load_torch(path)
        tiny = isinstance(content, Mapping) and TELLING in content
        return Part(TINY, (path,), {}) if tiny else None
    if path.suffix != ".safetensors":
        quantised = " of quantised weights" * (path.suffix == ".gguf")
        raise InputError(
            f"{path}: expected {EXPECTED}, found another kind of file{quantised}; give one of these"
        )
    numbered = _NUMBERED.fullmatch(path.name)
    files = _shards(path.parent, numbered[1]) if numbered else (path,)
    return _told(files)


def _told(files: tuple[Path, ...]) -> Part:
    """The model that files of safetensors hold, as their names of tensors tell."""
    shapes = {key: shape for file in files for key, (shape, _) in SafeTensors.specs(file).items()}
    refused.check_tensors(shapes, str(files[0]))
    name, folder = refused.kind(shapes), files[0].parent
    if not name:
        raise InputError(
            f"{files[0]}: expected the tensors of a Wan model, found {', '.join(list(shapes)[:3])}; "
            f"give {EXPECTED}"
        )
    return _with_tokenizer(Part(name, files, {} if name == TINY else _settings(folder)), folder)


def _loose(folder: Path) -> dict[str, Part]:
    """Models in files of any name, as ComfyUI has them.

    Raises:
      InputError: two of them are the same model.
    """
    found: dict[str, Part] = {}
    for path in sorted(folder.glob("*.safetensors")):
        known = _NUMBERED.fullmatch(path.name) or refused.kind(SafeTensors.specs(path))
        if not known or any(path in part.files for part in found.values()):
            continue  # another's, or a shard of one that is found
        part = single(path)
        if part is not None and part.name in found:
            other = found[part.name].files[0].name
            raise InputError(
                f"{folder}: expected one {part.name}, found {other} and {path.name}; give the file"
            )
        found |= {part.name: part} if part else {}
    return found


def _part(folder: Path, name: str) -> Part | None:
    part = _weights(folder, name)
    return part and _with_tokenizer(part, folder)


def _with_tokenizer(part: Part, folder: Path) -> Part:
    if part.name != "text":
        return part
    tokenizers = (folder / tokenizer for tokenizer in _TOKENIZERS)
    return dataclasses.replace(part, tokenizer=next(filter(Path.is_dir, tokenizers), None))


def _weights(folder: Path, name: str) -> Part | None:
    subfolder, stem = _FOLDERS[name]
    files = _shards(folder / subfolder, stem)
    if files:
        return Part(name, files, _settings(folder / subfolder))
    if name in _PTH:
        files = tuple(path for file in _PTH[name] if (path := folder / file).exists())
        return Part(name, files[:1], {}) if files else None
    files = _shards(folder, stem)
    return Part(name, files, _settings(folder)) if files else None


def _shards(folder: Path, stem: str) -> tuple[Path, ...]:
    """The safetensors files of one model: its index's, the only one, or the numbered ones."""
    index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if index.is_file():
        table = read_record(index).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise InputError(f"{index}: expected a weight_map, found none; download it again")
        for name in table.values():
            if not isinstance(name, str) or not _PLAIN.fullmatch(name):
                raise InputError(
                    f"{index}: expected names of .safetensors files beside it, found {str(name)[:60]!r}; "
                    "download it again"
                )
        files = tuple(folder / name for name in sorted(set(table.values())))
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise InputError(
                f"{index}: expected {len(files)} files beside it, found {', '.join(missing)} "
                "missing; download them again"
            )
        return files
    return (single,) if single.exists() else _numbered(folder, stem)


def _numbered(folder: Path, stem: str) -> tuple[Path, ...]:
    """The shards of one model where no index lists them: their names say how many there are."""
    files = sorted(folder.glob(f"{glob.escape(stem)}-*.safetensors"))
    found = {
        tuple(match.groups()[1:]) for file in files if (match := _NUMBERED.fullmatch(file.name))
    }
    for number, count in sorted(found)[:1]:
        if int(count) > SHARDS:
            raise InputError(
                f"{folder}: expected {SHARDS:,} files of one model at most, found one of {count[:20]}; "
                "download them again"
            )
        wanted = {(f"{i:0{len(number)}d}", count) for i in range(1, int(count) + 1)}
        missing = [f"{stem}-{i}-of-{n}.safetensors" for i, n in sorted(wanted - found)]
        if missing or found - wanted:
            lacking = f"{', '.join(missing[:4])}{', ...' * (len(missing) > 4)} missing"
            raise InputError(
                f"{folder}: expected {len(wanted)} files {stem}-*-of-{count}.safetensors, found "
                f"{lacking if missing else 'more'}; download them again, into a folder of their own"
            )
    return tuple(files)


def _settings(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    return read_record(path) if path.is_file() else {}
