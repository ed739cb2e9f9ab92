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
ARGUMENTS=("$1" "$2")
PROCESSES=$3
shift 3

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -x "$TOOLS/../.venv/bin/python" ] && DEFAULT="$TOOLS/../.venv/bin/python" || DEFAULT=python
if [ "${NNODES:-1}" = 1 ] && [ -z "${PORT:-}" ]; then
    MEETING=(--standalone) # torchrun finds a free port: several runs fit on one machine
else
    MEETING=(--nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}")
fi
exec "${PYTHON:-$DEFAULT}" -m torch.distributed.run "${MEETING[@]}" --nproc-per-node "$PROCESSES" \
    "$TOOLS/test.py" "${ARGUMENTS[@]}" --launcher pytorch "$@"
