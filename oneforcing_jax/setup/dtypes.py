"""The dtypes that networks compute in and weights are stored in."""

from __future__ import annotations

from typing import NewType

import jax.numpy as jnp
import numpy as np

# A dtype as a config names it.
Dtype = NewType("Dtype", np.dtype)

DTYPES = {"float32": Dtype(np.dtype(np.float32)), "bfloat16": Dtype(np.dtype(jnp.bfloat16))}
