"""Compiled programs, kept from one start to the next.

with compiled.kept(None):   # before anything is compiled
    ...                     # what is compiled is kept, and loaded by the next process

JAX names a file after the program with its shapes, the device, versions and flags, so that what differs in
any of them is compiled. It notices neither a file that a kill cut off nor a flipped bit, and replaces none.
So files have checksums, and those that are not as they were sealed are removed before JAX sees them.

They are machine code, and run as whoever loads them. So they lie in a folder of this user, and not beside
weights, which come from elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jaxlib.version

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import integrity, processes
from oneforcing_jax.system.files import read_record, write_whole

# What JAX ends the name of a program's file with.
SUFFIX = "-cache"
_HIT, _COMPILED = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


@dataclasses.dataclass
class Programs:
    """What a process loads and compiles.

    Attributes:
      folder: of this device and these versions; None: nothing is kept, or JAX was told where.
      loaded, compiled: programs so far.
    """

    folder: Path | None = None
    loaded: int = 0
    compiled: int = 0
    _sums: dict[str, list[int | None]] = dataclasses.field(default_factory=dict)

    def seal(self) -> None:
        """Writes the checksums of all programs that are kept now. Where that fails, the next start compiles
        again."""
        if self.folder and processes.is_first():
            with contextlib.suppress(InputError, OSError):
                self._sums = _sums(self.folder, self._sums)
                write_whole(self.folder / integrity.SUMS, json.dumps(self._sums).encode())

    def _heard(self, event: str, **_: object) -> None:
        self.loaded += event == _HIT
        if event == _COMPILED:
            # JAX is about to write this one; those before it are whole, and outlive a kill.
            self.compiled += 1
            self.seal()


@contextlib.contextmanager
def kept(folder: str | None, say: Callable[[str], None] = print) -> Iterator[Programs]:
    """Keeps what this process compiles, and loads what others of this user did.

    Args:
      folder: of programs for all devices and versions; None: this user's, unless JAX was told another one
        (JAX_COMPILATION_CACHE_DIR), which is left as it is; "": nothing is kept.
      say: is told in a line why programs that could be expected are not loaded.

    Raises:
      InputError: a folder that was given cannot be written.
    """
    programs = Programs()
    told: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if folder == "" or (folder is None and told):
        yield programs
        return
    try:
        programs.folder = _opened(Path(folder) if folder else _of_user(), say)
    except OSError as error:
        if folder:
            raise InputError(
                f"--programs {folder}: expected a folder that can be written ({error.strerror}); name another"
            ) from None
        say(f"compiled programs are not kept: {error}; name a folder with --programs")
        yield programs
        return
    jax.config.update("jax_compilation_cache_dir", str(programs.folder))
    # Small ones too: an accelerator takes a tenth of a second for each.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # What XLA would keep beside them has no checksums.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.monitoring.register_event_listener(programs._heard)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_listener(programs._heard)
        programs.seal()


def _of_user() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "oneforcing_jax"


def _opened(folder: Path, say: Callable[[str], None]) -> Path:
    """The folder of this device and these versions, with whole files alone."""
    mine = folder.absolute() / _name()
    others = ", ".join(sorted(path.name for path in folder.glob("*-jax*")))
    is_new = not mine.is_dir()
    mine.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(mine, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(mine))
    if not processes.is_first():
        return mine
    if is_new and others:
        say(f"{folder} has programs of {others}, and none of {mine.name}: they are compiled")
    sealed: dict[str, list[int | None]] = {}
    with contextlib.suppress(InputError):
        sealed = read_record(mine / integrity.SUMS)
    wrong = [name for name, sum_ in _sums(mine, {}).items() if sealed.get(name) != sum_]
    for name in wrong:
        (mine / name).unlink(missing_ok=True)
    if wrong:
        say(f"{len(wrong)} compiled programs in {mine} were not whole: they are compiled anew")
    return mine


def _name() -> str:
    """Device, JAX's version, and a digest of what else decides whether a program runs here: one for a CPU may
    use all that this CPU can do."""
    device = jax.local_devices()[0]
    kind = "".join(c if c.isalnum() else "-" for c in device.device_kind.lower())
    known = (jaxlib.version.__version__, device.client.platform_version, platform.machine(), _cpu())
    digest = hashlib.sha256(repr(known).encode()).hexdigest()[:8]
    return f"{kind}-jax{jax.__version__}-{digest}"


def _cpu() -> list[str]:
    """Model and abilities of the processor, where the system tells them."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = ("model name", "flags", "Features")
        return sorted({line for line in lines if line.startswith(told)})
    return [platform.processor()]


def _sums(folder: Path, known: Mapping[str, list[int | None]]) -> dict[str, list[int | None]]:
    """Size and CRC-32 of each program; JAX never writes one again, so what is known holds."""
    names = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
    new = integrity.sums(folder, [name for name in names if name not in known])
    return {name: known[name] for name in names if name in known} | {
        name: list(sum_) for name, sum_ in new
    }
