"""The released chunkwise model: three latent frames a block, one step each.

    python -m oneforcing_jax.main --config=configs/chunkwise.py --workdir=runs/chunkwise \\
        --config.stages.one_forcing.data=/path/to/store ...

See configs/framewise.py for the checkpoints to start from. Expect 750 iterations.
"""

import runpy
from pathlib import Path


def get_config():
    c = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
    c.blocks.frames = 3
    c.head.layers = (29,)
    c.head.ffn_dim = 512
    c.one_forcing.gradient_blocks = 0
    c.one_forcing.r1.weight = 1.0
    c.one_forcing.r2.weight = 0.001
    c.stages.one_forcing.iterations = 750
    return c
