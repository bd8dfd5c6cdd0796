"""The released chunkwise student from converted Wan weights and a store of videos, all stages in one command.

    python -m oneforcing_jax.main --config=configs/recipe_chunkwise.py --workdir=runs/chunkwise

See configs/recipe_framewise.py, whose stages it has.
"""

import runpy
from pathlib import Path


def get_config():
    def other(name):
        return runpy.run_path(str(Path(__file__).with_name(name)))

    return other("recipe_framewise.py")["recipe"](other("chunkwise.py")["get_config"]())
