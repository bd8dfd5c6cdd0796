"""The classes of bad input of tools/fuzz.py.

A class makes a case from random numbers in a folder that holds a copy of what `fuzz_fixture.make` made. It
may change what is there; then the command is run.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_bounds
import fuzz_evaluation
import fuzz_security
import lmdb
import numpy as np
import torch
from fuzz_fixture import LATENTS, NOISE, ROOT, STAGE, TEXT, Case, generation
from PIL import Image
from safetensors.torch import load_file, save_file

from oneforcing_jax.data.store import Store
from oneforcing_jax.setup import config as configs
from oneforcing_jax.system import integrity

# Values and bytes.

NUMBERS = ("nan", "inf", "-inf", "-1", "-0.5", "1e300", "1e-300", "99999999999999999999", "x", "", "None",
"()",
           "1,2,x", "é", "0x10", "[1]", "{}", "9" * 400)  # fmt: skip
NO_NUMBERS = ("nan", "inf", "-inf", "x", "", "()", "1,2,x", "é", "{}")


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes with one flipped bit, a cut, a hole, or other bytes in some place."""
    if not content:
        return b"\0"
    broken, at = bytearray(content), rng.randrange(len(content))
    how = rng.choice(("flip", "cut", "hole", "other"))
    if how == "flip":
        broken[at] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del broken[at:]
    elif how == "hole":
        del broken[at : at + rng.randint(1, 64)]
    else:
        broken[at : at + 16] = rng.randbytes(16)
    return bytes(broken)


# The classes.


def fields(rng: random.Random, given: Path) -> Case:
    """Values that fields of a config cannot have."""
    if rng.random() < 0.3:
        return fuzz_bounds.field(rng, given)
    path = rng.choice(
        [p for p in sorted((ROOT / "configs").glob("*.py")) if p.stem not in ("base", "tiny")]
    )
    known = list(configs.fields(configs.load(path)))
    chosen = [(*rng.choice(known), rng.choice(NUMBERS)) for _ in range(rng.randint(1, 3))]
    wrong = any(type(like) in (int, float) and v in NO_NUMBERS for _, like, v in chosen)
    overrides = [f"--config.{name}={value}" for name, _, value in chosen]
    dry = [f"--config={path}", f"--workdir={given / 'new'}", "--dry_run"]
    return Case("main", [*dry, *overrides], wrong)


def config_files(rng: random.Random, given: Path) -> Case:
    """Config files that do not parse, raise, or return something else."""
    line = rng.choice((
        "c.pop(rng_name)", "c[rng_name] = []", "c[rng_name] = None", "c[rng_name] = 'x'", "c.generatr = 1",
        "raise KeyError('x')", "return None", "return {}", "c.stages = {}", "c.run = ('no',)", "c = [c]",
        "raise SystemExit", "1 / 0", "import no_such_module", "c.stages.update({'x': c})", "return c,",
        *fuzz_bounds.LINES,
    ))  # fmt: skip
    name = rng.choice(list(configs.load(NOISE).keys()))
    source = (
        "import runpy\n\n\ndef get_config():\n"
        f"    rng_name = {name!r}\n    c = runpy.run_path({str(NOISE)!r})['get_config']()\n"
        f"    {line}\n    return c\n"
    )
    wrong = line in fuzz_bounds.LINES
    if not wrong and rng.random() < 0.3:
        at = rng.randrange(len(source))
        source = source[:at] + source[at + rng.randint(1, 5) :]
    (given / "config.py").write_text(source)
    return Case(
        "main",
        [f"--config={given / 'config.py'}", f"--workdir={given / 'new'}", "--dry_run"],
        wrong,
    )


OPTIONS = {
    "fps": ("0", "nan", "-1", "x", "inf", "1e9"), "crf": ("-1", "99", "x"), "seed": ("-1", "5000000000",
    "x"),
    "size": ("0x0", "3", "axb", "-8x8", "9x9", "1x99999999999"), "frames": ("0", "-3", "x", "3000000000",
    "100000000"),
    "shift": ("nan", "-1", "0", "inf"), "window": ("0", "-1", "x"), "sink": ("-1", "99", "x"),
    "first_frames": ("-1", "99", "x"), "steps": ("x", "", "nan", "-5", "2000", "500,900", "inf"),
    "samples": ("0", "-1", "x"), "batch": ("0", "-2", "100000000000000"), "shard": ("1/0", "3/2", "x",
    "-1/2", "1/1"),
    "mesh": ("x=2", "sequence=0", "sequence=99", "sequence=-1", "=", "sequence"), "dtype": ("x", "int8"),
    "method": ("x", ""), "checkpoint": ("/no/such", "/dev/null", "", "/"), "encoders": ("/no/such", "/",
    ""), "decoder": ("x", "", "tiny"),
    "out": ("/dev/null/x", "/proc/x.mp4", ""), "naming": ("x",), "prompt_embeds": ("/no", "/"),
    "noise_file": ("/no", "/"),
    "image": ("/no", "/", "/dev/null"), "video": ("/no", "/", "/dev/null"), "sampling_steps": ("0", "-1"),
}  # fmt: skip


# A command, an option of it, and a value that it must refuse.
TOOL_OPTIONS = (
    ("convert_wan", "source", "/no/such"), ("convert_wan", "source", "/dev/null"),
    ("convert_wan", "source", ""), ("convert_wan", "source", "/"), ("convert_wan", "num_heads", "x"),
    ("convert_wan", "num_heads", "0"), ("convert_wan", "num_heads", "-2"),
    ("convert_wan", "num_heads", "7"), ("convert_wan", "dtype", "int8"), ("convert_wan", "only", "vae"),
    ("convert_wan", "only", "x"), ("convert_wan", "only", ""), ("convert_wan", "only", ","),
    ("main", "target", ""), ("main", "redo", ""),
    ("convert_wan", "out", "/proc/x"), ("convert_wan", "out", "/dev/null"),
    ("encode_videos", "videos", "/no"), ("encode_videos", "videos", "/dev/null"),
    ("encode_videos", "captions", "/no"), ("encode_videos", "captions", "/"),
    ("encode_videos", "checkpoint", "/"), ("encode_videos", "shard", "1/0"),
    ("encode_videos", "shard", "3/2"), ("encode_videos", "config", "/no"),
    ("encode_videos", "config", "/dev/null"), ("encode_videos", "out", "/proc/x"),
    ("encode_videos", "out", "/dev/null/x"), ("export_torch", "checkpoint", "/no"),
    ("export_torch", "checkpoint", "/"), ("export_torch", "out", "/proc/x.pt"),
    ("export_torch", "out", "/dev/null/x.pt"), ("export_torch", "out", "x.txt"),
    ("export_torch", "net", "x"), ("export_torch", "net", ""), ("export_torch", "net", "../.."),
    ("export_torch", "layout", "x"), ("export_torch", "dtype", "x"),
    ("import_lmdb", "lmdb", "/no"), ("import_lmdb", "lmdb", "/dev/null"),
    ("import_lmdb", "text_len", "0"), ("import_lmdb", "text_len", "-1"),
    ("import_lmdb", "text_len", "x"), ("import_lmdb", "checkpoint", "/"),
    ("import_lmdb", "shard", "1/1"), ("import_lmdb", "out", "/proc/x"),
    ("plan", "target", "tpu:v9:2x2"), ("plan", "target", "gpu:h100:0"), ("plan", "target", "gpu:h100:x"),
    ("plan", "target", "tpu:v5p:3x5x7x9"), ("plan", "target", ""), ("plan", "target", "x:y:z"),
    ("plan", "preset", "x"), ("plan", "stage", "x"), ("plan", "search", "0"), ("plan", "search", "x"),
    ("plan", "config", "/no"), ("plan", "config", "/dev/null"),
    ("main", "preset", "x"), ("main", "preset", ""), ("main", "profile", "x"), ("main", "profile", "-1"),
    ("main", "target", "local"), ("main", "config", ""), ("main", "config", "/"),
    ("main", "workdir", "/proc/x"), ("main", "workdir", "/dev/null"), ("main", "process_id", "0"),
    ("main", "process_count", "2"), ("main", "coordinator", "nowhere"),
)  # fmt: skip


def options(rng: random.Random, given: Path) -> Case:
    """Options of generation that it must refuse."""
    name = rng.choice(sorted(OPTIONS))
    value = rng.choice(OPTIONS[name])
    more = ["--prompt=a red square", f"--{name}={value}"]
    return Case("generate", generation(given, *more), wrong=True)


def tool_options(rng: random.Random, given: Path) -> Case:
    """Options of the other commands that they must refuse."""
    command, name, value = rng.choice(TOOL_OPTIONS)
    fine: dict[str, dict[str, Any]] = {
        "convert_wan": {"source": given / "student.pt", "out": given / "new", "num_heads": 2},
        "encode_videos": {"videos": given / "videos", "captions": given / "c.csv", "config": NOISE,
                          "checkpoint": given / "encoders", "out": given / "new"},
        "export_torch": {"checkpoint": given / "run" / STAGE, "out": given / "new.pt"},
        "import_lmdb": {"lmdb": given / "lmdb", "checkpoint": given / "encoders", "text_len": TEXT[0],
                        "out": given / "new"},
        "plan": {"config": NOISE, "target": "local"},
        "main": {"config": NOISE, "workdir": given / "new"},
    }  # fmt: skip
    fuzz_bounds.captions(given)
    options = [f"--{k}={v}" for k, v in (fine[command] | {name: value}).items()]
    return Case(command, ["train", *options] if command == "plan" else options, wrong=True)


def databases(rng: random.Random, given: Path) -> Case:
    """LMDBs that are cut, damaged, incomplete, or claim other sizes."""
    folder = given / "lmdb"
    how = rng.choice(("cut", "damaged", "claim", "lost", "words", "nan", "longer"))
    if how in ("cut", "damaged"):
        content = (folder / "data.mdb").read_bytes()
        cut = content[: rng.randrange(len(content))]
        (folder / "data.mdb").write_bytes(cut if how == "cut" else _damaged(content, rng))
    else:
        shape = rng.choice(
            ("10000000 2 2 4 4", "4 2 2 4", "4 2 2 4 5", "4 0 2 4 4", "x", "-4 2 2 4 4", "")
        )
        values: dict[str, tuple[bytes, bytes | None]] = {
            "claim": (b"latents_shape", shape.encode()),
            "lost": (rng.choice((b"latents_shape", b"latents_1_data", b"prompts_2_data")), None),
            "words": (b"prompts_1_data", rng.choice((b"\xff\xfe", b"", b"a" * 9999))),
            "nan": (b"latents_0_data", np.full(LATENTS, np.nan, np.float16).tobytes()),
            "longer": (b"latents_3_data", b"\0" * 3),
        }
        key, value = values[how]
        with lmdb.open(str(folder), map_size=1 << 24) as made, made.begin(write=True) as put:
            put.delete(key)
            if value is not None:
                put.put(key, value)
        (folder / "lock.mdb").unlink()
    return Case("import_lmdb", [
        f"--lmdb={folder}", f"--checkpoint={given / 'encoders'}", f"--text_len={TEXT[0]}",
        f"--out={given / 'new_store'}",
    ], wrong=how == "claim")  # fmt: skip


def prompts(rng: random.Random, given: Path) -> Case:
    """Files of prompts, of other encodings, damaged, empty, or of unlikely length."""
    if rng.random() < 0.4:
        return fuzz_bounds.prompt(rng, given)
    fine = b'{"prompt": "a red square", "seed": 3}\n{"prompt": "a blue circle"}\n'
    content: bytes = rng.choice((
        rng.randbytes(200), "a red square".encode("utf-16"), b"", b"\n\n \n", b"\0\0", b'{"prompt": 3}',
        b"[" * 100000,
        b'{"prompt": "a", "seed": -1}', b'{"prompt": "a", "seed": 1e99}', b'{"prompt": "\\ud800"}',
        b"a " * 500000,
        b'{"seed": 1}', b"null", b'{"prompt": ""}', _damaged(fine, rng), b"{}" * 9,
        "..\n/\n\u202e\n".encode(),
    ))  # fmt: skip
    file = given / rng.choice(("p.txt", "p.jsonl"))
    file.write_bytes(content)
    return Case("generate", generation(given, f"--prompts={file}"))


def pictures(rng: random.Random, given: Path) -> Case:
    """First frames that are damaged, of unlikely size, or no pictures."""
    kind = rng.choice(("png", "jpeg", "gif", "webp", "bmp", "tiff"))
    content, colours = io.BytesIO(), rng.randbytes(16 * 16 * 3)
    Image.frombytes("RGB", (16, 16), colours).save(content, kind)
    broken = _damaged(content.getvalue(), rng)
    if rng.random() < 0.2:
        broken = content.getvalue()
    elif rng.random() < 0.3:
        broken = rng.choice(
            (b"", b"GIF89a", rng.randbytes(300), b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP")
        )
    (given / f"i.{kind}").write_bytes(broken)
    return Case(
        "generate", generation(given, "--prompt=a red square", f"--image={given / f'i.{kind}'}")
    )


def arrays(rng: random.Random, given: Path) -> Case:
    """Files of noise and of embeddings: not finite, of other shapes or types, damaged, or programs."""
    if rng.random() < 0.2:
        return fuzz_bounds.negative(rng, given)
    rows, shape = np.random.default_rng(rng.randrange(99)), rng.choice(((1, *LATENTS), (1, *TEXT)))
    array: Any = rows.normal(size=shape).astype(np.float32)
    how = rng.choice(("nan", "shape", "objects", "words", "whole", "damaged", "damaged"))
    if how == "nan":
        array.flat[rng.randrange(array.size)] = rng.choice((np.nan, np.inf))
    elif how == "shape":
        array = array[..., 1:]
    elif how == "objects":
        array = np.array([{"a": 1}, None], object)
    elif how == "words":
        array = array.astype(str)
    content, noise = io.BytesIO(), len(shape) == 5
    np.savez(content, noise=array) if noise else np.save(content, array)
    broken = _damaged(content.getvalue(), rng) if how == "damaged" else content.getvalue()
    file = given / ("a.npz" if noise else "a.npy")
    file.write_bytes(broken)
    option = f"--noise_file={file}" if noise else f"--prompt_embeds={file}"
    wrong = how in ("nan", "shape", "objects", "words")
    return Case("generate", generation(given, "--prompt=a red square", option), wrong)


def _harm(file: Path, rng: random.Random) -> None:
    if rng.random() < 0.2:
        file.unlink()
    else:
        file.write_bytes(_damaged(file.read_bytes(), rng))


def damage(rng: random.Random, given: Path) -> Case:
    """Checkpoints, weights and stores with flips, cuts and missing files: seen, or no array changed."""
    folder = given / rng.choice(("run/one_forcing", "weights", "store"))
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if folder.name != "store":
        whole = {p.parent for p in files if p.name == integrity.SUMS}
        files = [p for p in files if whole & set(p.parents)]
    shutil.copytree(folder, given / "whole")
    file = rng.choice(files)
    before = file.read_bytes()
    _harm(file, rng)
    unchanged = file.exists() and file.read_bytes() == before

    def same() -> bool:
        if folder.name != "store":
            return unchanged or file.name == integrity.SUMS
        one, other = Store.open(folder), Store.open(given / "whole")
        return all(
            np.array_equal(a[name], b[name])
            for i in range(len(other)) if one.done()[i]
            for a, b in [(one.read(i), other.read(i))] for name in b
        )  # fmt: skip

    return Case("check", [str(folder)], same=same)


def records(rng: random.Random, given: Path) -> Case:
    """What runs, weights, encoders and stores say of themselves, damaged or of another form."""
    if rng.random() < 0.4:
        return fuzz_bounds.record(rng, given)
    files = sorted(p for p in given.rglob("*.json") if p.name != integrity.SUMS)
    file = rng.choice([p for p in files if not {"store", "noise", "evaluation"} & set(p.parts)])
    how = rng.choice(("damaged", "list", "key", "value", "empty"))
    if how == "damaged":
        file.write_bytes(_damaged(file.read_bytes(), rng))
    elif how == "list":
        file.write_text(rng.choice(("[]", "null", "3", '"x"', "{}")))
    elif how == "empty":
        file.write_bytes(b"")
    else:
        inner = content = json.loads(file.read_text())
        while isinstance(inner, dict) and inner:
            outer, key = inner, rng.choice(sorted(inner))
            inner = inner[key]
            if rng.random() < 0.3:
                break
        if how == "key":
            outer.pop(key)
        else:
            outer[key] = rng.choice((None, [], "x", -1, 1e300, {"a": 1}))
        file.write_text(json.dumps(content))
    if file.is_relative_to(given / "weights") or rng.random() < 0.3:
        source = given / ("weights" if file.is_relative_to(given / "weights") else f"run/{STAGE}")
        return Case("export_torch", [f"--checkpoint={source}", f"--out={given / 'e.pt'}"])
    return Case("generate", generation(given, "--prompt=a red square"))


def weights(rng: random.Random, given: Path) -> Case:
    """Files of weights: not finite, incomplete, of other shapes and types, or damaged."""
    if rng.random() < 0.4:
        return fuzz_bounds.weight(rng, given)
    name = rng.choice(("student.pt", "student.safetensors"))
    file, pt = given / name, name.endswith(".pt")
    how = rng.choice(("nan", "missing", "shape", "more", "deep", "type", "damaged", "damaged"))
    if how == "damaged":
        file.write_bytes(_damaged(file.read_bytes(), rng))
    else:
        content: Any = torch.load(file, weights_only=True) if pt else load_file(file)
        tensors: dict[str, torch.Tensor] = content["generator"] if pt else content
        key = rng.choice(sorted(tensors))
        value = tensors[key].clone()
        if how == "nan":
            value.view(-1)[0] = rng.choice((float("nan"), float("inf")))
        elif how == "shape":
            value = torch.zeros(*value.shape, 2)
        elif how == "type":
            value = torch.zeros(value.shape, dtype=torch.int8)
        tensors[key] = value.clone()
        if how == "missing":
            del tensors[key]
        elif how in ("more", "deep"):
            prefix = "model." if pt else ""
            tensors[f"{prefix}blocks.{'999999999' if how == 'deep' else 'x'}.weight"] = (
                value.clone()
            )
        torch.save(content, file) if pt else save_file(content, file)
    source = file
    if not pt:
        source = given / "folder" / "transformer"
        source.mkdir(parents=True)
        shutil.move(file, source / "diffusion_pytorch_model.safetensors")
        source = source.parent
    arguments = [f"--source={source}", f"--out={given / 'converted'}", "--num_heads=2"]
    return Case("convert_wan", arguments, wrong=how != "damaged")


def clips(rng: random.Random, given: Path) -> Case:
    """Lists of captions and videos that are damaged, incomplete, or point elsewhere."""
    rows = [{"video": f"{i}.mp4", "caption": "a red square"} for i in range(2)]
    fine = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = b"video,caption\n0.mp4,a red square\n1.mp4,a blue circle\n"
    content: bytes = rng.choice((
        _damaged(fine, rng), _damaged(table, rng), b"", rng.randbytes(100), b"[" * 100000,
        fine.decode().encode("utf-16"),
        b'video,caption\n0.mp4,"' + b"a" * 200000 + b'"\n', b"video,caption\n../../x.mp4,a\n",
        b"video\n0.mp4\n",
        b'{"video": "0.mp4", "caption": "\\ud800"}\n', b'{"video": 0, "caption": 1}\n', b"null\n",
        fine + fine,
    ))  # fmt: skip
    file = given / rng.choice(("c.jsonl", "c.csv"))
    file.write_bytes(content)
    if rng.random() < 0.4:
        file.write_bytes(fine if file.suffix == ".jsonl" else table)
        _harm(given / "videos" / f"{rng.randrange(2)}.mp4", rng)
    return Case("encode_videos", [
        f"--videos={given / 'videos'}", f"--captions={file}", f"--checkpoint={given / 'encoders'}",
        f"--out={given / 'new_store'}", f"--config={NOISE}",
    ])  # fmt: skip


def evaluation(rng: random.Random, given: Path) -> Case:
    """What the evaluation's commands read, damaged or missing, and options that they must refuse."""
    here = given / "evaluation"
    if rng.random() < 0.3:
        command, *wrong = rng.choice(fuzz_evaluation.WRONG)
        return Case(command, [option.replace("@", str(here)) for option in wrong], wrong=True)
    command, read, options = rng.choice(fuzz_evaluation.arguments(here, given / "run"))
    harmed = here / rng.choice(read)
    if harmed.is_dir():
        harmed = rng.choice(sorted(harmed.iterdir()))
    if harmed.suffix == ".json" and rng.random() < 0.5:
        harmed.write_text(
            rng.choice(("[]", "null", "3", "{}", '[{"a": 1}]', '{"a": [1]}', "[" * 10**5))
        )
    else:
        _harm(harmed, rng)
    return Case(command, options)


CLASSES: dict[str, Callable[[random.Random, Path], Case]] = {
    made.__name__: made
    for made in (
        fields,
        config_files,
        options,
        tool_options,
        prompts,
        pictures,
        arrays,
        damage,
        records,
        weights,
        clips,
        databases,
        evaluation,
        fuzz_bounds.bounds,
    )
} | fuzz_security.CLASSES
