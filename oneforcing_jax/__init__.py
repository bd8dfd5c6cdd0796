"""One-Forcing in JAX: one-step causal video generation, its training and its server."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneforcing_jax.system import command

if TYPE_CHECKING:
    from oneforcing_jax.pipeline import Pipeline as Pipeline

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


def __getattr__(name: str) -> Any:
    """Imports the pipeline, and JAX with it, when it is asked for."""
    if name == "Pipeline":
        from oneforcing_jax.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
