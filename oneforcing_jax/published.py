"""Sizes that all published models share; imports neither JAX nor PyTorch."""

# Every published Wan model has heads of this size.
HEAD_DIM = 128
# Latent frames of a block of the two published students.
BLOCK_FRAMES = {"framewise": 1, "chunkwise": 3}
