#!/usr/bin/env bash
# Test on a Slurm cluster, one task for each GPU:
#
#     GPUS=16 GPUS_PER_NODE=8 CPUS_PER_TASK=5 bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
#
# In brackets the defaults: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5). GPUS_PER_NODE=0 runs GPUS tasks without a GPU, TASKS_PER_NODE
# (all) of them on a node. SRUN_ARGS holds further arguments of srun, such as "--time=24:00:00 --account=me"; PORT is where the tasks meet
# (default: a random one).
# PYTHON names the interpreter; by default it is the one of this checkout's .venv, or python.
set -eu
if [ $# -lt 4 ]; then
    echo "usage: bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"
start_by_srun "$1" "$2" "$TOOLS/test.py" "${@:3}"
