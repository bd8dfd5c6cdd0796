"""What docs/launch names: scripts and files parse, SLURM's starts processes, a lost one comes back."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from waits import HANG, until

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "tools" / "launch"
# Stands in for srun: the options that are its own, then two tasks with the variables that SLURM sets.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >> "$OUT/options"; shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids[$i]=$!; done
highest=0
for pid in "${pids[@]}"; do wait "$pid"; code=$?; [ $code -gt $highest ] && highest=$code; done
exit $highest
"""
# Stands in for the interpreter: what it is given is that of main, which joins and says who it is.
PYTHON = """#!{python}
import argparse, os, pathlib, sys
from oneforcing_jax.system import processes
parser = argparse.ArgumentParser()
parser.add_argument("-m")
processes.add_options(parser)
given, rest = parser.parse_known_args()
out = pathlib.Path(os.environ["OUT"])
with processes.ending("the same command continues"):
    processes.join(given)
    found = processes.exchange(os.environ["SLURM_PROCID"], "numbers")
    (out / f"task{{found.index(os.environ['SLURM_PROCID'])}}").write_text(" ".join([given.m, *found, *rest]))
sys.exit(int(os.environ["CODE"]))
"""


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("file", sorted(LAUNCH.glob("*.sh")), ids=lambda file: file.name)
def test_scripts_parse(file):
    subprocess.run(["bash", "-n", file], check=True)
    assert os.access(file, os.X_OK)


def test_slurm_starts_a_process_a_task_and_comes_back(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    script(tools / "srun", SRUN)
    script(tools / "scontrol", '#!/bin/bash\necho "$@" >> "$OUT/requeued"\n')
    python = script(tools / "python", PYTHON.format(python=sys.executable))
    env = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}", "OUT": str(tmp_path), "PYTHON": str(python),
        "SLURM_JOB_ID": str(os.getpid()), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "CODE": "75",
    }  # fmt: skip
    command = [LAUNCH / "slurm.sh", "--config=c.py"]
    assert subprocess.run(command, env=env, timeout=HANG).returncode == 75
    for i in range(2):
        said = (tmp_path / f"task{i}").read_text()
        assert said == "oneforcing_jax.main 0 1 --config=c.py"
    assert (tmp_path / "options").read_text().split() == ["--kill-on-bad-exit=0", "--wait=300"]
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"), [(1, 0, 0), (143, 0, 1), (137, 19, 1), (75, 20, 0), (0, 0, 0)]
)
def test_slurm_queues_again_what_can_go_on(tmp_path, code, restarts, requeued):
    script(tmp_path / "srun", f"#!/bin/bash\nexit {code}\n")
    script(tmp_path / "scontrol", '#!/bin/bash\necho "$@" >> "$OUT/requeued"\n')
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path), "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarts),
    }  # fmt: skip
    assert subprocess.run([LAUNCH / "slurm.sh"], env=env).returncode == code
    assert (tmp_path / "requeued").exists() == bool(requeued)


def test_again_starts_what_was_lost_and_passes_signals_on(tmp_path):
    lost = f"echo x >> {tmp_path}/tries; [ $(wc -l < {tmp_path}/tries) -ge 3 ] || exit 75; exit 4"
    env = os.environ | {"PAUSE": "0"}
    assert subprocess.run([LAUNCH / "again.sh", "bash", "-c", lost], env=env).returncode == 4
    assert (tmp_path / "tries").read_text() == "x\nx\nx\n"
    never = [LAUNCH / "again.sh", "bash", "-c", "exit 75"]
    assert subprocess.run(never, env=env | {"RESTARTS": "2"}, stderr=-1).returncode == 75

    saves = f"trap 'sleep 0.3; exit 143' TERM; touch {tmp_path}/up; while true; do sleep 0.05; done"
    process = subprocess.Popen([LAUNCH / "again.sh", "bash", "-c", saves], env=env)
    until((tmp_path / "up").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG) == 143


def test_the_jobset_is_whole():
    found = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["parallelism"] == job["completions"]
    # A rule about exit codes is refused where pods restart, and names its container.
    assert pod["restartPolicy"] == "Never"
    rule = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule["containerName"] == pod["containers"][0]["name"]
    assert not set(rule["values"]) & {75, 137, 143}
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = eval(topology.replace("x", "*"))
    assert (
        chips == job["parallelism"] * pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    )


def test_pages_name_what_there_is():
    pages = list((ROOT / "docs" / "launch").glob("*.md"))
    assert len(pages) == 7
    for page in pages:
        text = page.read_text()
        for name in re.findall(r"(?:tools|tests|configs|oneforcing_jax)/[\w/]+\.\w+", text):
            assert (ROOT / name).is_file(), (page.name, name)
        for name in re.findall(r"\]\((\w+\.md)\)", text):
            assert (page.parent / name).is_file(), (page.name, name)
