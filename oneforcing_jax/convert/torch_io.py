"""Files of PyTorch's world: safetensors and `.pt`/`.pth`, read tensor by tensor and written whole.

bfloat16 goes through as bits (`ml_dtypes.bfloat16` here): nothing takes a detour over float32.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from oneforcing_jax.convert.keys import Tensors
from oneforcing_jax.errors import InputError, MissingPackage
from oneforcing_jax.system import bounded

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
# ComfyUI keeps the tokenizer's file, as bytes, among the tensors of the text encoder.
_NO_TENSORS = ("spiece_model",)
# Beside weights of 8 bits: what they are multiplied with.
_SCALES = ("scaled_fp8", "scale_weight", "weight_scale", "scale_input", "input_scale")
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_LFS = b"version https://git-lfs"
# Pages of a mapped file count as the process's memory until the mapping closes.
_REOPEN_BYTES = 128 * 2**20
# Bytes of the names and shapes of tensors in a safetensors file.
_HEADER = 16 * 2**20


def import_torch() -> Any:
    """PyTorch, which is needed for `.pt` and `.pth` files alone.

    Raises:
      MissingPackage: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingPackage(
            "files of PyTorch (.pt, .pth) need PyTorch, which is not installed; run "
            'pip install "oneforcing_jax[torch]"'
        ) from error
    return torch


def _broken(path: Path, kind: str, reason: object) -> ValueError:
    """The error for a file that does not read as what it should be."""
    with path.open("rb") as file:
        start = file.read(len(_LFS))
    if start == _LFS:
        found = "the Git LFS pointer to one"
    else:
        text = " ".join(str(reason).split()) or type(reason).__name__
        found = f"{path.stat().st_size} bytes that do not read as one ({text[:160]})"
    return InputError(
        f"{path}: expected a {kind} file, found {found}; it is truncated or damaged: "
        "download or copy it again"
    )


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found none; download or copy it again")


class SafeTensors(Tensors):
    """The tensors of one or several safetensors files.

    Args:
      files: whose names do not overlap.
      prefix: before names, which lose it.

    Raises:
      InputError: a file that is missing, damaged, or holds a tensor of another file too.
    """

    def __init__(self, files: Sequence[Path], prefix: str = "") -> None:
        self._file: dict[str, tuple[Path, str]] = {}
        self.shapes, self.dtypes = {}, {}
        for path in files:
            specs = self.specs(path)
            _check_wide(path, specs)
            for stored, (shape, dtype) in specs.items():
                name = stored.removeprefix(prefix)
                if name in self._file:
                    raise InputError(
                        f"{path}: expected the tensors of one model over its files, found {name} "
                        f"in {self._file[name][0].name} too; leave the files of one version only"
                    )
                self._file[name] = path, stored
                self.shapes[name], self.dtypes[name] = shape, DTYPES[dtype]

    @classmethod
    def specs(cls, path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shapes and dtypes of the tensors of one file, as safetensors writes these.

        Raises:
          InputError: the file is missing or damaged.
        """
        specs: dict[str, tuple[tuple[int, ...], str]] = cls._with(path, cls._specs)
        return {name: spec for name, spec in specs.items() if name not in _NO_TENSORS}

    @classmethod
    def metadata(cls, path: Path) -> dict[str, str]:
        """What the header of one file says beside its tensors; it raises as `specs` does."""
        found: dict[str, str] = cls._with(path, lambda file: file.metadata() or {})
        return found

    @staticmethod
    def _with(path: Path, read: Callable[[Any], Any]) -> Any:
        _check_file(path)
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise MissingPackage(
                f"{path}: its kind of file needs the package safetensors, which is not installed; run "
                'pip install "oneforcing_jax[torch]"'
            ) from error
        with path.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8).rjust(8, b"\0"))
        if length <= path.stat().st_size:  # what lies about its length is told from others below
            bounded.check_size(f"{path}, its header", length, _HEADER)
        try:
            with safe_open(path, framework="np") as file:
                return read(file)
        except (SafetensorError, OSError, ValueError, UnicodeDecodeError) as error:
            raise _broken(path, "safetensors", error) from error

    @staticmethod
    def _specs(file: Any) -> dict[str, tuple[tuple[int, ...], str]]:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {n: (tuple(s.get_shape()), str(s.get_dtype())) for n, s in slices.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        path, stored = self._file[name]
        array: np.ndarray = self._with(path, lambda file: file.get_tensor(stored))
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def _check_wide(path: Path, specs: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Refuses tensors of 8 bits or fewer."""
    narrow = {name: dtype for name, (_, dtype) in specs.items() if dtype not in DTYPES}
    if not narrow:
        return
    name = next((name for name in narrow if name not in _SCALES), next(iter(narrow)))
    scaled = "scaled " if any(key.rpartition(".")[2] in _SCALES for key in specs) else ""
    raise InputError(
        f"{path}: expected tensors of {', '.join(DTYPES)}, found {scaled}{narrow[name]} ({name}, and "
        f"{len(narrow) - 1} more), which is quantised; get the file of this model in bf16 or fp16"
    )


def load_torch(path: Path) -> Any:
    """What a `.pt` or `.pth` file holds, its tensors mapped and not read; runs no pickled code.

    Raises:
      InputError: the file is missing, damaged, of the old format, or holds pickled code.
    """
    torch = import_torch()
    _check_file(path)
    bounded.check_torch(path)
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        # Damage inside the pickle is reported by the same exception as code in it.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is None:
            raise _broken(path, "PyTorch", error) from error
        raise InputError(
            f"{path}: expected tensors only, found pickled code ({code.group(1)}), which is not "
            "run; save the state dict alone with torch.save and convert that"
        ) from error
    except Exception as error:  # torch has no common type for what a damaged file raises
        if "mmap can only be used" in str(error):
            raise InputError(
                f"{path}: expected the zip format of torch.save, found the one before PyTorch 1.6 "
                "or a damaged file; download it again, or load and save it with torch once"
            ) from error
        raise _broken(path, "PyTorch", error) from error


class TorchTensors(Tensors):
    """A state dict inside a `.pt` or `.pth` file; wrapper prefixes of FSDP in names are dropped.

    Args:
      path: of the file.
      net: key of the state dict in the file; "" where the file is the state dict.
      content: what `load_torch` gave for it, where that is at hand.

    Raises:
      InputError: the file is not readable, or this is no state dict.
    """

    def __init__(self, path: Path, net: str = "", content: Any = None) -> None:
        self.path, self.net, self._read = path, net, 0
        state = self._state = self._open(content)
        torch, dtypes = import_torch(), {}
        for code, name in _TORCH_NAMES.items():
            dtypes[getattr(torch, name)] = DTYPES[code]
        self._name: dict[str, str] = {}
        self.shapes, self.dtypes = {}, {}
        for stored, value in state.items():
            name = _WRAPPERS.sub("", str(stored))
            where = f"{path}: {net + ': ' if net else ''}{stored}"
            dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
            if dense and (
                value.device.type != "cpu" or value.untyped_storage().nbytes() < value.nbytes
            ):
                # Also those of no strides, which repeat a few values without end.
                raise InputError(
                    f"{where}: expected a tensor with its values, found one without ({value.device.type}, "
                    f"{list(value.shape)}); save the model after its weights were loaded"
                )
            if not dense or value.dtype not in dtypes:
                found = getattr(value, "dtype", type(value).__name__)
                found = found if dense else f"{found}, {getattr(value, 'layout', 'no tensor')}"
                raise InputError(
                    f"{where}: expected a dense floating-point tensor, found {found}; give a file that "
                    "holds a state dict, or the networks 'generator', 'generator_ema', 'critic'"
                )
            if name in self._name:
                raise InputError(
                    f"{where}: expected each tensor once, found {self._name[name]} too; save the "
                    "state dict of one network"
                )
            self._name[name] = stored
            self.shapes[name], self.dtypes[name] = tuple(value.shape), dtypes[value.dtype]

    def _open(self, content: Any = None) -> Mapping[str, Any]:
        content = load_torch(self.path) if content is None else content
        state = content.get(self.net) if self.net and isinstance(content, Mapping) else content
        if not isinstance(state, Mapping):
            raise InputError(
                f"{self.path}: expected a state dict{f' {self.net!r}' if self.net else ''}, found "
                f"{type(state).__name__}; give a checkpoint of the model's weights"
            )
        return state

    def __getitem__(self, name: str) -> np.ndarray:
        """A view of the mapped file: copy what is to be kept."""
        if self._read > _REOPEN_BYTES:
            self.close()
        if not self._state:
            self._state = self._open()
        value = self._state[self._name[name]].detach().contiguous()
        self._read += value.nbytes
        return to_numpy(value)

    def close(self) -> None:
        self._state, self._read = {}, 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._name)

    def __len__(self) -> int:
        return len(self._name)


def to_numpy(tensor: Any) -> np.ndarray:
    """A CPU tensor as an array, bit by bit."""
    torch = import_torch()
    if tensor.dtype == torch.bfloat16:
        bits: np.ndarray = tensor.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: np.ndarray = tensor.numpy()
    return array


def from_numpy(array: np.ndarray) -> Any:
    """An array as a tensor, bit by bit; it shares the array's memory."""
    torch = import_torch()
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype],
    tensors: Iterator[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file from tensors that come one at a time, in any order.

    Args:
      path: of the file.
      shapes, dtypes: of every tensor, in the order of the file.
      tensors: (name, array) of each of them.
      metadata: what the header says beside them.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {}
    offsets: dict[str, int] = {}
    start = 0
    for name, shape in shapes.items():
        end = start + math.prod(shape) * dtypes[name].itemsize
        span = [start, end]
        header[name] = {"dtype": codes[dtypes[name]], "shape": shape, "data_offsets": span}
        offsets[name], start = start, end
    said = {"format": "pt", **(metadata or {})}
    text = json.dumps({"__metadata__": said, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, array in tensors:
            file.seek(8 + len(text) + offsets[name])
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def write_torch(path: Path, content: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes {network: {name: array}} as a `.pt` file of tensors.

    Raises:
      OSError: it cannot be written.
    """
    torch = import_torch()
    state = {net: {k: from_numpy(v) for k, v in arrays.items()} for net, arrays in content.items()}
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how it tells of a full disk
            raise OSError(f"cannot write {path}: {str(error).splitlines()[0]}") from error
