#!/usr/bin/env bash
# Train on a Slurm cluster, one task for each GPU:
#
#     GPUS=16 GPUS_PER_NODE=8 CPUS_PER_TASK=5 bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
#
# In brackets the defaults: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5). GPUS_PER_NODE=0 runs GPUS tasks without a GPU, TASKS_PER_NODE
# (all) of them on a node. SRUN_ARGS holds further arguments of srun, such as "--time=24:00:00 --account=me"; PORT is where the tasks meet
# (default: a random one).
# PYTHON names the interpreter; by default it is the one of this checkout's .venv, or python.
set -eu
if [ $# -lt 3 ]; then
    echo "usage: bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]" >&2
    exit 2
fi
PARTITION=$1
JOB_NAME=$2
ARGUMENTS=("$3")
shift 3

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -x "$TOOLS/../.venv/bin/python" ] && DEFAULT="$TOOLS/../.venv/bin/python" || DEFAULT=python
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
if [ "$GPUS_PER_NODE" -gt "$GPUS" ]; then GPUS_PER_NODE=$GPUS; fi
TASKS_PER_NODE=${TASKS_PER_NODE:-$((GPUS_PER_NODE > 0 ? GPUS_PER_NODE : GPUS))}
RESOURCES=(--ntasks="$GPUS" --ntasks-per-node="$TASKS_PER_NODE" --cpus-per-task="${CPUS_PER_TASK:-5}")
if [ "$GPUS_PER_NODE" -gt 0 ]; then RESOURCES+=(--gres="gpu:$GPUS_PER_NODE"); fi
export MASTER_PORT=${PORT:-$((20000 + RANDOM % 20000))} # the same for all tasks: srun passes the environment on
# shellcheck disable=SC2086  # SRUN_ARGS is a list of words
exec srun --partition="$PARTITION" --job-name="$JOB_NAME" "${RESOURCES[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-$DEFAULT}" -u "$TOOLS/train.py" "${ARGUMENTS[@]}" --launcher slurm "$@"
