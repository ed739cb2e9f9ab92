# Sourced by dist_train.sh, dist_test.sh, slurm_train.sh and slurm_test.sh: what they check before a process starts, and how they start them.
# Nothing is run by this file itself.
# shellcheck shell=bash

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -x "$TOOLS/../.venv/bin/python" ] && DEFAULT="$TOOLS/../.venv/bin/python" || DEFAULT=python
PYTHON=${PYTHON:-$DEFAULT}

refuse() {
    echo "error: $1" >&2
    exit 2
}

# check_number NAME VALUE LEAST [MOST]
check_number() {
    local range="from $3${4:+ to $4}"
    [ -n "${4:-}" ] || range="of at least $3"
    [[ $2 =~ ^[0-9]{1,9}$ ]] && [ "$2" -ge "$3" ] && [ "$2" -le "${4:-999999999}" ] || refuse "$1=$2: expected a whole number $range"
}

# check_config CONFIG: the same message as that of the tools, from one process and at once.
check_config() {
    "$PYTHON" -c '
import sys
from mmcae.utils.errors import one_line_errors
from mmcae.utils.packaged import find_config

with one_line_errors():
    find_config(sys.argv[1])' "$1"
}

# start_by_torchrun PROCESSES PROGRAM CONFIG [ARGUMENT...]
start_by_torchrun() {
    local processes=$1 nodes=${NNODES:-1} rank=${NODE_RANK:-0} address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500} restarts=${MAX_RESTARTS:-0}
    shift
    check_number PROCESSES "$processes" 1
    check_number PORT "$port" 1 65535
    check_number MAX_RESTARTS "$restarts" 0
    local meeting=(--nproc-per-node "$processes" --max-restarts "$restarts") elastic=
    if [ "$restarts" -gt 0 ] || [[ $nodes == *:* ]]; then
        elastic=yes
        # torch 2.13 keeps the store of the first start, in which processes that start again find the addresses of those that have died.
        export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    fi
    if [[ $nodes == *:* ]]; then
        check_number 'NNODES (the least)' "${nodes%%:*}" 1
        check_number 'NNODES (the most)' "${nodes#*:}" "${nodes%%:*}"
    else
        check_number NNODES "$nodes" 1
        check_number NODE_RANK "$rank" 0 $((nodes - 1))
    fi
    if [ "$nodes" = 1 ] && [ -z "${PORT:-}" ]; then
        meeting+=(--standalone) # torchrun finds a free port: several runs fit on one machine
    elif [ -n "$elastic" ]; then
        meeting+=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$address:$port" --rdzv-id "$address:$port")
    else
        if [ "$rank" = 0 ] && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            refuse "PORT=$port is in use on this machine: choose another, the same on all machines"
        fi
        meeting+=(--nnodes "$nodes" --node-rank "$rank" --master-addr "$address" --master-port "$port")
    fi
    check_config "$2"
    exec "$PYTHON" -m torch.distributed.run "${meeting[@]}" "$1" "$2" --launcher pytorch "${@:3}"
}

# start_by_srun PARTITION JOB_NAME PROGRAM CONFIG [ARGUMENT...]
start_by_srun() {
    local partition=$1 name=$2 gpus=${GPUS:-8} gpus_per_node=${GPUS_PER_NODE:-8}
    shift 2
    check_number GPUS "$gpus" 1
    check_number GPUS_PER_NODE "$gpus_per_node" 0
    check_number CPUS_PER_TASK "${CPUS_PER_TASK:-5}" 1
    if [ "$gpus_per_node" -gt "$gpus" ]; then gpus_per_node=$gpus; fi
    local tasks=${TASKS_PER_NODE:-$((gpus_per_node > 0 ? gpus_per_node : gpus))}
    check_number TASKS_PER_NODE "$tasks" 1
    local resources=(--ntasks="$gpus" --ntasks-per-node="$tasks" --cpus-per-task="${CPUS_PER_TASK:-5}")
    if [ "$gpus_per_node" -gt 0 ]; then resources+=(--gres="gpu:$gpus_per_node"); fi
    export MASTER_PORT=${PORT:-$((20000 + RANDOM % 12000))} # below those that Linux gives to connections; srun passes it on to all tasks
    check_number PORT "$MASTER_PORT" 1 65535
    command -v srun >/dev/null || refuse 'srun is not in PATH: this machine has no Slurm, start by dist_train.sh or dist_test.sh'
    check_config "$2"
    # shellcheck disable=SC2086  # SRUN_ARGS is a list of words
    exec srun --partition="$partition" --job-name="$name" "${resources[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
        "$PYTHON" -u "$1" "$2" --launcher slurm "${@:3}"
}
