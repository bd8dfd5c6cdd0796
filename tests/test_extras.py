"""Commands on the base install: help, and one line that names the extra which is missing."""

import os
import subprocess
import sys
from pathlib import Path

from oneforcing_jax.system.command import EXTRAS

ROOT = Path(__file__).parents[1]
# Runs command lines, one after the other, where no package of an extra can be imported; the base install has
# huggingface_hub through another.
BASE = f"""
import importlib.abc, runpy, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(EXTRAS) - {"huggingface_hub"}}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())

def run(name, *arguments):
    sys.argv = [name, *arguments]
    try:
        if name.endswith(".py"):
            sys.path[0] = "tools"
            runpy.run_path(name, run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code
    except BaseException as error:
        return f"{{type(error).__name__}}: {{error}}"
"""
# What checks the project itself needs the extra `test`.
OURS = ("fuzz*.py", "kill_stages.py")


def commands():
    files = (ROOT / "tools").glob("*.py")
    tools = [f"tools/{p.name}" for p in files if not any(map(p.match, OURS))]
    modules = [
        p for p in (ROOT / "oneforcing_jax").rglob("*.py") if "\nif __name__ ==" in p.read_text()
    ]
    modules += (ROOT / "oneforcing_jax").rglob("__main__.py")
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in modules}
    return sorted([*tools, *(name.removesuffix(".__main__") for name in names)])


def on_base(program):
    return subprocess.run(
        [sys.executable, "-c", BASE + program], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_help_of_every_command():
    names = commands()
    assert {"tools/convert_wan.py", "oneforcing_jax.main", "oneforcing_jax.serve"} < set(names)
    done = on_base(f"""
wrong = {{name: code for name in {names} if (code := run(name, "--help"))}}
print(wrong, file=sys.stderr)
sys.exit(bool(wrong))
""")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("usage: ") == len(names)


def test_what_is_missing_is_one_line_that_names_the_extra(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "model.pt").write_bytes(b"")
    cases = [
        ("tools/convert_wan.py", "torch", f"--source={tmp_path / 'model.safetensors'}", "--out=x"),
        ("tools/convert_wan.py", "torch", f"--source={tmp_path / 'model.pt'}", "--out=x"),
        ("tools/load_live.py", "serve", "127.0.0.1:1", "--prompt=a"),
    ]
    done = on_base(f"""
for name, _, *arguments in {cases!r}:
    print(run(name, *arguments))
""")
    said = done.stdout.splitlines()
    assert len(said) == len(cases), done.stdout + done.stderr
    for line, (name, extra, *_) in zip(said, cases, strict=True):
        assert line.startswith("error: ") and f'oneforcing_jax[{extra}]"' in line, (name, line)
