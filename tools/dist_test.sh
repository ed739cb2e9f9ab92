#!/usr/bin/env bash
# Test on several GPUs, or as several processes on a machine without any:
#
#     bash tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [options of tools/test.py]
#
# On several machines, the same on each of them with its own NODE_RANK:
#
#     NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500 bash tools/dist_test.sh CONFIG CHECKPOINT 8
#
# PYTHON names the interpreter; by default it is the one of this checkout's .venv, or python.
set -eu
if [ $# -lt 3 ]; then
    echo "usage: bash tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [options of tools/test.py]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"
start_by_torchrun "$3" "$TOOLS/test.py" "$1" "$2" "${@:4}"
