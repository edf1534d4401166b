#!/usr/bin/env bash
# After all workers of a stage: may the next one begin? gate.sh STAGE STUDY MARKER... -- COMMAND...
#
# COMMAND is `wsimil status STUDY --stage STAGE --gate`. MARKERs are those of the workers; where the gate refuses they are removed, so
# that the same snakemake command starts workers again once what was wrong is mended.
set -uo pipefail
stage=$1 study=$2
shift 2
markers=()
while [ "$1" != -- ]; do
    markers+=("$1")
    shift
done
shift

said=$("$@")
code=$?
printf '%s\n' "$said"
[ $code != 0 ] || exit 0
rm -f -- "${markers[@]}"
study=$(printf '%q' "$study")
{
    printf '%s\n' "$said"
    case $code in
        3) echo "$stage: too many units failed, so nothing is built on the rest. Mend what is wrong, or allow more with max_bad in the" \
            "config; then: wsimil retry $study --stage $stage, and the same snakemake command again." ;;
        5) echo "$stage: units are left, and no worker. Why they left stands in $study/snakemake/logs. Nothing is done twice; the same" \
            "snakemake command goes on." ;;
        *) echo "$stage: cannot be judged (exit code $code); the same snakemake command goes on." ;;
    esac
} >&2
exit $code
