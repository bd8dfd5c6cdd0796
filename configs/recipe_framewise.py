"""The paper's framewise student from converted Wan weights and a store of videos, all stages in one command.

    python -m oneforcing_jax.main --config=configs/recipe_framewise.py --workdir=runs/framewise

It reads `weights/` and `store/` as docs/data.md makes them, in the folder where the command runs; name others
by `--config.stages.S.init.NET=...` and `--config.stages.S.data=...`. The same command continues. Causal
Forcing++ initialises by consistency in place of ODE pairs, without trajectories to store:

    --config.run=teacher_forcing,causal_consistency,one_forcing \\
    --config.stages.one_forcing.init.generator=causal_consistency:model

One-Forcing has the values of Table 4. The paper starts from published stages before it, whose batches and
iterations are the least that their authors recommend.
"""

import runpy
from pathlib import Path

from oneforcing_jax.setup.config import section
from oneforcing_jax.training.optim import Optimiser

BASE = runpy.run_path(str(Path(__file__).with_name("base.py")))
# Stages take a place inside the work directory, or an absolute one.
STORE = str(Path("store").absolute())
WAN_1_3B, WAN_14B = "weights/wan_1.3b/transformer:model", "weights/wan_14b/transformer:model"


def recipe(c, small=WAN_1_3B, teacher=WAN_14B):
    """Adds the stages before One-Forcing to a config that has it alone.

    Args:
      c: the config.
      small, teacher: where student and critic, and where the teacher begin.
    """
    # Share of prompts that the negative one replaces, so that the causal teacher can be guided.
    c.prompt_drop_rate = 0.1
    # Of the first stage, as the original's.
    c.bell_weighting = True
    # Guidance is cond + s (cond - uncond): 6 and 3 of uncond + s (cond - uncond).
    c.ode = {"steps": 48, "kept": (0, 12, 24, 36), "guidance": 5.0}
    c.consistency = {"steps": 48, "guidance": 2.0}

    def stage(method, data, iterations, init, **changes):
        rules = {"model": section(Optimiser())}
        return BASE["train_stage"](
            method, data, iterations, 64, rules, init, microbatch=8, **changes
        )

    causal = "teacher_forcing:model"
    c.stages.update(
        {
            "teacher_forcing": stage("teacher_forcing", STORE, 2000, {"model": small}),
            "ode_pairs": {
                "kind": "ode_pairs",
                "source": causal,
                "data": STORE,
                "count": 6000,
                "batch": 8,
                "share": "0/1",
            },
            "causal_ode": stage("causal_ode", "ode_pairs/store", 1000, {"model": causal}),
            "causal_consistency": stage(
                "causal_consistency",
                STORE,
                3000,
                {"model": causal, "teacher": causal},
                # The average is the target.
                ema={"decay": 0.99, "start": 0},
            ),
        }
    )
    c.stages.one_forcing.data = STORE
    c.stages.one_forcing.init = {
        "generator": "causal_ode:model",
        "critic": small,
        "teacher": teacher,
    }
    c.run = ("teacher_forcing", "ode_pairs", "causal_ode", "one_forcing")
    return c


def get_config():
    return recipe(BASE["get_config"]())
