"""The counter of walks through the code."""

import runpy
from pathlib import Path

from oneforcing_jax.causal.plan import make_plan

WALKS = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "walks.py"))


def test_a_walk_counts_first_calls_and_knows_who_stands_above():
    with WALKS["walked"]() as walk:
        for _ in range(2):
            make_plan(3, 1, [1000], 5.0)
    assert list(walk.steps) == [("causal.plan", "make_plan"), ("flow", "warp_steps")]
    assert walk.line == "2 functions in 2 modules, 0 climbs, 0 returns"
    assert {"setup.config", "causal.plan"} < WALKS["below"]("main")
    assert "main" not in WALKS["below"]("setup.config") and "causal.plan" not in WALKS["below"](
        "flow"
    )
