"""Eight virtual CPU devices, light compilation, and compiled programs kept between runs."""

import os

import hypothesis
import jaxlib
import pytest

FLAGS = ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0")
# The older emitter of fused loops compiles a third faster and gives the same numbers; only versions
# known to have the flag get it, for an unknown one ends the process. `test_toy_chain` compiles as users do.
if jaxlib.__version__.startswith("0.10."):
    FLAGS += ("--xla_cpu_use_fusion_emitters=false",)

# An environment that sets one of them itself has the last word.
_given = os.environ.get("XLA_FLAGS", "")
_ours = [flag for flag in FLAGS if flag.split("=")[0] not in _given]
os.environ["XLA_FLAGS"] = " ".join([*_ours, _given]).strip()

# No test decides by seconds, those of hypothesis neither.
hypothesis.settings.register_profile(
    "ours", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("ours")


def pytest_configure(config):
    """Keeps compiled programs in pytest's cache folder (`--cache-clear` empties it)."""
    import jax

    cache = getattr(config, "cache", None)
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache.mkdir("xla")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def light_environment(pytestconfig):
    """For commands in processes of their own: one device, light compilation, programs kept as here."""
    return os.environ | {
        "XLA_FLAGS": " ".join(FLAGS[1:]),
        "JAX_COMPILATION_CACHE_DIR": str(pytestconfig.cache.mkdir("xla")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(scope="session")
def random_params():
    """A function: parameters of a network in which nothing is zero (a fresh head is)."""
    import jax
    import numpy as np
    from goldens import abstract

    def make(net, seed=0):
        rng = np.random.default_rng(seed)

        def leaf(path, like):
            kind, noise = path[-1].key, rng.normal(size=like.shape).astype(np.float32)
            if kind == "kernel":
                return noise / like.shape[-2] ** 0.5
            return 1 + 0.1 * noise if kind == "scale" else 0.1 * noise

        return jax.tree_util.tree_map_with_path(leaf, abstract(net))

    return make


@pytest.fixture(scope="session")
def fronts():
    """Servers of buckets behind fronts, by the schemes of their URLs; see servers.py."""
    import servers

    with servers.fronted("s3") as s3, servers.fronted("gs") as gs:
        yield {"s3": s3, "gs": gs}


@pytest.fixture(params=["s3", "gs"])
def bucket(fronts, request, monkeypatch):
    """A folder of its own in a bucket of each kind, with what finds the server in the environment."""
    import servers

    from oneforcing_jax.system import places

    front = fronts[request.param]
    for name, value in servers.environment(request.param, front.url).items():
        monkeypatch.setenv(name, value)
    places._prepare.cache_clear()  # a test before may have named a bucket that has no server
    yield places.path(f"{request.param}://{servers.BUCKET}/{request.node.originalname}")
    front.fault = lambda method, path: None


def pytest_collection_modifyitems(items):
    """The longest first, so that no worker is left alone with it at the end."""
    longest = ("test_toy_chain", "are_killed", "a_kill_is_made_good")
    items.sort(key=lambda item: not any(name in item.nodeid for name in longest))
