#!/usr/bin/env bash
# Can the work in this container go on? It looks at what breaks under a running job: a full or read-only temporary folder, a file
# system that no longer answers, a GPU that fell off the bus. It loads no Python, so it costs a worker nothing.
set -euo pipefail

sick() {
    echo "wsimil-healthy: $*" >&2
    exit 1
}

limit_s=10

temporary=${TMPDIR:-/tmp}
[ -d "$temporary" ] || temporary=/tmp
probe=$(timeout "$limit_s" mktemp "$temporary/wsimil-healthy-XXXXXX" 2>&1) || sick "$temporary: nothing can be written there ($probe)"
rm -f "$probe"

timeout "$limit_s" ls -d . > /dev/null 2>&1 || sick "the working folder did not answer within $limit_s s; look at its mount"

# Named by the runtime, or by Slurm; `void`, `none` and nothing are those of a container without a GPU.
case ${NVIDIA_VISIBLE_DEVICES:-void} in
    void | none) ;;
    *)
        if command -v nvidia-smi > /dev/null; then
            answer=$(timeout "$limit_s" nvidia-smi --list-gpus 2>&1) || sick "nvidia-smi: ${answer:-no answer within $limit_s s}"
        fi
        ;;
esac
