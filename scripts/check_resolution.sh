#!/bin/sh
# Resolve the dependencies, without installing them, for every Python that the package names:
# what constraints.txt pins, the newest versions with every extra, and the lowest ones allowed.
#
# Usage: sh scripts/check_resolution.sh [PYTHON_VERSION ...]      (default: 3.10 3.11 3.12 3.13)
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 3.10 3.11 3.12 3.13

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet uv

environment="--extra dev --extra convert --extra export --extra geo --extra ray --extra web --extra docs --extra hf --extra wandb --extra mlflow"
devices="--extra dev --extra export --extra executorch --extra litert --extra coreml --extra ncnn"
failed=0
# antlr4-python3-runtime, which ExecuTorch brings, has no wheel.
resolve() { # PYTHON_VERSION LABEL UV_ARGUMENTS...
    python_version=$1
    label=$2
    shift 2
    if "$work/venv/bin/uv" pip compile pyproject.toml --python-version "$python_version" \
        --only-binary :all: --no-binary antlr4-python3-runtime \
        --no-annotate --no-header --quiet "$@" \
        > "$work/resolved.txt" 2> "$work/errors.txt"; then
        echo "Python $python_version, $label: $(grep -c '==' "$work/resolved.txt") packages," \
            "$(grep '^torch==' "$work/resolved.txt"), $(grep '^numpy==' "$work/resolved.txt")"
    else
        failed=1
        echo "Python $python_version, $label: does not resolve"
        sed 's/^/    /' "$work/errors.txt"
    fi
}

for version in "$@"; do
    resolve "$version" "pinned" $environment --constraint constraints.txt
    resolve "$version" "pinned, devices" $devices --constraint constraints-devices.txt
    resolve "$version" "newest, every extra" --all-extras
    for extra in executorch litert coreml ncnn; do
        resolve "$version" "newest, $extra alone" --extra "$extra"
    done
    resolve "$version" "lowest" --resolution lowest-direct
done
exit $failed
