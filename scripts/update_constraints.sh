#!/bin/sh
# Write constraints.txt afresh: every version that the Makefile installs, for Python 3.10 to 3.13.
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
echo "torch==$torch_version" > "$work/torch.txt"

{
    echo "# What the Makefile installs, for Python 3.10 to 3.13."
    echo "# Made by: sh scripts/update_constraints.sh $torch_version"
    "$work/venv/bin/uv" pip compile pyproject.toml \
        --extra dev --extra convert --extra export --extra web --extra docs --extra hf --universal --python-version 3.10 \
        --constraint "$work/torch.txt" --no-annotate --no-header --quiet
} > "$work/constraints.txt"
mv "$work/constraints.txt" constraints.txt
echo "constraints.txt: $(grep -c '==' constraints.txt) pins"
