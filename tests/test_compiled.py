"""Compiled programs from one process to the next: what is loaded, and what is compiled again."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import compiled, integrity

SCRIPT = """
import os, signal, sys, jax, numpy as np
from oneforcing_jax.system import compiled
with compiled.kept(sys.argv[1]) as programs:
    for number in (1, 2, 3):
        jax.jit(lambda x: number * x)(np.ones(4))
    if "killed" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
print(programs.loaded, programs.compiled)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """JAX as in a new process that was told nothing, and where programs are kept by default."""
    kept = "jax_persistent_cache_"
    names = ["jax_compilation_cache_dir", f"{kept}min_compile_time_secs"]
    names += [f"{kept}min_entry_size_bytes", f"{kept}enable_xla_caches"]
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    yield tmp_path / "home" / "oneforcing_jax"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def ran(folder):
    """What was said, and whether a program was loaded, and one compiled."""
    compilation_cache.reset_cache()
    told = jax.config.jax_compilation_cache_dir
    lines, ones = [], np.ones((4, 4), np.float32)
    with compiled.kept(folder, lines.append) as programs:
        assert (
            jax.jit(lambda x: x @ x)(ones)[0, 0] == 4 and jax.jit(lambda x: x + x)(ones)[0, 0] == 2
        )
    jax.config.update("jax_compilation_cache_dir", told)
    return lines, programs.loaded > 0, programs.compiled > 0


def test_a_process_loads_what_a_killed_one_compiled(light_environment, tmp_path):
    """But for the last program, which may be half a file."""
    own = {name: value for name, value in light_environment.items() if "CACHE" not in name}
    own |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    subprocess.run([*words, "killed"], env=own)
    said = subprocess.run(words, env=own, capture_output=True, text=True).stdout.splitlines()
    assert said[0].startswith("1 compiled programs in ") and said[1] == "2 1"
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0


def test_what_is_damaged_is_compiled_again(home, tmp_path):
    where = str(tmp_path / "programs")
    assert ran(where) == ([], False, True)
    assert ran(where) == ([], True, False)
    (folder,) = (tmp_path / "programs").iterdir()
    # One file has a flipped bit, another was cut off by a kill before it was sealed.
    damaged, *_ = sorted(folder.glob(f"*{compiled.SUFFIX}"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 16
    damaged.write_bytes(content)
    (folder / f"jit_x-0{compiled.SUFFIX}").write_bytes(b"half")
    (folder / "note.txt").write_text("of the user")
    (said,), *found = ran(where)
    assert said.startswith("2 compiled programs in") and found == [True, True]
    assert (folder / "note.txt").exists() and ran(where) == ([], True, False)
    # Without checksums nothing is known to be whole.
    (folder / integrity.SUMS).write_text("{")
    assert ran(where)[1:] == (False, True)


def test_another_device_or_version_is_said(home, tmp_path):
    (tmp_path / "nvidia-h200-jax0.9.0-00000000").mkdir()
    (said,), *found = ran(str(tmp_path))
    assert "has programs of nvidia-h200-jax0.9.0-00000000, and none of cpu-jax" in said
    assert found == [False, True]


def test_where_programs_are_kept(home, tmp_path):
    assert ran("") == ([], False, False) and not home.exists()
    assert ran(None) == ([], False, True) and len(list(home.iterdir())) == 1
    # A home that cannot be written is a line, and a folder that was named and cannot an error.
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--programs .*file: expected a folder that can be"):
        ran(str(tmp_path / "file"))
    home.rename(tmp_path / "moved")
    home.touch()
    (said,), *found = ran(None)
    assert said.startswith("compiled programs are not kept: ") and found == [False, False]
    # What JAX was told is left to JAX.
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    assert ran(None) == ([], False, False) and jax.config.jax_compilation_cache_dir.endswith("xla")
