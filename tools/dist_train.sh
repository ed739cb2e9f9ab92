#!/usr/bin/env bash
# Train on several GPUs, or as several processes on a machine without any:
#
#     bash tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]
#
# On several machines, the same on each of them with its own NODE_RANK:
#
#     NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500 bash tools/dist_train.sh CONFIG 8
#
# With MAX_RESTARTS, processes are started again when one of them dies, and go on from the newest checkpoint:
#
#     MAX_RESTARTS=3 bash tools/dist_train.sh CONFIG 8 --resume
#     MAX_RESTARTS=3 NNODES=2 MASTER_ADDR=10.0.0.1 PORT=29500 bash tools/dist_train.sh CONFIG 8 --resume
#
# Machines may come and go then, NNODES=1:2 goes on with one of two; NODE_RANK is not needed.
# PYTHON names the interpreter; by default it is the one of this checkout's .venv, or python.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: bash tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"
start_by_torchrun "$2" "$TOOLS/train.py" "$1" "${@:3}"
