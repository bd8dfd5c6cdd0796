"""What was downloaded runs no code: folders name parts of this package, unless the user trusts others."""

import json
import sys

import pytest
from test_generate import ROOT

from oneforcing_jax import generate
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.generation import pretrained
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import parts

RAN = "ran"
# Names that lead to code of a folder, or to what is no such part.
TRICKS = (
    "payload", "payload.inner", "payload.inner.more", ".payload", "..payload.inner", "payload.inner\n",
    "oneforcing_jax..payload", "oneforcing_jax/../payload", "oneforcing_jax.data/../../payload.inner",
    "oneforcing_jax.payload", "oneforcing_jaxx.inner", "payload:inner", "os.path", "", ".",
    "oneforcing_jax.", None, 3, ["payload.inner"], "x" * 9999, "a." * 5000 + "a",
)  # fmt: skip
# Of this package, and no family: loaders of something else, and the module that asks families.
NO_ENCODERS = ("oneforcing_jax.setup.config", "oneforcing_jax.families.encoders",
               "oneforcing_jax.training.sources", "oneforcing_jax.toy.codec", "encoders")  # fmt: skip


@pytest.fixture
def payload(tmp_path, monkeypatch):
    """A module in the working directory whose import leaves a file; says whether it was imported."""
    inner = tmp_path / "payload" / "inner"
    for folder in (inner.parent, inner):
        folder.mkdir()
        code = f"import pathlib\n\npathlib.Path({str(tmp_path / RAN)!r}).touch()\n"
        (folder / "__init__.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(parts, "_trusted", set())
    yield (tmp_path / RAN).exists
    for name in [name for name in sys.modules if name.partition(".")[0] == "payload"]:
        del sys.modules[name]


def run_with(folder, method, **fields):
    """The folder of a stage whose config names a method, and other fields."""
    config = json.loads(configs.load(ROOT / "configs" / "toy.py").to_json())
    config["stages"]["one_forcing"]["method"] = method
    config |= fields
    stage = folder / "run" / "one_forcing"
    (stage / "checkpoints").mkdir(parents=True, exist_ok=True)
    (stage / "config.json").write_text(json.dumps(config))
    return stage


@pytest.mark.parametrize("name", TRICKS, ids=lambda name: repr(name)[:40])
def test_a_folder_names_nothing_from_elsewhere(name, payload, tmp_path):
    stage = run_with(tmp_path, name)
    with pytest.raises(ValueError, match="expected (one|a part) of"):
        pretrained.find(stage)
    (tmp_path / "encoders.json").write_text(json.dumps({"kind": name}))
    with pytest.raises(ValueError, match="encoders.json: expected (one|a part) of") as found:
        encoding.load(tmp_path)
    assert len(str(found.value)) < 1000 and not payload()


@pytest.mark.parametrize(
    "name", ["payload.inner", "methods", "..payload.inner", "os.path", "x" * 9999]
)
def test_a_run_or_network_names_no_family_from_elsewhere(name, payload, tmp_path):
    stage = run_with(tmp_path, "one_forcing", family=name)
    with pytest.raises(ValueError, match="family: .*config.json: expected (one|a part) of"):
        pretrained.find(stage)
    net = {"kind": "WanConfig", "config": {}, "dtype": "float32", "more": {"family": name}}
    (tmp_path / "model.json").write_text(json.dumps({"nets": {"params_generator": net}}))
    with pytest.raises(ValueError, match="family: .*model.json: expected (one|a part) of") as found:
        pretrained.find(tmp_path)
    assert len(str(found.value)) < 1000 and not payload()


@pytest.mark.parametrize("name", NO_ENCODERS)
def test_what_is_ours_and_no_encoders_is_refused(name, tmp_path):
    (tmp_path / "encoders.json").write_text(json.dumps({"kind": name}))
    with pytest.raises(ValueError, match="encoders.json: expected one of"):
        encoding.load(tmp_path)


def test_the_users_word_lets_a_folder_name_a_module(payload, tmp_path):
    stage = run_with(tmp_path, "payload.inner")
    options = ["--prompt=a", f"--checkpoint={stage}", f"--out={tmp_path / 'v.mp4'}"]
    with pytest.raises(
        SystemExit, match="if you know .* trust it, give --trust_parts=payload.inner"
    ):
        generate.main(options)
    assert not payload()
    with pytest.raises(SystemExit, match="METHOD and can be imported, found 'payload.inner'"):
        generate.main([*options, "--trust_parts=payload.inner"])
    assert payload()


def test_what_a_config_of_the_users_names_is_trusted(payload, tmp_path):
    (tmp_path / "encoders.json").write_text('{"kind": "payload.inner"}')
    parts.find("payload.inner", "oneforcing_jax.methods", "__name__", str)
    with pytest.raises(ValueError, match="FAMILY and can be imported, found 'payload.inner'"):
        encoding.load(tmp_path)


def test_stores_in_a_circle_end(tmp_path):
    stage = run_with(tmp_path, "one_forcing")
    file = stage / "config.json"
    config = json.loads(file.read_text())
    config["stages"]["one_forcing"]["data"] = "one_forcing/store"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="encoders: expected vae/ and text/"):
        pretrained.find_encoders(stage)
