"""The released PyTorch original, run from the user's own clone on a CPU, at tiny sizes.

The section "In place of" below holds all that has to be replaced for that. The models, losses, rollout,
training step and optimiser are the clone's own code.
"""

from __future__ import annotations

import contextlib
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from oneforcing_jax.bench.setting import HEAD_DIM, WORKS, Record, Setting, random_batch

CONFIGS = {"framewise": "config.yaml", "chunkwise": "chunkwise_config.yaml"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# --- In place of what a single CPU process does not have ----------------------------------------------


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> Any:
    """PyTorch's fused attention in place of flash attention, which needs CUDA. No caller here pads, so
    lengths are whole and there is no mask. [b, t, h, k] in and out."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _stub(name: str, **names: Any) -> Any:
    module = types.ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module
    return module


def _import_clone(folder: Path) -> Any:
    """Imports the clone's trainer module."""
    # This comes first, because it looks for some of the packages that are replaced below.
    import diffusers.models.modeling_utils  # noqa: F401

    sys.path.insert(0, str(folder))
    # The __init__ of these packages would load text encoder, VAE and image encoders, which want CUDA.
    _stub("wan", __path__=[str(folder / "wan")])
    _stub("wan.modules", __path__=[str(folder / "wan" / "modules")])
    # These are never called here: latents and prompt embeddings are given, and nothing is logged.
    _stub("wan.modules.t5", umt5_xxl=None)
    _stub("wan.modules.vae", _video_vae=None)
    _stub("wan.modules.tokenizers", HuggingfaceTokenizer=None)
    _stub("utils.dataset", CleanLatentLMDBDataset=None, cycle=None)
    _stub("utils.prompt_embedding_cache", PromptEmbeddingLMDBCache=None)
    _stub("omegaconf", OmegaConf=None)
    _stub("wandb")
    # It is replaced before the models import it by name.
    import wan.modules.attention as attention

    attention.flash_attention = attention.attention = _attention

    import model.base
    import utils.wan_wrapper as wrapper

    model.base.WanVAEWrapper = torch.nn.Identity
    # FSDP's method of the same name, on a network that is not sharded.
    wrapper.WanDiffusionWrapper.clip_grad_norm_ = lambda self, limit: (
        torch.nn.utils.clip_grad_norm_(self.parameters(), limit)
    )
    # diffusers has since given its method other arguments than the clone's models expect.
    wrapper.WanDiffusionWrapper.enable_gradient_checkpointing = lambda self: setattr(
        self.model, "gradient_checkpointing", True
    )
    # Tensors that the rollout moves to a GPU.
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    # Broadcasts over the ranks, of which there is one.
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    import trainer.one_forcing as trainer

    return trainer


def _build(trainer: Any, args: Any, setting: Setting) -> Any:
    """The clone's networks and losses at our sizes, with random weights."""
    import utils.wan_wrapper as wrapper

    def sized(cls: Any, sizes: dict[str, int]) -> Callable[..., Any]:
        return lambda path, **kwargs: cls(**sizes, **kwargs)

    student, teacher = setting.student_sizes(), setting.teacher_sizes()
    of_folder = {args.teacher_model_path: teacher}
    causal, plain = wrapper.CausalWanModel, wrapper.WanModel
    # Random networks in place of files.
    causal.from_pretrained = sized(causal, student)
    plain.from_pretrained = lambda path: plain(**of_folder.get(path, student))
    made = trainer.OneForcing(args, device=torch.device("cpu"))
    for net in (made.generator, made.fake_score, made.real_score):
        # Published weights predict something; the initial ones are zero here.
        torch.nn.init.normal_(net.model.head.head.weight, std=0.02)
        # The one frame size that the clone knows.
        net.tokens_per_frame = setting.frame_tokens
    made.to(DTYPES[setting.dtype])
    made._initialize_inference_pipeline()
    _resize(made.inference_pipeline, setting)
    return made


def _resize(pipeline: Any, setting: Setting) -> None:
    """Replaces the numbers of the 1.3B at 480x832 that the rollout's cache is written with."""
    pipeline.num_transformer_blocks = setting.layers
    pipeline.frame_seq_length = setting.frame_tokens
    heads = setting.dim // HEAD_DIM

    def zeros(batch: int, tokens: int, **kind: Any) -> dict[str, Any]:
        return {name: torch.zeros(batch, tokens, heads, HEAD_DIM, **kind) for name in ("k", "v")}

    def init_self(batch_size: int, dtype: Any, device: Any) -> None:
        index = {"global_end_index": 0, "local_end_index": 0}
        tokens = setting.latents[1] * setting.frame_tokens
        pipeline.kv_cache1 = [
            zeros(batch_size, tokens, dtype=dtype, device=device)
            | {name: torch.tensor([n], dtype=torch.long) for name, n in index.items()}
            for _ in range(setting.layers)
        ]

    def init_cross(batch_size: int, dtype: Any, device: Any) -> None:
        # Its first use puts other tensors in the place of these.
        pipeline.crossattn_cache = [{"is_init": False} for _ in range(setting.layers)]

    pipeline._initialize_kv_cache = init_self
    pipeline._initialize_crossattn_cache = init_cross


def _arguments(folder: Path, setting: Setting) -> Any:
    """The clone's released settings, with our sizes."""
    values = yaml.safe_load((folder / CONFIGS[setting.layout]).read_text(encoding="utf-8"))
    return types.SimpleNamespace(
        **values
        | {
            "image_or_video_shape": list(setting.latents),
            "mixed_precision": False,
            # Prompt embeddings are given.
            "prompt_embedding_cache_path": "given",
            # There is no other memory to move activations to.
            "generator_activation_cpu_offload": False,
            "gan_activation_cpu_offload": False,
            "discriminator_feature_dim": setting.dim,
            "gan_feature_layers": list(setting.tapped()),
            "gan_num_registers": len(setting.tapped()),
            "gan_block_ffn_dim": setting.head_ffn(),
            "gan_block_num_heads": setting.dim // HEAD_DIM,
        }
    )


# --- The side of the comparison -----------------------------------------------------------------------


class Original:
    """The original with random weights: its updates as its trainer runs them."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        torch.set_num_threads(setting.cores)
        torch.manual_seed(0)
        module = _import_clone(folder)
        args = _arguments(folder, setting)
        self.model = _build(module, args, setting)
        self.dtype = DTYPES[setting.dtype]
        self.model.dtype = self.dtype
        self.batch = random_batch(setting)
        text, negative, latents = (
            torch.from_numpy(self.batch[name]).to(self.dtype)
            for name in ("text", "negative", "latents")
        )
        self.prompts = {"prompt_embeds": text}, {"prompt_embeds": negative[None]}
        self.latents = latents
        self.trainer = self._trainer(module, args)

    def _trainer(self, module: Any, args: Any) -> Any:
        """The trainer with what one step needs: no files, no process group of GPUs, no logging."""
        made = object.__new__(module.Trainer)
        made.config, made.model, made.device = args, self.model, torch.device("cpu")
        made.dtype, made.step = self.dtype, 1
        made.separate_gan_discriminator_optimizer = False
        made.max_grad_norm_generator = made.max_grad_norm_critic = 10.0
        made._get_conditioning = lambda prompts: self.prompts
        for name, net, rate, betas in (
            ("generator", self.model.generator, args.lr, (args.beta1, args.beta2)),
            (
                "critic",
                self.model.fake_score,
                args.lr_critic,
                (args.beta1_critic, args.beta2_critic),
            ),
        ):
            optimiser = module._build_optimizer(
                "adamw", net.parameters(), lr=rate, betas=betas, weight_decay=args.weight_decay
            )
            setattr(made, f"{name}_optimizer", optimiser)
        return made

    def weights(self) -> dict[str, dict[str, np.ndarray]]:
        """The tensors of every network."""
        nets = {
            "generator": self.model.generator,
            "critic": self.model.fake_score,
            "teacher": self.model.real_score,
        }
        return {
            name: {key: x.float().numpy() for key, x in net.state_dict().items()}
            for name, net in nets.items()
        }

    def prepare(self) -> dict[str, float]:
        """Nothing is compiled: the original runs its modules as they are."""
        return dict.fromkeys(WORKS, 0.0)

    def run(self, work: str) -> float:
        """Seconds of one update, optimiser included, or of one rollout without gradient."""
        start = time.perf_counter()
        if work == "rollout":
            with torch.no_grad():
                self.model._run_generator(list(self.latents.shape), self.prompts[0])
        else:
            self._update(work == "generator")
        return time.perf_counter() - start

    def _update(self, generator: bool) -> None:
        optimisers = [self.trainer.critic_optimizer]
        if generator:
            self.model.generator.requires_grad_(True)
            optimisers.insert(0, self.trainer.generator_optimizer)
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        batch = {"prompts": [""], "clean_latent": self.latents}
        self.trainer.fwdbwd_one_step(batch, train_generator=generator)
        optimisers[0].step()
        optimisers[0].zero_grad(set_to_none=True)

    def record(self, work: str) -> Record:
        """Loss and gradients of one update, and all that it drew."""
        net = self.model.generator if work == "generator" else self.model.fake_score
        loss_of = self.model.generator_loss if work == "generator" else self.model.critic_loss
        net.zero_grad(set_to_none=True)
        with _recorded() as (integers, normals):
            loss, _ = loss_of(list(self.latents.shape), *self.prompts, self.latents)
            loss.backward()
        gradients = {
            name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.float().numpy().copy()
            for name, p in net.named_parameters()
        }
        self.model.zero_grad(set_to_none=True)
        # The first two integers are the number of blocks and the step at which they end.
        timesteps = [x[:, 0] for x in integers[2:]]
        return Record(self.batch, timesteps, normals, float(loss.detach()), gradients)


@contextlib.contextmanager
def _recorded() -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Keeps what is drawn: integers, and normal noise."""
    integers: list[np.ndarray] = []
    normals: list[np.ndarray] = []

    def keeping(draw: Any, into: list[np.ndarray]) -> Any:
        def drawn(*args: Any, **kwargs: Any) -> Any:
            x = draw(*args, **kwargs)
            into.append(x.float().numpy().copy())
            return x

        return drawn

    with (
        mock.patch.object(torch, "randint", keeping(torch.randint, integers)),
        mock.patch.object(torch, "randn", keeping(torch.randn, normals)),
        mock.patch.object(torch, "randn_like", keeping(torch.randn_like, normals)),
    ):
        yield integers, normals
