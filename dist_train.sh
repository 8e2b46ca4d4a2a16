#!/bin/sh
# The older form of tools/dist_train.sh, with the same arguments.
exec sh "$(dirname -- "$0")/tools/dist_train.sh" "$@"
