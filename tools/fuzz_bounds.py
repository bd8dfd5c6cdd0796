"""Files that claim, or unpack to, far more than they are, for tools/fuzz.py; and one fault in each of the
places where one is known to hide."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_evaluation
import numpy as np
import torch
from fuzz_fixture import LATENTS, NOISE, ROOT, STAGE, TEXT, Case, generation

from oneforcing_jax.convert import sizes
from oneforcing_jax.data.store import NEGATIVE_TEXT
from oneforcing_jax.families import records
from oneforcing_jax.models.umt5 import UMT5Config
from oneforcing_jax.models.vae_layers import VAEConfig

MIB = 2**20
TOY = ROOT / "configs" / "toy.py"
# Overrides that name no run, each with its config.
FIELDS = (
    (NOISE, "mesh.fsdp=-1"), (NOISE, "mesh.data=-2"), (NOISE, "mesh.context=7"), (NOISE, "run="),
    (NOISE, "run=one_forcing,one_forcing"), (NOISE, "run=no"), (NOISE, "latents="), (NOISE, "="),
    (NOISE, "head.layers=0,0"), (NOISE, "head.layers=7"), (NOISE, "head.layers=()"),
    (NOISE, "generator.out_dim=7"), (NOISE, "teacher.out_dim=7"), (NOISE, "critic.in_dim=7"),
    (NOISE, "critic.text_len=7"), (NOISE, "latents.rows=5"), (NOISE, "latents.channels=3"),
    (NOISE, "wandb=\udcff"), (NOISE, "stages.one_forcing.data="), (NOISE, "stages.one_forcing.method="),
    (NOISE, "stages.one_forcing.init.critic="), (NOISE, "blocks.steps=()"),
    (NOISE, "blocks.steps=1000,1000"), (TOY, "ode.kept=()"), (TOY, "ode.kept=99"),
    (TOY, "run=world generator.text_dim=9"), (TOY, "run=world latents.channels=77"),
    (TOY, "run=ode_pairs generator.out_dim=7"), (TOY, "run=exam teacher.out_dim=7"),
    (TOY, "run=report generator.out_dim=7"),
)  # fmt: skip
# Overrides that ask for more than anybody waits for.
LONG = (
    (NOISE, "latents.frames=100001"), (NOISE, "latents.frames=2000000000"), (TOY, "latents.frames=99999999"),
    (TOY, "evaluation.long=2000000000"), (TOY, "evaluation.samples=2000000000"),
    (NOISE, "latents.rows=2147483647"), (NOISE, "blocks.frames=2147483647"),
)  # fmt: skip
# Lines of configs that end, or do not end, in ways of their own.
LINES = (
    "import sys; sys.exit(0)", "raise SystemExit(0)", "import sys; sys.exit()", "raise GeneratorExit",
    "raise BaseException('x')", "f = lambda: f(); f()", "raise ExceptionGroup('a', [ValueError('b')])",
    "raise type('E', (Exception,), {'__str__': lambda s: 1 / 0})", "c.head.layers = (0, 0)", "c.run = ()",
    "exit(0)", "c.mesh = {'data': -1, 'fsdp': -1}",
)  # fmt: skip
# Second lines of a file of prompts that are seen before the first video is made.
SECOND = (
    '{"prompt": "a blue circle", "seed": 4294967296}', '{"prompt": "a blue circle", "seed": -1}',
    '{"prompt": "a blue circle", "seed": true}', '{"prompt": "a blue circle", "seed": 1.0}',
    '{"prompt": "a blue circle", "seed": "1"}', '{"prompt": "a blue circle", "sead": 1}',
    '{"prompt": "a purple cow"}', '{"prompt": ""}', '{"prompt": "a a a a a a a a a a a a"}',
    '{"prompt": "\\ud800"}', '{"prompt": ["a"]}', "{}", "", "3", "[" * 5000,
)  # fmt: skip


def field(rng: random.Random, given: Path, rows: tuple[tuple[Path, str], ...] = FIELDS) -> Case:
    """Overrides that the dry run must refuse."""
    path, changes = rng.choice(rows)
    overrides = [f"--config.{change}" for change in changes.split(" ")]
    return Case(
        "main", [f"--config={path}", f"--workdir={given / 'new'}", "--dry_run", *overrides], True
    )


def prompt(rng: random.Random, given: Path) -> Case:
    """A prompt that is no text, or a file of prompts whose second line is wrong."""
    if rng.random() < 0.2:
        return Case("generate", generation(given, "--prompt=a red square \udcff"), wrong=True)
    (given / "p.jsonl").write_text('{"prompt": "a red square"}\n' + rng.choice(SECOND) + "\n")
    return Case("generate", generation(given, f"--prompts={given / 'p.jsonl'}"), wrong=True)


def weight(rng: random.Random, given: Path) -> Case:
    """Tensors without values, and indexes that name what does not lie beside them."""
    source = given / "student.pt"
    if rng.random() < 0.5:
        content = torch.load(source)
        key = rng.choice(sorted(content["generator"]))
        value = content["generator"][key]
        content["generator"][key] = rng.choice(
            (value.to("meta"), value.view(-1)[:1].expand(value.numel()).reshape(value.shape)[..., :0],
             torch.zeros(1).expand(value.shape), value.to_sparse(), None, 3, [value])
        )  # fmt: skip
        torch.save(content, source)
    else:
        name = "diffusion_pytorch_model"
        source = given / "folder"
        (source / "transformer").mkdir(parents=True)
        shutil.copy(given / "student.safetensors", source / "transformer" / "a.safetensors")
        other: Any = rng.choice(
            (3, None, ["a.safetensors"], {}, "", "../../student.safetensors", "..", "a", "no.safetensors",
             str(given / "student.safetensors"), "x/../a.safetensors", "a.safetensors\0", True)
        )  # fmt: skip
        table = rng.choice(({"a": other}, {"a": "a.safetensors", "b": other}))
        index = source / "transformer" / f"{name}.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": table}))
    return Case(
        "convert_wan", [f"--source={source}", f"--out={given / 'new'}", "--num_heads=2"], True
    )


def record(rng: random.Random, given: Path) -> Case:
    """Records in another's place, nested too deep, or of another form, where they are read."""
    how = rng.choice(("places", "tokenizer", "store", "rows"))
    if how == "places":
        configs: list[sizes.Config] = [
            VAEConfig(width=8),
            UMT5Config(16, 8, 8, 8, 2, 1),
            VAEConfig(width=8),
        ]
        for place, config in zip(("vae", "text"), configs[rng.randrange(2) :], strict=False):
            (given / "wan" / place).mkdir(parents=True)
            net = records.describe(config) | {
                "dtype": rng.choice(("float32", "float32", "int8", 3))
            }
            (given / "wan" / place / "model.json").write_text(
                json.dumps({"nets": {"params_model": net}})
            )
        options = generation(given, "--prompt=a red square", f"--encoders={given / 'wan'}")
        return Case("generate", options, wrong=True)
    if how == "tokenizer":
        file = given / "encoders" / "text_encoder" / "tokenizer.json"
        said = json.loads(file.read_text())
        vocabulary = said["model"]["vocab"]
        change: Callable[[], object] = rng.choice((
            lambda: vocabulary.pop(rng.choice(sorted(vocabulary))), vocabulary.clear,
            lambda: vocabulary.update(a=10**6), lambda: vocabulary.update({"<unknown>": -1}),
            lambda: said.update(model=None), lambda: said.update(pre_tokenizer={"type": "x"}),
        ))  # fmt: skip
        change()
        file.write_text(json.dumps(said))
        return Case("generate", generation(given, "--prompt=a red square"), wrong=True)
    deep = "[" * 10**5
    if how == "store":
        file = given / "store" / "meta.json"
        said = json.loads(file.read_text())
        key, value = rng.choice((("count", 1e300), ("count", True), ("fields", []), ("version", None),
                                 ("samples_per_shard", "x"), ("attributes", 3)))  # fmt: skip
        file.write_text(rng.choice((deep, '{"a":' * 10**5, json.dumps(said | {key: value}))))
        return Case("check", [str(given / "store")], wrong=True)
    file = given / "run" / STAGE / "metrics.jsonl"
    line = rng.choice((deep, "{}", '{"iteration": "x"}', "3", "\xff", '{"iteration": 1, "a": "b"}'))
    file.write_bytes(line.encode("latin1") + b"\n" + file.read_bytes())
    return Case("report", [str(given / "run"), f"--out={given / 'new.html'}"], wrong=True)


def negative(rng: random.Random, given: Path) -> Case:
    """A negative text of another shape than the texts of a store's samples."""
    shutil.copytree(given / "store", given / "again" / "noise")
    rows, width = TEXT
    shape = rng.choice(
        ((rows, width + 1), (rows + 1, width), (width,), (), (1, rows, width), (0, width))
    )
    np.save(
        given / "again" / "noise" / "shared" / f"{NEGATIVE_TEXT}.npy", np.zeros(shape, np.float32)
    )
    return Case("main", [f"--config={NOISE}", f"--workdir={given / 'again'}"], wrong=True)


# Things that are small and claim to be large.


def _packed(file: Path, name: str, size: int, start: bytes = b"") -> None:
    """An archive with a member that unpacks to `size` bytes, written in pieces."""
    archive = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive as made, made.open(name, "w", force_zip64=True) as member:
        member.write(start)
        for _ in range(size // MIB):
            member.write(b" " * MIB)


def _header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """The header of an array of NumPy."""
    content = io.BytesIO()
    said = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, said)
    return content.getvalue()


def _archive(rng: random.Random, given: Path) -> Case:
    file, size = given / "results.zip", rng.choice((40, 400, 1400)) * MIB
    if rng.random() < 0.5:
        _packed(file, "color_eval_results.json", size)
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
            for i in range(rng.choice((40, 90_000))):
                made.writestr(f"{i:090}.json", b"")
    return Case("vbench", ["score", str(file), f"--out={given / 'new.json'}"], wrong=True)


def _array(rng: random.Random, given: Path) -> Case:
    shape = (1, *LATENTS)
    size = rng.choice((300, 1400)) * MIB
    file, how = given / "a.npz", rng.choice(("longer", "wide", "claim", "v2"))
    if how == "longer":
        _packed(file, "noise.npy", size, _header(shape))
    elif how == "wide":
        _packed(file, "noise.npy", size, _header(shape, f"|S{size // int(np.prod(shape))}"))
    elif how == "claim":
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("noise.npy", _header((2**20, 2**20)))
    else:
        _packed(file, "noise.npy", size, b"\x93NUMPY\2\0" + struct.pack("<I", size))
    options = ("--prompt=a red square", "--first_steps=1000", f"--noise_file={file}")
    return Case("generate", generation(given, *options), wrong=True)


def _encoder(rng: random.Random, given: Path) -> Case:
    name = rng.choice(("codec.npz", "text_encoder/embeddings.npz"))
    member = "mean.npy" if name == "codec.npz" else "words.npy"
    count = rng.choice((300, 1400)) * MIB // 4
    _packed(given / "encoders" / name, member, 4 * count, _header((count,)))
    return Case("generate", generation(given, "--prompt=a red square"), wrong=True)


def _features(rng: random.Random, given: Path) -> Case:
    here = given / "evaluation"
    content = rng.choice(
        (_header((2**33, 2)), _header((3, 2), "|S900000000"), _header((2**62, 2**62)))
    )
    (here / "features.npy").write_bytes(content + bytes(24))
    command = next(
        row for row in fuzz_evaluation.arguments(here, given / "run") if row[0] == "measures"
    )
    return Case("measures", command[2], wrong=True)


def _text(rng: random.Random, given: Path) -> Case:
    """JSON and lists that are as large as they say, and would take many times as much."""
    here = given / "evaluation"
    long = rng.choice((b"[" + b"[]," * (8 * MIB) + b"[]]", b'{"a": "' + b"a" * (70 * MIB) + b'"}'))
    how = rng.choice(("list", "results", "run", "store", "model", "line", "lines"))
    if how == "list":
        (here / "list.json").write_bytes(long)
        return Case(
            "vbench", ["check", f"--vbench={here / 'list.json'}", f"--videos={here / 'ours'}"], True
        )
    if how == "results":
        (here / "results" / "color_eval_results.json").write_bytes(long)
        return Case(
            "vbench", ["score", str(here / "results"), f"--out={given / 'new.json'}"], wrong=True
        )
    if how == "store":
        (given / "store" / "meta.json").write_bytes(long)
        return Case("check", [str(given / "store")], wrong=True)
    if how == "model":
        (given / "weights" / "model.json").write_bytes(long)
        return Case(
            "export_torch",
            [f"--checkpoint={given / 'weights'}", f"--out={given / 'e'}", "--layout=diffusers"],
            wrong=True,
        )
    if how in ("line", "lines"):
        content = (
            b'{"prompt": "' + b"a" * (3 * MIB) + b'"}' if how == "line" else b"a\n" * 3_000_000
        )
        (given / "p.jsonl").write_bytes(content)
        return Case("generate", generation(given, f"--prompts={given / 'p.jsonl'}"), wrong=True)
    (given / "run" / STAGE / "config.json").write_bytes(long)
    return Case("generate", generation(given, "--prompt=a red square"), wrong=True)


def _weights(rng: random.Random, given: Path) -> Case:
    source, how = (
        given / "student.pt",
        rng.choice(("packed", "strides", "header", "claim", "shards")),
    )
    if how == "packed":
        _packed(source, "archive/data.pkl", rng.choice((300, 1400)) * MIB)
    elif how == "strides":
        content = torch.load(source)
        key = next(name for name in content["generator"] if name.endswith("patch_embedding.weight"))
        wide = rng.choice((2**20, 2**24, 2**40))
        content["generator"][key] = torch.zeros(1).expand(wide, 2, 1, 2, 2)
        torch.save(content, source)
    else:
        source = given / "folder"
        source.mkdir()
        name, row = (
            "diffusion_pytorch_model",
            '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}',
        )
        if how == "header":
            table = ("{" + ",".join(row % i for i in range(1_500_000)) + "}").encode()
            content = struct.pack("<Q", len(table)) + table
        else:
            content = struct.pack("<Q", rng.choice((2**34, 2**63, 10**8))) + b"{}"
        ending = "-00001-of-99999999999" if how == "shards" else ""
        (source / f"{name}{ending}.safetensors").write_bytes(content)
    return Case(
        "convert_wan", [f"--source={source}", f"--out={given / 'new'}", "--num_heads=2"], wrong=True
    )


def _fields(rng: random.Random, given: Path) -> Case:
    return field(rng, given, LONG)


def bounds(rng: random.Random, given: Path) -> Case:
    """Archives, arrays, JSON, weights and fields that claim or unpack to far more than they are."""
    return rng.choice((_archive, _array, _encoder, _features, _text, _weights, _fields))(rng, given)


def captions(given: Path) -> Path:
    """Writes captions of the videos of the fixture."""
    (given / "c.csv").write_text("video,caption\n0.mp4,a red square\n1.mp4,a blue circle\n")
    return given / "c.csv"


def good(given: Path) -> list[Case]:
    """The commands on good input, in a copy of the fixture with `captions`."""
    run = given / "run"
    of_encoders = f"--checkpoint={given / 'encoders'}"
    found = (
        ("main", [f"--config={TOY}", f"--workdir={given / 'new'}", "--dry_run"]),
        ("generate", generation(given, "--prompt=a red square")),
        *(("check", [str(given / name)]) for name in ("run/one_forcing", "weights", "store")),
        ("convert_wan", [f"--source={given / 'student.pt'}", f"--out={given / 'w'}", "--num_heads=2"]),
        ("encode_videos", [f"--videos={given / 'videos'}", f"--captions={given / 'c.csv'}", of_encoders,
                           f"--out={given / 's'}", f"--config={NOISE}"]),
        ("export_torch", [f"--checkpoint={run / STAGE}", f"--out={given / 'e.pt'}"]),
        ("import_lmdb", [f"--lmdb={given / 'lmdb'}", of_encoders, f"--text_len={TEXT[0]}",
                         f"--out={given / 'l'}"]),
        *((name, options) for name, _, options in fuzz_evaluation.arguments(given / "evaluation", run)
          if name != "raters"),  # whose votes are too few to count
    )  # fmt: skip
    return [Case(command, options) for command, options in found]
