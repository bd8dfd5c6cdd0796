"""What two sides of a comparison have in common; imports neither JAX nor PyTorch."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from oneforcing_jax.errors import InputError

# Latent frames of a clip: the original's rollout has no fewer.
FRAMES = 21
CHANNELS = 16
# Width of a head of every published model, and latent frames of a block of the two published students.
HEAD_DIM = 128
BLOCK_FRAMES = {"framewise": 1, "chunkwise": 3}
WORKS = ("generator", "critic", "rollout")


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of a comparison; all else is in the published proportions (1.3B student, 14B teacher).

    Attributes:
      layout: "framewise" or "chunkwise", a config of either side.
      dim, layers: of the student and of the critic.
      rows, columns: of a latent frame.
      teacher: "scaled" (larger than the student as 14B is than 1.3B) or "same".
      dtype: "float32" or "bfloat16".
      cores: CPU cores of each side.
    """

    layout: str = "framewise"
    dim: int = 256
    layers: int = 4
    rows: int = 12
    columns: int = 12
    teacher: str = "scaled"
    dtype: str = "float32"
    cores: int = 2

    def __post_init__(self) -> None:
        if self.dim < HEAD_DIM or self.dim % HEAD_DIM:
            raise InputError(f"dim: expected a multiple of {HEAD_DIM}, found {self.dim}")
        if self.layers < 2:
            raise InputError(f"layers: expected 2 or more, found {self.layers}")
        if min(self.rows, self.columns) < 2 or self.rows % 2 or self.columns % 2:
            raise InputError(f"latent frame: expected even sides, found {self.rows}x{self.columns}")

    @property
    def block_frames(self) -> int:
        """Latent frames of a block."""
        return BLOCK_FRAMES[self.layout]

    @property
    def frame_tokens(self) -> int:
        """Tokens of a latent frame."""
        return self.rows * self.columns // 4

    @property
    def latents(self) -> tuple[int, ...]:
        """Shape of a clip, batch first; the original trains with one clip a GPU."""
        return (1, FRAMES, CHANNELS, self.rows, self.columns)

    def student_sizes(self) -> dict[str, int]:
        """Student and critic. Tokens of the prompt and of a frame are in the proportion of 512 to 1560."""
        return {
            "dim": self.dim,
            "ffn_dim": 6 * self.dim,
            "num_heads": self.dim // HEAD_DIM,
            "num_layers": self.layers,
            "text_len": max(8, round(512 / 1560 * self.frame_tokens)),
            "text_dim": 8 * (self.dim // 3),
        }

    def teacher_sizes(self) -> dict[str, int]:
        """Teacher."""
        sizes = self.student_sizes()
        if self.teacher == "same":
            return sizes
        heads = round(sizes["num_heads"] * 40 / 12)
        made = {
            "dim": heads * HEAD_DIM,
            "num_heads": heads,
            "num_layers": round(self.layers * 4 / 3),
        }
        return sizes | made | {"ffn_dim": round(2.7 * made["dim"])}

    def tapped(self) -> tuple[int, ...]:
        """Layers that the adversarial head reads."""
        last = self.layers - 1
        return (
            (min(round(21 / 29 * last), last - 1), last) if self.layout == "framewise" else (last,)
        )

    def head_ffn(self) -> int:
        """Hidden width of the adversarial head."""
        return 4 * self.dim // 3 if self.layout == "framewise" else self.dim // 3


class Record(NamedTuple):
    """One update of the original with all that it drew, to be repeated on the other side.

    Attributes:
      batch: "latents", "text" [b, s, d] and "negative" [s, d].
      timesteps: the drawn integers of the losses, [b] each, in the order of drawing.
      normals: the drawn noise, in the order of drawing: start, context of every block, losses.
      loss: the loss.
      gradients: of every tensor by its name.
    """

    batch: dict[str, np.ndarray]
    timesteps: list[np.ndarray]
    normals: list[np.ndarray]
    loss: float
    gradients: dict[str, np.ndarray]


def random_batch(setting: Setting) -> dict[str, np.ndarray]:
    """Random latents and prompt embeddings."""
    rng, sizes = np.random.default_rng(0), setting.student_sizes()
    text = (sizes["text_len"], sizes["text_dim"])
    shapes: dict[str, Any] = {"latents": setting.latents, "text": (1, *text), "negative": text}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
