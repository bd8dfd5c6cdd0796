import sys
from pathlib import Path

from oneforcing_jax.system import command

# Commands take seconds to import, and a signal in this time ends them with one line too. While Python looks
# for the module of `python -m oneforcing_jax.main`, its first argument is "-m".
_script = Path(getattr(sys.modules["__main__"], "__file__", None) or ".").resolve()
if sys.argv[:1] == ["-m"] or _script.parent == Path(__file__).resolve().parents[1] / "tools":
    command.starting()
