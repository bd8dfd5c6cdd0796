"""A one-step causal student as a pipeline of diffusers.

`oneforcing export --layout=pipeline` puts this file into the folder that it writes:

    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    frames = pipe("a red square moving left").frames[0]

Blocks of latent frames are made one after the other, each in few steps. There is no cache of keys: every
step passes the whole prefix through the transformer, each frame at its own noise level, and a block sees the
blocks before it. What it makes is what the cached student makes, in more time.
"""

from typing import Any

import torch
from diffusers import WanPipeline
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput
from diffusers.utils.torch_utils import randn_tensor

# Timesteps of the network are noise levels times so many.
TRAIN_STEPS = 1000


class BlockCausal(WanAttnProcessor):
    """Attention of Wan, the self-attention under a mask of queries and keys."""

    mask: torch.Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
    ) -> torch.Tensor:
        if encoder_hidden_states is None:
            attention_mask = self.mask
        return super().__call__(
            attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
        )


class OneForcingPipeline(WanPipeline):  # type: ignore[misc]
    """Text to video, block by block.

    Args:
      tokenizer, text_encoder, vae, scheduler, transformer: as of WanPipeline; the scheduler is not asked.
      sigmas, first_sigmas: noise levels of the steps of a block, and of the first.
      block_frames, first_frames: latent frames of a block, and of the first.
      num_frames, height, width: of a video, where a call says nothing else; it has never learned more frames.
      text_len: tokens of a prompt.
      transformer_2, boundary_ratio, expand_timesteps: fields that WanPipeline has, and not read.
    """

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        scheduler: Any,
        transformer: Any = None,
        sigmas: Any = (1.0,),
        first_sigmas: Any = (1.0,),
        block_frames: int = 1,
        first_frames: int = 1,
        num_frames: int = 81,
        height: int = 480,
        width: int = 832,
        text_len: int = 512,
        transformer_2: Any = None,
        boundary_ratio: float | None = None,
        expand_timesteps: bool = False,
    ) -> None:
        super().__init__(tokenizer, text_encoder, vae, scheduler, transformer)
        self.register_to_config(
            sigmas=sigmas,
            first_sigmas=first_sigmas,
            block_frames=block_frames,
            first_frames=first_frames,
            num_frames=num_frames,
            height=height,
            width=width,
            text_len=text_len,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        renoise: torch.Tensor | None = None,
        output_type: str = "np",
    ) -> Any:
        """Videos of prompts.

        Args:
          prompt: one, or several.
          height, width, num_frames: in pixels; None: as the student was trained.
          generator: of the noise.
          latents: noise that blocks start from, [b, c, f, y, x]; None: drawn.
          renoise: noise between the steps of a block, [steps - 1, b, c, f, y, x]; None: drawn.
          output_type: "np", "pt", "pil" or "latent".

        Raises:
          ValueError: more frames than it has learned, or frames that blocks do not fill.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        device, own = self._execution_device, self.config
        text, _ = self.encode_prompt(
            prompts, None, False, max_sequence_length=own.text_len, device=device
        )
        noise = self.prepare_latents(
            len(prompts),
            self.transformer.config.in_channels,
            height or own.height,
            width or own.width,
            num_frames or own.num_frames,
            torch.float32,
            device,
            generator,
            latents,
        )
        x = self._rollout(noise, text.to(self.transformer.dtype), generator, renoise)
        self.maybe_free_model_hooks()
        if output_type == "latent":
            return WanPipelineOutput(frames=x)
        mean, std = (
            torch.tensor(stated).view(1, -1, 1, 1, 1).to(x)
            for stated in (self.vae.config.latents_mean, self.vae.config.latents_std)
        )
        video = self.vae.decode((x * std + mean).to(self.vae.dtype), return_dict=False)[0]
        return WanPipelineOutput(
            frames=self.video_processor.postprocess_video(video, output_type=output_type)
        )

    def _rollout(
        self, noise: torch.Tensor, text: torch.Tensor, generator: Any, renoise: torch.Tensor | None
    ) -> torch.Tensor:
        """Clean latents [b, c, f, y, x] from noise of that shape."""
        own, frames = self.config, noise.shape[2]
        stops = list(range(own.first_frames, frames + 1, own.block_frames))
        most = 1 + (own.num_frames - 1) // self.vae_scale_factor_temporal
        if frames > most or not stops or stops[-1] != frames:
            raise ValueError(
                f"expected at most {most} latent frames, {own.first_frames} and blocks of "
                f"{own.block_frames}, found {frames}; choose another num_frames"
            )
        clean, start = noise[:, :, :0], 0
        for stop in self.progress_bar(stops):
            sigmas = own.sigmas if start else own.first_sigmas
            x = noise[:, :, start:stop]
            for step, sigma in enumerate(sigmas):
                if step:
                    between = (
                        randn_tensor(x.shape, generator, x.device, x.dtype)
                        if renoise is None
                        else renoise[step - 1][:, :, start:stop].to(x)
                    )
                    x = (1 - sigma) * x + sigma * between
                x = x - sigma * self._flow(clean, x, sigma, text)
            clean, start = torch.cat([clean, x], 2), stop
        return clean

    def _flow(
        self, clean: torch.Tensor, x: torch.Tensor, sigma: float, text: torch.Tensor
    ) -> torch.Tensor:
        """The flow of a block x after clean frames."""
        _, rows, columns = self.transformer.config.patch_size
        frames, own = clean.shape[2] + x.shape[2], self.config
        tokens = (x.shape[3] // rows) * (x.shape[4] // columns)
        frame = torch.arange(frames, device=x.device)
        block = (frame - own.first_frames).div(own.block_frames, rounding_mode="floor").clamp(-1)
        block = block.repeat_interleave(tokens)
        level = torch.where(frame < clean.shape[2], 0.0, sigma * TRAIN_STEPS)
        causal: Any = BlockCausal()  # type: ignore[no-untyped-call]
        causal.mask = block[:, None] >= block
        for layer in self.transformer.blocks:
            layer.attn1.set_processor(causal)
        flow = self.transformer(
            torch.cat([clean, x], 2).to(self.transformer.dtype),
            level.repeat_interleave(tokens).expand(len(x), -1),
            text,
            return_dict=False,
        )[0]
        return flow[:, :, -x.shape[2] :].float()
