#!/usr/bin/env bash
# One worker of a stage: worker.sh MARKER LOG START LIMIT_S COMMAND...
#
# MARKER is made where Snakemake has nothing more to do for this worker, and says how it left; whether the stage is done is for the
# gate to say. START counts how often it was started, from 1; LIMIT_S (0: none) is when it is told to hand back what it holds.
set -uo pipefail
marker=$1 log=$2 start=$3 limit_s=$4
shift 4

# No module is taken from the folder that Snakemake happens to run in.
export PYTHONSAFEPATH=1
mkdir -p "$(dirname "$log")"
if [ "$limit_s" != 0 ]; then
    set -- timeout --foreground --preserve-status "--signal=USR1" "$limit_s" "$@"
fi
"$@" >> "$log" 2>&1
code=$?
said="$(date '+%F %T') $(basename "$log" .log) on $(hostname -s), start $start: left with exit code $code"
echo "$said" >> "$log"
case $code in
    # The stage has come to its end, or may not go on.
    0 | 1 | 3) echo "$said" >&2 ;;
    # This machine is not fit, a GPU, a disk: again, elsewhere if there is an elsewhere; in the end others do without this worker.
    2 | 4)
        tail -n 5 "$log" >&2
        [ "$start" -ge 3 ] || exit $code
        ;;
    # Its time was up (75), it was ended or killed: again.
    *)
        tail -n 5 "$log" >&2
        exit $code
        ;;
esac
echo "$code" > "$marker"
