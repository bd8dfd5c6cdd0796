"""A framewise student of Wan2.2's 5B, for text and images, all stages in one command.

    python -m oneforcing_jax.main --config=configs/wan22_5b_framewise.py --workdir=runs/wan22_5b

It reads `weights/wan_5b` and `store/` as docs/data.md makes them, and has the stages of
configs/recipe_framewise.py. Student, critic and teacher are the 5B: no other published model has its latents.
Values are the paper's where they do not follow from the family. Nothing published says how often the first
latent frame should be given; `one_forcing.given_rate=0` trains for text alone.
"""

import runpy
from pathlib import Path

from oneforcing_jax.families.wan22_5b import FAMILY, WAN_5B
from oneforcing_jax.setup.config import section
from oneforcing_jax.setup.dtypes import DTYPES


def other(name):
    return runpy.run_path(str(Path(__file__).with_name(name)))


WEIGHTS = "weights/wan_5b/transformer:model"


def student(c):
    """Makes a student of the 5B of one of Wan2.1's, with the stages before it."""
    c.family, c.fps, c.shift = "wan22_5b", FAMILY.video.fps, FAMILY.video.shift
    frames, rows, columns = FAMILY.latents
    c.latents = {"frames": frames, "channels": FAMILY.channels, "rows": rows, "columns": columns}
    half = DTYPES["bfloat16"]
    c.generator = section(WAN_5B, dtype=half, remat="attention")
    c.teacher = section(WAN_5B, dtype=half)
    c.critic = section(WAN_5B, dtype=half, remat="attention")
    # Half of the clips begin with a latent frame of the data, as those of `generate --image` do.
    c.one_forcing.given_rate = 0.5
    return other("recipe_framewise.py")["recipe"](c, WEIGHTS, WEIGHTS)


def get_config():
    c = student(other("framewise.py")["get_config"]())
    # As large a part of a clip as 17 blocks of 21.
    c.one_forcing.gradient_blocks = 25
    return c
