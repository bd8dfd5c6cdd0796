"""Tables of figures in the pages, and the one file that they are made of."""

import json
import re
import runpy
import shutil
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = runpy.run_path(str(ROOT / "tools/tables.py"))
PAGES = ("README.md", "docs/performance.md", "docs/runbook.md", "docs/results.toml")
# As `bench gpu` writes it, a part of it missing.
GPU = {
    "when": "2027-01-02T03:04:05+00:00", "commit": "abc1234", "card": {"name": "NVIDIA B200"},
    "versions": {"jax": "0.12.1"},
    "parts": {
        "streaming": {"steady_blocks_s": [0.02, 0.04], "diffusion_s": 0.41234, "utilisation": 0.5},
        "vae": {"error": "took longer than 90 s"},
        "updates": {"updates": {"generator": {"step_s": 5.0}, "critic": {"step_s": 3.0}}},
    },
}  # fmt: skip


@pytest.fixture
def copy(tmp_path):
    """The pages and the file, to be changed."""
    for page in PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    return tmp_path


def change(root, old, new, page="docs/results.toml"):
    text = (root / page).read_text()
    assert old in text
    (root / page).write_text(text.replace(old, new))


def test_the_pages_say_what_the_file_says():
    TOOL["main"](["--check"])


def test_every_figure_says_how_it_was_come_by_and_is_used():
    results = tomllib.loads((ROOT / "docs/results.toml").read_text())
    made = results.pop("tables")
    said = "".join(made.values()) + str(results["derived"])
    for name, group in results.items():
        kind = group["kind"]
        assert kind in {"measured", "planned", "published", "reported", "taken", "derived"}, name
        assert kind != "measured" or group["card"], name
        for figure in group["figures"]:
            assert re.search(rf"\b{figure}\b", said), figure


def test_a_changed_figure_changes_all_pages_and_what_follows_from_it(copy):
    change(copy, "critic = { value = 6.74", "critic = { value = 4.96")
    with pytest.raises(SystemExit, match="README.md: expected the tables of .*found others; run "):
        TOOL["main"](["--check"], copy)
    TOOL["main"]([], copy)
    TOOL["main"](["--check"], copy)
    assert "| **7.0 s**, 1 clip on 1 GPU |" in (copy / "README.md").read_text()
    assert "4.96 s, 44%" in (copy / "docs/performance.md").read_text()
    runbook = (copy / "docs/runbook.md").read_text()
    assert "7.0 s a clip on an H200 | **3.1 h**" in runbook and "| 17 | 51 |" in runbook


def test_figures_of_a_measurement_take_the_place_of_a_group(copy):
    (copy / "gpu.json").write_text(json.dumps(GPU))
    TOOL["main"]([f"--fill=h200={copy / 'gpu.json'}"], copy)
    readme = (copy / "README.md").read_text()
    assert "mean | **30 ms** | 95 ms" in readme and "| **0.41 s** |" in readme
    assert "Measured on 2027-01-02 in bfloat16 with JAX 0.12.1, at commit abc1234" in readme
    assert "together at 3b33b5a" in readme and "| **4.0 s**, 1 clip" in readme
    speeds = (copy / "docs/performance.md").read_text()
    assert "**0.412 s**, 50% of the data sheet" in speeds and "| 0.521 s | 1.66 s |" in speeds


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("iteration = { f", "critic = { f", "expected one figure critic, found two"),
        ("critic = {", "block = {", "expected TOML, found: Cannot overwrite a value"),
        ("critic + gen", "judge + gen", "formula of figures before it for iteration: .*judge"),
        ("{decoding}", "{coding}", "expected figures for table h200, found no 'coding'"),
        ("{h200.jax}", "{h200.flax}", "expected figures for table speed, found no .*'flax'"),
        ("\nspeed = '", "\npace = '", "README.md: expected tables of .*, found 'speed'"),
        ("\n[tables]", "\n[tables]\nnew = ''", "expected tables that pages have, found 'new'"),
    ],
)
def test_a_wrong_file_is_one_line(old, new, line, copy):
    change(copy, old, new)
    with pytest.raises(SystemExit, match=f"^error: .*{line}"):
        TOOL["main"]([], copy)


def test_a_measurement_of_something_else_is_one_line(copy):
    (copy / "other.json").write_text("{}")
    with pytest.raises(SystemExit, match="expected a measurement of a group .*, found 'h200'"):
        TOOL["main"]([f"--fill=h200={copy / 'other.json'}"], copy)
