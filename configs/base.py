"""Every field there is, with the values of the paper's framewise model (Table 4).

Other configs begin with `get_config()` of this file and change what differs.
"""

from ml_collections import ConfigDict

from oneforcing_jax.families.wan21 import FAMILY, VIDEO, WAN_1_3B, WAN_14B
from oneforcing_jax.models.products.low_rank import LowRank
from oneforcing_jax.setup.config import section
from oneforcing_jax.setup.dtypes import DTYPES
from oneforcing_jax.training.optim import Optimiser

PROMPTS = (
    "A red fox trots through fresh snow at the edge of a pine forest, the camera following beside it.",
    "Waves break over black rocks below a lighthouse, spray drifting in the late evening light.",
    "A street musician plays the accordion while people with umbrellas walk past in the rain.",
    "Close-up of hands folding a paper crane on a wooden table, soft light from a window.",
)


def train_stage(method, data, iterations, batch, optimisers, init, **changes):
    """A stage that trains; `optimisers` maps each trained network to its settings."""
    stage = {
        "kind": "train",
        "method": method,
        # Store of latents and prompt embeddings: inside the work directory, or an absolute path.
        "data": data,
        "iterations": iterations,
        # Global batch, over all devices, and how much of it goes through the networks at once (0: all):
        # results depend on the first, memory on the second.
        "batch": batch,
        "microbatch": 0,
        # Keep optimiser states in the host's memory between steps.
        "offload_optimiser": False,
        "optimisers": optimisers,
        # Moving average of the network that makes videos (decay 0: none), from iteration `start`.
        "ema": {"decay": 0.0, "start": 0},
        # What each network starts from: "random", "STAGE:NET", or "DIRECTORY:NET" of checkpoints.
        "init": init,
        # Low-rank adapters of each network, all that is then trained of it (rank 0: none): multiplied by
        # alpha / rank (alpha 0: by 1), beside matrices of these names.
        "low_rank": {net: section(LowRank()) for net in optimisers},
        "log_every": 1,
        # Sample videos of these prompts, raw weights and average, in every so many iterations (0: none), by
        # the codec's decoder ("") or Wan's tiny one ("tiny").
        "samples": {"every": 0, "prompts": (), "decoder": ""},
        "checkpoint_every": 50,
        # Checkpoints kept: the last ones, and the best by a metric such as "generator/loss" or
        # "samples/motion" ("": none).
        "keep": 2,
        "best": {"metric": "", "mode": "min"},
    }
    return stage | changes


def get_config():
    c, half = ConfigDict(), DTYPES["bfloat16"]
    c.seed = 0
    # A project of Weights & Biases ("": none), iterations to trace (0: none), and the process that is traced.
    c.wandb, c.profile, c.profile_process = "", 0, 0
    # Seconds that stages took on one machine, by which the time to the end is said; {}: it is not.
    c.seconds = {}
    # Of the models: what their codec is, and what a video is where nothing is said. See families/.
    c.family = "wan21"
    # Devices along each axis; -1 takes what the others leave. See docs/scaling.md.
    c.mesh = {"data": 1, "fsdp": -1, "context": 1, "sequence": 1, "tensor": 1}
    frames, rows, columns = FAMILY.latents
    c.latents = {"frames": frames, "channels": FAMILY.channels, "rows": rows, "columns": columns}
    # Frames of video a second.
    c.fps = VIDEO.fps
    # Of the noise schedule.
    c.shift = VIDEO.shift
    # Autoregressive blocks and their unwarped timesteps in training; first_*: 0 or () as the others.
    c.blocks = {"frames": 1, "steps": (1000,), "first_frames": 0, "first_steps": ()}
    c.generator = section(WAN_1_3B, dtype=half, remat="attention")
    c.teacher = section(WAN_14B, dtype=half)
    c.critic = section(WAN_1_3B, dtype=half, remat="attention")
    c.head = {"layers": (21, 29), "ffn_dim": 2048}
    c.one_forcing = {
        "generator_every": 5,
        # Of distribution matching, and of the regression of ODE end points (equation 10), which needs
        # trajectories in the data; 0 leaves a branch out.
        "dmd_weight": 1.0,
        "forward_kl_weight": 0.0,
        # The last blocks, which take gradients; 0: all.
        "gradient_blocks": 17,
        "context_gradient": "straight_through",
        "context_sigma": 0.004980080295354128,
        # Blocks of several steps end at one drawn from their list (False: all run).
        "random_exit": True,
        # Share of clips whose first block is given, the data's, as in videos that begin with an image.
        "given_rate": 0.0,
        # s in cond + s (cond - uncond) of the teacher.
        "guidance": 5.0,
        "gan_generator_weight": 0.03,
        "gan_discriminator_weight": 0.03,
        # What the discriminator takes for real: "data", or "self", the student's clips in one step more.
        "real": "data",
        "relativistic": False,
        # The clips of a critic update, side by side or one after the other, in less memory.
        "critic_clips": "together",
        "r1": {"weight": 0.0, "sigma": 0.1, "form": "apt"},
        "r2": {"weight": 0.0, "sigma": 0.01, "form": "finite_difference"},
    }
    # Stages to run, in this order.
    c.run = ("one_forcing",)
    c.stages = {
        "one_forcing": train_stage(
            "one_forcing",
            "data",
            iterations=200,
            batch=8,
            optimisers={"generator": section(Optimiser()), "critic": section(Optimiser())},
            # Name them: "DIRECTORY:NET" of converted weights, or of a stage of another run.
            init={"generator": "", "critic": "", "teacher": ""},
            ema={"decay": 0.99, "start": 50},
            samples={"every": 50, "prompts": PROMPTS, "decoder": ""},
        )
    }
    return c
