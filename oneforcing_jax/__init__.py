"""One-Forcing in JAX: one-step causal video generation, its training and its server."""

import sys
from pathlib import Path

from oneforcing_jax.system import command

__version__ = "0.2.0.dev0"  # setup.py reads it here

# Commands take seconds to import, and a signal in this time ends them with one line too. While Python looks
# for the module of `python -m oneforcing_jax.main`, its first argument is "-m".
_script = Path(getattr(sys.modules["__main__"], "__file__", None) or ".").resolve()
if (
    sys.argv[:1] == ["-m"]
    or _script.name == "oneforcing"
    or _script.parent == Path(__file__).resolve().parents[1] / "tools"
):
    command.starting()
