#!/bin/sh
# Train with one process per GPU, on one machine or several.
#
#   sh tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
#
# CONFIG is a file or the name of a run; GPUS is the number of processes on this machine
# (without a GPU they share the CPU).  Several machines: set NNODES, NODE_RANK (0, 1, ...),
# MASTER_ADDR (a name that all machines reach the first one by) and PORT, and run the same
# command on each.  PYTHON chooses the interpreter.
set -eu

if [ "$#" -lt 2 ]; then
    echo "usage: sh $0 CONFIG GPUS [arguments of tools/train.py]" >&2
    exit 2
fi
config=$1
processes=$2
shift 2
case $processes in
    '' | *[!0-9]* | 0)
        echo "$0: the number of GPUs must be a positive number, not '$processes'" >&2
        exit 2
        ;;
esac
case ${NNODES:-1} in
    1 | 1:1) ;;
    *)
        # Each machine would wait for the others at its own address, until a timeout.
        if [ -z "${MASTER_ADDR:-}" ]; then
            echo "$0: NNODES=$NNODES needs MASTER_ADDR, a name or address of the machine with" \
                "NODE_RANK=0 that all machines reach (and PORT, the same on all)" >&2
            exit 2
        fi
        if [ -z "${NODE_RANK:-}" ]; then
            echo "$0: NNODES=$NNODES needs NODE_RANK, from 0, another on each machine" >&2
            exit 2
        fi
        ;;
esac

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-}
if [ -z "$python" ]; then
    if command -v python >/dev/null 2>&1; then python=python; else python=python3; fi
fi

if [ "${NNODES:-1}" = 1 ] && [ -z "${PORT:-}" ] && [ -z "${MASTER_ADDR:-}" ]; then
    # One machine: let the launcher find a free port, so that two runs do not collide.
    set -- --standalone --nproc-per-node="$processes" \
        "$here/train.py" "$config" --launcher pytorch "$@"
else
    set -- --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" \
        --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
        --nproc-per-node="$processes" \
        "$here/train.py" "$config" --launcher pytorch "$@"
fi
exec "$python" -m torch.distributed.run "$@"
