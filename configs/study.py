"""The toy on which tools/study.py compares methods: all initialisations are made, one student is scored.

python tools/study.py --out=runs/study
"""

import runpy
from pathlib import Path

HERE = Path(__file__).parent
TOY = runpy.run_path(str(HERE / "toy.py"))
TRAIN = runpy.run_path(str(HERE / "base.py"))["train_stage"]


def get_config():
    c = TOY["get_config"]()
    c.consistency = {"steps": 12, "guidance": c.ode.guidance}
    causal = "teacher_forcing:model"
    # As the regression of ODE pairs, which it stands in for.
    rules = {"model": c.stages.ode.optimisers.model.copy_and_resolve_references()}
    c.stages.consistency = TRAIN(
        "causal_consistency", "world/store", 200, 8, rules, {"model": causal, "teacher": causal},
        ema={"decay": 0.97, "start": 0}, log_every=10,
    )  # fmt: skip
    c.stages.one_forcing.samples.every = 0
    # The teacher's scores are those of the exam.
    c.stages.report.teacher = ""
    c.stages.report.students = (("student", "ema one_forcing:generator"),)
    c.stages.report.videos = 3
    c.run = ("world", "teacher", "exam", "teacher_forcing", "ode_pairs", "ode", "consistency")
    return c
