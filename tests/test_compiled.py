"""Compiled programs from one process to the next: what is loaded, and what is compiled again."""

import os
import subprocess
import sys

import pytest

from oneforcing_jax import compiled, integrity

# Says what it was told, the result, and whether a program was loaded and one compiled. Its argument is a
# folder, "" for none given, or "none".
SCRIPT = """
import sys, jax
from oneforcing_jax import compiled
folder = {"": None, "none": ""}.get(sys.argv[1], sys.argv[1])
with compiled.kept(folder, lambda line: print("said", line)) as programs:
    result = float(jax.jit(lambda x: x @ x)(jax.numpy.ones((4, 4)))[0, 0])
print(result, programs.loaded > 0, programs.compiled > 0)
"""


@pytest.fixture(scope="module")
def environment(light_environment, tmp_path_factory):
    """One without JAX's own folder, and another home for caches."""
    home = str(tmp_path_factory.mktemp("home"))
    own = {k: v for k, v in light_environment.items() if "CACHE" not in k}
    return own | {"XDG_CACHE_HOME": home, "PYTHONPATH": os.pathsep.join(sys.path)}


def ran(environment, folder, **more):
    """Lines of a process that compiles."""
    words = [sys.executable, "-c", SCRIPT, folder]
    made = subprocess.run(
        words, env=environment | more, capture_output=True, text=True, timeout=120
    )
    assert made.returncode == 0, made.stderr
    return made.stdout.splitlines()


def test_a_process_loads_what_another_compiled(environment, tmp_path):
    assert ran(environment, str(tmp_path)) == ["4.0 False True"]
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0 and not integrity.problems(folder)
    assert ran(environment, str(tmp_path)) == ["4.0 True False"]

    # One file has a flipped bit, another was cut off by a kill before it was sealed.
    damaged, *_ = folder.glob(f"*{compiled.SUFFIX}")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 16
    damaged.write_bytes(content)
    (folder / f"jit_x-0{compiled.SUFFIX}").write_bytes(b"half")
    (folder / "note.txt").write_text("of the user")
    said, found = ran(environment, str(tmp_path))
    assert said.startswith("said 2 compiled programs in") and found == "4.0 True True"
    assert (folder / "note.txt").exists()
    # Without checksums nothing is known to be whole.
    (folder / integrity.SUMS).write_text("{")
    assert ran(environment, str(tmp_path))[1] == "4.0 False True"

    # Another device, or other versions: a folder of its own, and a line.
    folder.rename(tmp_path / "nvidia-h200-jax0.9.0-00000000")
    said, found = ran(environment, str(tmp_path))
    assert "has programs of nvidia-h200-jax0.9.0-00000000, and none of cpu-jax" in said
    assert found == "4.0 False True"


def test_where_programs_are_kept(environment, tmp_path):
    home = os.path.join(environment["XDG_CACHE_HOME"], "oneforcing_jax")
    assert ran(environment, "") == ["4.0 False True"] and os.listdir(home)
    # JAX's own folder is left to JAX, and "" keeps nothing.
    told = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    assert ran(environment, "", **told) == ["4.0 False False"]
    assert ran(environment, "none") == ["4.0 False False"]
    # A home that cannot be written is a line; a folder that was named and cannot is an error.
    (tmp_path / "file").touch()
    said, found = ran(environment, "", XDG_CACHE_HOME=str(tmp_path / "file"))
    assert said.startswith("said compiled programs are not kept: ") and found == "4.0 False False"
    with pytest.raises(AssertionError, match="InputError: --programs .*file: expected a folder"):
        ran(environment, str(tmp_path / "file"))
