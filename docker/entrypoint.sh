#!/usr/bin/env bash
# The command `wsimil` of the images. It holds what an entry point would set up, because Slurm's --container-image and Apptainer run
# a command and no entry point: under any user id, also one without a name or a home, with a root file system that may be read only.
# What the user set and can be used stays as it is.
set -euo pipefail

note() { echo "wsimil: $*" >&2; }

# usable FOLDER: it is there, or can be made, and can be written to.
usable() { [ -n "$1" ] && mkdir -p "$1" 2> /dev/null && [ -w "$1" ]; }

# Module systems of clusters export these; another Python's packages would be imported here.
unset PYTHONPATH PYTHONHOME

user=$(id -u)

if [ -n "${TMPDIR:-}" ] && ! usable "$TMPDIR"; then
    note "TMPDIR=$TMPDIR cannot be written to in this container; /tmp is used"
    unset TMPDIR
fi
temporary=${TMPDIR:-/tmp}
if ! usable "$temporary"; then
    note "$temporary cannot be written to; mount a temporary folder there, as with: docker run --tmpfs /tmp"
    exit 2
fi

# Triton loads code from its cache, and /tmp may be the host's: a folder counts only if nobody else could have put anything there.
# `stat` does not follow a link, so a link is no such folder.
private=$temporary/wsimil-$user
mkdir -m 700 "$private" 2> /dev/null || true
if [ "$(stat -c %u:%a "$private" 2> /dev/null)" != "$user:700" ]; then
    private=$(mktemp -d "$temporary/wsimil-$user-XXXXXX")
fi

# A user id without an entry in /etc/passwd gets / as its home; a home of the host need not be mounted.
if [ "${HOME:-/}" = / ] || ! usable "${HOME:-}"; then
    export HOME=$private
fi
# For a user id without a name `id` prints the id, and fails.
name=$(id -un 2> /dev/null) || name=user$user
export USER="${USER:-$name}"
export LOGNAME="${LOGNAME:-$USER}"

# keep VARIABLE FOLDER: the user's folder if it is there, else FOLDER. Weights may lie in one that can only be read.
keep() {
    local name=$1 folder=$2 set=${!1:-}
    if [ -n "$set" ] && [ ! -d "$set" ] && ! usable "$set"; then
        note "$name=$set is not there in this container, $folder is used; mount it, or unset $name"
        set=
    fi
    export "$name=${set:-$folder}"
}

# /cache is where to mount what outlives the container: weights of encoders. Compiled kernels stay near.
keep XDG_CACHE_HOME "$HOME/.cache"
weights=${WSIMIL_CACHE:-/cache}
if [ ! -w "$weights" ] && [ -z "$(ls -A "$weights" 2> /dev/null)" ]; then
    weights=$XDG_CACHE_HOME
fi
keep HF_HOME "$weights/huggingface"
keep TORCH_HOME "$weights/torch"
keep TRITON_CACHE_DIR "$private/triton"
keep TORCHINDUCTOR_CACHE_DIR "$private/inductor"
keep MPLCONFIGDIR "$private/matplotlib"

exec "$(dirname "$(readlink -f "$0")")/../bin/python" -m wsimil "$@"
