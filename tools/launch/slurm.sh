#!/bin/bash
# A run on nodes of a SLURM cluster, a process for each GPU:
#
#   sbatch --nodes=4 tools/launch/slurm.sh --config=configs/framewise.py --workdir=/shared/runs/framewise ...
#
# It goes back into the queue when its time is over, a process was lost, or it was preempted; an error ends it.
# docs/launch/slurm.md says more.
#SBATCH --job-name=oneforcing
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append

most=${RESTARTS:-20}
python=${PYTHON:-python}

# All processes end by themselves when one does; what has not after these seconds is ended.
srun --kill-on-bad-exit=0 --wait=300 "$python" -m oneforcing_jax.main --distributed "$@"
code=$?

# 75: a process was lost. 143: stopped and saved. 137: killed, of which SLURM reports the highest code.
case $code in
  75 | 137 | 143)
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$most" ]; then
      scontrol requeue "$SLURM_JOB_ID"
    else
      echo "restarted $most times: no more" >&2
    fi
    ;;
esac
exit $code
