"""Files that claim, or unpack to, more than they are, and faults of the input that one line must name."""

import itertools
import json
import runpy
import struct
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from oneforcing_jax import main, sharding
from oneforcing_jax.causal import structures
from oneforcing_jax.convert import source
from oneforcing_jax.convert.torch_io import SafeTensors, TorchTensors
from oneforcing_jax.data import captions, store_meta
from oneforcing_jax.data.store import NEGATIVE_TEXT, Store
from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation.raters import prompts as study
from oneforcing_jax.evaluation.vbench import results, suite
from oneforcing_jax.families import encoders, records
from oneforcing_jax.generation import jobs, recordings
from oneforcing_jax.models.critic import HeadConfig
from oneforcing_jax.models.kernels.groups import stretches
from oneforcing_jax.models.umt5 import UMT5Config
from oneforcing_jax.models.vae_layers import VAEConfig
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import bounded
from oneforcing_jax.system.files import read_record
from oneforcing_jax.toy import codec, text
from oneforcing_jax.training import metrics

MIB = 2**20
CONVERT = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "convert_wan.py"))


@contextmanager
def refused(words, most=16):
    """Within it an error says some words, before so many MiB are taken."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=words) as error:
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most * MIB and "\n" not in str(error.value)


def packed(path, name, start=b"", size=24 * MIB):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
        made.writestr(name, start + b" " * size)
    return path


def header(shape, dtype="<f4"):
    said = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(said)) + said


def test_an_archive_is_not_unpacked_before_its_size_is_known(tmp_path):
    bomb = packed(tmp_path / "a.zip", "color_eval_results.json")
    with refused("color_eval_results.json' unpacked: expected 16 MiB at most, found 25,165,824"):
        results.read(bomb)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as made:
        for i in range(100):
            made.writestr(f"{i:05}" * 40 + ".json", b"")
    with (tmp_path / "b.zip").open("rb") as file:
        bounded.archive(file, "b.zip")
    content = bytearray((tmp_path / "b.zip").read_bytes())
    content[-10:-6] = struct.pack("<L", 2**31)  # the length of its list
    (tmp_path / "b.zip").write_bytes(content)
    with refused("its list of files: expected 4 MiB at most"):
        results.read(tmp_path / "b.zip")


NPZ = {
    "longer": header((1, 2, 3, 4, 4)),
    "wide": header((1, 2, 3, 4, 4), "|S250000"),
    "long header": b"\x93NUMPY\2\0" + struct.pack("<I", 20 * MIB),
    "claim": header((2**30, 2**30)),
    "objects": header((1, 2, 3, 4, 4), "|O"),
}


@pytest.mark.parametrize("case", NPZ)
def test_arrays_are_as_long_as_they_say(case, tmp_path):
    file = packed(tmp_path / "a.npz", "noise.npy", NPZ[case])
    with refused("another kind or a damaged one|expected arrays"):
        recordings.read_noise(file, 1, (2, 3, 4, 4), 1)
    (tmp_path / "a.npy").write_bytes(NPZ[case] + bytes(100))
    with refused("another kind or a damaged one|expected arrays"):
        recordings.read_embeddings(tmp_path / "a.npy", (1, 2, 3, 4, 4))


def test_whole_arrays_are_read(tmp_path):
    arrays = {
        "noise": np.ones((1, 2, 3, 4, 4)),
        "renoise": np.zeros((1, 1, 2, 3, 4, 4), np.float32),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        noise, renoise = recordings.read_noise(tmp_path / "a.npz", 1, (2, 3, 4, 4), 2)
        assert (noise == 1).all() and (renoise == 0).all()


def test_encoders_of_others_are_not_unpacked_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "UNPACKED", 8 * MIB)
    packed(tmp_path / "codec.npz", "mean.npy", header((6 * MIB,)))
    with refused("expected a codec"):
        codec.load(tmp_path / "codec.npz")
    text.TextEncoder.train(["a red square"], 8, 8).save(tmp_path / "text")
    packed(tmp_path / "text" / "embeddings.npz", "words.npy", header((6 * MIB,)))
    with refused("expected embeddings"):
        text.load(tmp_path / "text")


READERS = {
    "a.json": (read_record, suite.read, study.read, results.read),
    "meta.json": (store_meta.read,),
    "a.jsonl": (
        lambda path: jobs.read_prompts(path),
        lambda path: list(captions._jsonl_rows(path)),
    ),
    metrics.ROWS: (lambda path: metrics.read_rows(path.parent),),
}


NUMBERED = [(name, i) for name, readers in READERS.items() for i in range(len(readers))]


@pytest.mark.parametrize(("name", "number"), NUMBERED)
@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, '{"a":' * 300 + "1" + "}" * 300]
)
def test_json_is_neither_too_deep_nor_too_long(name, number, content, tmp_path):
    (tmp_path / name).write_text(content + "\n")
    with pytest.raises(InputError):
        READERS[name][number](tmp_path / name)
    with (tmp_path / name).open(
        "wb"
    ) as file:  # a file with a hole, which takes no room on the disk
        file.truncate(80 * MIB if name != metrics.ROWS else 2 * MIB)
        file.seek(0, 2)
        file.write(b"\n")
    if name != "a.jsonl" or number == 0:  # captions are as long as their data, line by line
        with refused("MiB at most|damaged"):
            READERS[name][number](tmp_path / name)


@pytest.mark.parametrize("layout", [(1,), (3, 3, 3), (1, 2, 2, 2), (4, *(1,) * 30)])
def test_blocks_begin_where_the_ones_before_them_end(layout):
    ends = [sum(layout[: i + 1]) for i in range(len(layout))]
    causal = structures.block_causal(layout)
    assert [group.queries for group in causal] == [
        (e - n, e) for n, e in zip(layout, ends, strict=True)
    ]
    together = stretches(structures.teacher_forcing(layout))
    prefixes = list(itertools.chain.from_iterable(stretch.prefixes for stretch in together))
    starts = [e - n for n, e in zip(layout, ends, strict=True) for _ in range(n)]
    assert prefixes[: len(starts)] == prefixes[len(starts) :] == starts


SECOND = (
    ('{"prompt": "b", "seed": 4294967296}', "expected as seed a whole number from 0"),
    ('{"prompt": "b", "seed": -1}', "expected as seed a whole number from 0"),
    ('{"prompt": "b", "seed": true}', "expected as seed a whole number from 0"),
    ('{"prompt": "b", "sead": 1}', "found 'sead' too"),
    ('{"prompt": " "}', "expected a prompt, found none"),
    ('{"prompt": "\\ud800"}', "expected Unicode text"),
)


@pytest.mark.parametrize(("line", "message"), SECOND)
def test_a_file_of_prompts_is_read_to_its_end_first(line, message, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "seed": 4294967295}\n' + line)
    with pytest.raises(InputError, match=f"line 2: .*{message}"):
        jobs.read_prompts(tmp_path / "a.jsonl")


def dry(tmp_path, *overrides, config="configs/noise.py"):
    options = [f"--config={config}", f"--workdir={tmp_path}", "--dry_run"]
    with pytest.raises(SystemExit) as end:
        main.main([*options, *(f"--config.{change}" for change in overrides)])
    return str(end.value.code)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mesh.fsdp=-1", "expected -1 for one axis at most, found it for data and fsdp"),
        ("run=", "field 'run': expected stages among"),
        ("run=teacher,teacher", "each once"),
        ("latents=", "found the section 'latents'; name a field of it, such as 'latents."),
        ("head.layers=0,0", "expected each layer once, found"),
        ("wandb=\udcff", "field 'wandb': expected Unicode text"),
        ("latents.frames=100001", "a whole number from 1 to 100,000"),
        ("stages.one_forcing.data=", "expected a store"),
    ],
)
def test_the_dry_run_refuses_what_training_would(change, message, tmp_path):
    assert message in dry(tmp_path, change)


@pytest.mark.parametrize(
    "changes",
    [
        ("run=ode_pairs", "generator.out_dim=7"),
        ("run=exam", "teacher.out_dim=7"),
        ("run=report", "generator.in_dim=7"),
        ("run=world", "generator.text_dim=9"),
        ("run=world", "generator.text_len=2"),
        ("run=world", "latents.channels=49"),
        ("evaluation.long=2000000000",),
    ],
)
def test_the_dry_run_looks_at_sizes_that_fail_later(changes, tmp_path):
    assert "error: " in dry(tmp_path, *changes, config="configs/toy.py")


ENDS = {
    "import sys; sys.exit(0)": "line 3: SystemExit: 0",
    "raise SystemExit": "line 3: SystemExit",
    "raise GeneratorExit": "line 3: GeneratorExit",
    "f = lambda: f(); f()": "RecursionError",
    "from ml_collections import ConfigDict as C; c = C(); c.a = c; return c": "one that holds itself",
    "raise type('E', (Exception,), {'__str__': lambda s: 1 / 0})": "line 3: E: ;",
}


@pytest.mark.parametrize("line", ENDS)
def test_a_config_does_not_end_the_command(line, tmp_path):
    (tmp_path / "c.py").write_text(f"\ndef get_config():\n    {line}\n")
    assert ENDS[line] in dry(tmp_path, "seed=1", config=tmp_path / "c.py")


@pytest.mark.parametrize(
    "name", [3, None, ["a.safetensors"], "", "../a.safetensors", "/a.safetensors", "a.bin"]
)
def test_an_index_names_files_beside_it(name, tmp_path):
    index = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"a": name, "b": "b.safetensors"}}))
    with pytest.raises(InputError, match="expected names of .safetensors files beside it"):
        source.parts(tmp_path)


def test_a_shard_does_not_say_how_many_others_are_looked_for(tmp_path):
    (tmp_path / "diffusion_pytorch_model-00001-of-999999999999.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="expected 10,000 files of one model at most"):
        source.parts(tmp_path)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, 3, device="meta"), torch.zeros(1).expand(2**40)],
    ids=["meta", "strides"],
)
def test_tensors_without_values_are_refused(tensor, tmp_path):
    torch.save({"a": tensor}, tmp_path / "a.pt")
    with refused("expected a tensor with its values, found one without"):
        TorchTensors(tmp_path / "a.pt")


def test_headers_of_weights_are_bounded(tmp_path):
    packed(tmp_path / "a.pt", "archive/data.pkl", size=80 * MIB)
    with refused("data.pkl' unpacked: expected 64 MiB at most", most=90):
        TorchTensors(tmp_path / "a.pt")
    packed(tmp_path / "b.pt", "archive/data/0")
    with refused("found 'archive/data/0' packed in it"):
        TorchTensors(tmp_path / "b.pt")
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 20 * MIB))
        file.truncate(21 * MIB)
    with refused("its header: expected 16 MiB at most"):
        SafeTensors.specs(tmp_path / "a.safetensors")


def test_records_in_each_others_place_are_named(tmp_path):
    for place, config in (("vae", UMT5Config()), ("text", VAEConfig())):
        (tmp_path / place).mkdir()
        net = records.describe(config) | {"dtype": "float32"}
        (tmp_path / place / "model.json").write_text(json.dumps({"nets": {"params_model": net}}))
    for weights in (True, False):
        with pytest.raises(
            InputError, match="expected a network of .*Config, found one of .*Config"
        ):
            encoders.load(tmp_path, weights=weights)


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 0},
        {"heads": 10**400},
        {"layers": 10**6},
        {"width": "8"},
        {"width": -8},
        {"other": 1},
    ],
)
def test_sizes_of_a_record_are_those_of_networks(change):
    record = records.describe(UMT5Config())
    assert records.config_of(record) == UMT5Config(dtype=np.float32)
    with pytest.raises(InputError, match="sizes that are not known here"):
        records.config_of(record | {"config": record["config"] | change})


def test_words_of_a_tokenizer_have_vectors(tmp_path):
    text.TextEncoder.train(["a red square"], 8, 8).save(tmp_path)
    file = tmp_path / "tokenizer.json"
    said = json.loads(file.read_text())
    for change in ({"a": 10**6}, {"<unknown>": 7}):
        changed = said | {"model": said["model"] | {"vocab": said["model"]["vocab"] | change}}
        file.write_text(json.dumps(changed))
        with pytest.raises(InputError, match="expected a tokenizer"):
            text.load(tmp_path)


@pytest.mark.parametrize("shape", [(8, 9), (9, 8), (8,), ()])
def test_the_negative_text_is_like_the_others(shape, tmp_path):
    store = Store.create(tmp_path / "a", 1, {"text": ((8, 8), "float32")})
    store.write_shared(NEGATIVE_TEXT, np.zeros(shape, np.float32))
    with pytest.raises(InputError, match=r"expected a negative text \[8, 8\]"):
        store.negative_text()


@pytest.mark.parametrize("only", ["", ",", "vae,"])
def test_no_part_is_not_all_of_them(only, tmp_path):
    with pytest.raises(SystemExit, match="expected parts among"):
        CONVERT["main"]([f"--source={tmp_path}", f"--out={tmp_path / 'a'}", f"--only={only}"])


def test_one_axis_takes_what_the_others_leave():
    with pytest.raises(InputError, match="for one axis at most"):
        sharding.make_mesh({"data": -1, "fsdp": -1})
    with pytest.raises(InputError, match="each layer once"):
        HeadConfig((1, 1))
    with pytest.raises(InputError, match="each once"):
        Run.of(configs.load("configs/noise.py", ["--config.run=teacher,teacher"]))
