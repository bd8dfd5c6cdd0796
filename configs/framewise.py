"""The paper's framewise model: one latent frame a block, one step each (Table 4).

    python -m oneforcing_jax.main --config=configs/framewise.py --workdir=runs/framewise \\
        --config.stages.one_forcing.data=/path/to/store \\
        --config.stages.one_forcing.init.generator=/path/to/causal_ode:generator \\
        --config.stages.one_forcing.init.critic=/path/to/wan_1.3b/transformer:model \\
        --config.stages.one_forcing.init.teacher=/path/to/wan_14b/transformer:model

docs/data.md makes these weights. Expect 200 iterations, of which 40 update the generator.
"""

import runpy
from pathlib import Path


def get_config():
    # Every value of this model is the default.
    return runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
