"""The one table of chips: what their makers state, and what a prediction assumes of them.

A row describes what JAX calls a device: all of a GPU, a whole TPU chip up to v6e, one of the two halves of
a TPU7x. Sizes are decimal, as on data sheets; a driver reports some 6% more memory, which is what it, its
libraries and fragmentation take.
"""

from __future__ import annotations

import dataclasses

from oneforcing_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Cuda:
    """What the GPU compiler asks about a GPU.

    Attributes:
      capability: compute capability, (major, minor).
      cores: streaming multiprocessors.
      units: float32 units of each.
      threads: threads that each holds.
      shared: bytes of shared memory of each.
      l2: bytes of the second-level cache.
      ghz: boost clock.
    """

    capability: tuple[int, int]
    cores: int
    units: int
    threads: int
    shared: int
    l2: int
    ghz: float


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      kind: how JAX's name of the device begins.
      memory: bytes.
      peak: dense bf16 operations a second that the maker states; 0: not known.
      bandwidth: bytes a second of its memory.
      link: bytes a second that it can send to others of its slice or host, all links together, one way.
      launch: seconds between two kernels.
      seen: operations a second of a large matrix product where it was measured; 0: not measured.
      network: bytes a second to another slice or host.
      cuda: of a GPU.
    """

    kind: str
    memory: float
    peak: float
    bandwidth: float
    link: float
    launch: float
    seen: float = 0.0
    network: float = 6.25e9
    cuda: Cuda | None = None

    @property
    def rate(self) -> float:
        """Operations a second that a prediction assumes of products in bf16."""
        return self.seen or self.peak


# A GPU takes about two microseconds from the end of a kernel to the beginning of the next one of its stream.
# A TPU runs one program, whose operations wait about half a microsecond for their first data.
_GPU, _TPU = 2e-6, 0.5e-6
_HOPPER = Cuda((9, 0), 132, 128, 2048, 233472, 50 << 20, 1.98)
_NETWORK = 50e9  # one 400 Gb/s adapter a GPU

CHIPS = {
    "a100": Chip("NVIDIA A100", 80e9, 312e12, 2.039e12, 300e9, _GPU, network=25e9,
                 cuda=Cuda((8, 0), 108, 64, 2048, 167936, 40 << 20, 1.41)),
    "h100": Chip("NVIDIA H100", 80e9, 989e12, 3.35e12, 450e9, _GPU, 790e12, _NETWORK, _HOPPER),
    "h200": Chip("NVIDIA H200", 141e9, 989e12, 4.8e12, 450e9, _GPU, 790e12, _NETWORK, _HOPPER),
    "b200": Chip("NVIDIA B200", 180e9, 2250e12, 8e12, 900e9, _GPU, network=_NETWORK,
                 cuda=Cuda((10, 0), 148, 128, 2048, 233472, 126 << 20, 1.965)),
    "rtx4090": Chip("NVIDIA GeForce RTX 4090", 24e9, 165e12, 1.008e12, 32e9, _GPU,
                    cuda=Cuda((8, 9), 128, 128, 1536, 102400, 72 << 20, 2.52)),
    "rtx5090": Chip("NVIDIA GeForce RTX 5090", 32e9, 210e12, 1.792e12, 64e9, _GPU,
                    cuda=Cuda((12, 0), 170, 128, 1536, 102400, 96 << 20, 2.407)),
    "v4": Chip("TPU v4", 32e9, 275e12, 1.228e12, 300e9, _TPU),
    "v5e": Chip("TPU v5 lite", 16e9, 197e12, 0.819e12, 200e9, _TPU),
    "v5p": Chip("TPU v5", 95e9, 459e12, 2.765e12, 600e9, _TPU),
    "v6e": Chip("TPU v6 lite", 32e9, 918e12, 1.64e12, 400e9, _TPU, network=12.5e9),
    "v7x": Chip("TPU7x", 96e9, 1153.5e12, 3.69e12, 300e9, _TPU, network=12.5e9),
}  # fmt: skip


def find(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`; None for one that is not in the table, such as a CPU."""
    rows = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(rows, key=lambda chip: len(chip.kind), default=None)


def gpu_config(name: str) -> str:
    """XLA's GpuTargetConfigProto of a GPU of the table, in text form."""
    chip = CHIPS[name]
    cuda = chip.cuda
    if cuda is None:
        raise InputError(
            f"chip: expected a GPU, found {name!r}; see oneforcing_jax/targets/chips.py"
        )
    info = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 << 10,
        "shared_memory_per_core": cuda.shared,
        "shared_memory_per_block_optin": cuda.shared - 1024,
        "threads_per_core_limit": cuda.threads,
        "core_count": cuda.cores,
        "fpus_per_core": cuda.units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": cuda.l2,
        "clock_rate_ghz": cuda.ghz,
        "device_memory_size": int(chip.memory),
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    major, minor = cuda.capability
    fields = [f"  {field}: {value}" for field, value in info.items()]
    fields.append(f"  cuda_compute_capability {{ major: {major} minor: {minor} }}")
    return "\n".join(
        [
            "gpu_device_info {",
            *fields,
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 12 }",
            f'device_description_str: "{chip.kind}"',
        ]
    )
