#!/bin/sh
# Write constraints.txt and constraints-devices.txt afresh: every version that the Makefile
# installs, for Python 3.10 to 3.13.  The runtimes of phones and boards have a file and an
# environment of their own, because some of them need older versions of what cgrseg uses.
#
# One resolution serves all of them; where a package no longer supports an older Python, its line
# carries a marker.  torch is pinned by hand because its wheels come in builds (CPU, CUDA) and a
# change of it deserves a run of the benchmarks.
#
# Usage: sh scripts/update_constraints.sh [TORCH_VERSION]
set -eu
cd "$(dirname "$0")/.."
torch_version=${1:-2.13.0}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet uv
echo "torch==$torch_version" > "$work/by-hand.txt"
# Newer ones are for Python 3.10 alone, an upper bound that uv does not see.
echo "backports-strenum<1.3" >> "$work/by-hand.txt"

pin() { # FILE EXTRA...
    file=$1
    shift
    extras=$(printf -- '--extra %s ' "$@")
    {
        echo "# What the Makefile installs with $*, for Python 3.10 to 3.13."
        echo "# Made by: sh scripts/update_constraints.sh $torch_version"
        # shellcheck disable=SC2086
        "$work/venv/bin/uv" pip compile pyproject.toml $extras --universal --python-version 3.10 \
            --constraint "$work/by-hand.txt" --no-annotate --no-header --quiet
    } > "$work/constraints.txt"
    mv "$work/constraints.txt" "$file"
    echo "$file: $(grep -c '==' "$file") pins"
}

pin constraints.txt dev convert export geo ray web docs hf
pin constraints-devices.txt dev export executorch litert coreml ncnn
