"""A chunkwise student of Wan2.2's 5B, for text and images, all stages in one command.

    python -m oneforcing_jax.main --config=configs/wan22_5b_chunkwise.py --workdir=runs/wan22_5b_chunks

See configs/wan22_5b_framewise.py, whose networks and stages it has. The first block is the one latent
frame of a video's first frame, or of an image; the others have three.
"""

import runpy
from pathlib import Path


def get_config():
    def other(name):
        return runpy.run_path(str(Path(__file__).with_name(name)))

    c = other("wan22_5b_framewise.py")["student"](other("chunkwise.py")["get_config"]())
    c.blocks.first_frames = 1
    return c
