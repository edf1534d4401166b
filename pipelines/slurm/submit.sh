#!/usr/bin/env bash
# Queue a planned study on a Slurm cluster: workers for each of its stages, and a gate between stages.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat << 'EOT'
usage: submit.sh [SETTINGS] [--dry-run] [--more N --stage STAGE]

Queues the stages of the study that SETTINGS (./slurm.env) names, one after the other: extract, train, predict, overlays, report,
those that its plan holds and that are not done. The same command again goes on where everything stopped; nothing is done twice.

  --dry-run       print the sbatch commands, queue nothing, write nothing
  --more N        N more workers for a stage that is in the queue or left unfinished; with --stage
  --stage STAGE   extract, train, predict, overlays or report

Exit codes: 0 queued, or nothing to do; 2 refused, and nothing is queued; 3 a stage that has ended holds too many failed units.
EOT
}

refuse() {
    echo "submit.sh: $*" >&2
    exit 2
}

STAGES=(extract train predict overlays report) # in the order of the plan, once it is read
KNOWN=(STUDY VENV CONTAINER CONTAINER_RUNTIME MOUNTS MODULES PARTITION ACCOUNT QOS GPUS GRES CPUS MEM TIME SIGNAL_S CPU_STAGES
    CPU_PARTITION CPU_WORKERS CPU_MEM STAGE_DIR HF_HOME STAGE MAX_BAD WORKER_EXTRA SBATCH_EXTRA)

main() {
    local settings='' dry='' more='' only=''
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) usage && exit ;;
            -n | --dry-run) dry=yes ;;
            --more) more=${2:-} && shift ;;
            --stage) only=${2:-} && shift ;;
            -*) refuse "no option $1; --help names them" ;;
            *)
                [ -z "$settings" ] || refuse "two files of settings, $settings and $1; give one"
                settings=$1
                ;;
        esac
        shift || refuse "the last option lacks its value; --help says which"
    done
    settings=${settings:-slurm.env}
    if [ -n "$more$only" ]; then
        is_count "$more" || refuse "--more: got '$more', wanted the number of workers to add"
        contains "$only" "${STAGES[@]}" || refuse "--stage: got '$only', wanted one of ${STAGES[*]}"
    fi
    read_settings "$settings"
    check_settings "$settings"
    check_slurm
    RESUME="$(printf '%q' "$HERE/submit.sh") $(printf '%q' "$(absolute "$settings")")"
    WEIGHTS=''
    # shellcheck source=environment.sh
    . "$HERE/environment.sh"
    wsimil_environment login cpu || refuse "MODULES: see above"
    read_plan
    count_units
    refuse_two_at_once "$more"
    refuse_failed
    SUBMISSION=$STUDY/slurm/$(date +%Y%m%d-%H%M%S)-$$
    DRY=$dry
    [ -n "$dry" ] || write_kit
    QUEUED=()
    trap take_back EXIT
    if [ -n "$more" ]; then
        add_workers "$only" "$more"
    else
        queue_chain
    fi
    trap - EXIT
}

read_settings() {
    local file=$1 name wrong
    [ -f "$file" ] || refuse "no settings in $file; copy $HERE/slurm.env.example there and change it"
    bash -e "$file" > /dev/null || refuse "$file: bash cannot read it, see above; quote what holds spaces, and give lists as NAME=(first second)"
    wrong=$(sed -nE 's/^[[:space:]]*(export[[:space:]]+)?([A-Z][A-Z0-9_]*)\+?=.*/\2/p' "$file" | grep -vxF "$(printf '%s\n' "${KNOWN[@]}")" || true)
    [ -z "$wrong" ] || refuse "$file: no setting is called $(echo "$wrong" | tr '\n' ' '); there are ${KNOWN[*]}"
    # What stands in the caller's environment under these names is meant for others.
    unset "${KNOWN[@]}"
    # shellcheck disable=SC2034
    MOUNTS=() STAGE=() WORKER_EXTRA=() SBATCH_EXTRA=() CPU_STAGES=(overlays report)
    # shellcheck source=/dev/null
    . "$file"
    for name in "${KNOWN[@]}"; do
        case $name in
            MOUNTS | STAGE | WORKER_EXTRA | SBATCH_EXTRA | CPU_STAGES) ;;
            *) declare -g "$name=${!name:-$(default "$name")}" ;;
        esac
    done
    CPU_PARTITION=${CPU_PARTITION:-$PARTITION}
    if [ -n "$CONTAINER" ] && [ -z "$CONTAINER_RUNTIME" ]; then
        [[ $CONTAINER == *.sif ]] && CONTAINER_RUNTIME=apptainer || CONTAINER_RUNTIME=pyxis
    fi
}

default() {
    case $1 in
        GPUS) echo 4 ;; GRES) echo gpu:1 ;; CPUS) echo 8 ;; MEM) echo 32G ;; TIME) echo 04:00:00 ;; SIGNAL_S) echo 120 ;;
        CPU_WORKERS) echo 4 ;; CPU_MEM) echo 16G ;;
    esac
}

check_settings() {
    local file=$1 name path stage seconds
    [ -n "$STUDY" ] || refuse "$file: STUDY is empty; give the folder that wsimil plan made"
    [ -d "$STUDY" ] || refuse "$file: STUDY: $STUDY is not a folder; make it with: wsimil plan STUDY.yaml -o $(printf '%q' "$STUDY")"
    STUDY=$(absolute "$STUDY")
    [ -f "$STUDY/work/plan.json" ] || refuse "$STUDY holds no plan; make it with: wsimil plan STUDY.yaml -o $(printf '%q' "$STUDY")"
    [ -w "$STUDY" ] || refuse "$STUDY cannot be written by $(id -un)"
    # Slurm reads % and \ in the names of logs.
    [[ $STUDY != *[%\\$'\n']* ]] || refuse "$STUDY: Slurm cannot name logs in a folder with %, \\ or a line break; plan it elsewhere"
    for name in GPUS CPUS SIGNAL_S CPU_WORKERS; do
        is_count "${!name}" || refuse "$file: $name: got '${!name}', wanted a whole number from 1"
    done
    seconds=$(in_seconds "$TIME") || refuse "$file: TIME: got '$TIME', wanted [days-]hours:minutes:seconds, such as 04:00:00"
    # Slurm looks at the clock of jobs twice a minute, and a worker needs some seconds to put its unit down.
    [ "$SIGNAL_S" -ge 60 ] || refuse "$file: SIGNAL_S: got $SIGNAL_S, wanted 60 or more; a later notice can come too late"
    [ "$seconds" -gt $((2 * SIGNAL_S)) ] || refuse "$file: TIME: $TIME leaves no time to work before SIGNAL_S ($SIGNAL_S s) of its end"
    [[ $MAX_BAD =~ ^(0?\.[0-9]+|[01](\.0*)?)?$ ]] || refuse "$file: MAX_BAD: got '$MAX_BAD', wanted a share from 0 to 1, such as 0.1"
    for stage in ${CPU_STAGES[@]+"${CPU_STAGES[@]}"}; do
        contains "$stage" "${STAGES[@]}" || refuse "$file: CPU_STAGES: got '$stage', wanted some of ${STAGES[*]}"
    done
    if [ -n "$VENV" ] && [ -n "$CONTAINER" ]; then
        refuse "$file: VENV and CONTAINER are both set; leave one of them empty"
    elif [ -n "$VENV" ]; then
        VENV=$(absolute "$VENV")
        [ -x "$VENV/bin/python" ] || refuse "$file: VENV: no $VENV/bin/python; give the folder of an environment that holds wsimil"
    elif [ -n "$CONTAINER" ]; then
        contains "$CONTAINER_RUNTIME" apptainer pyxis || refuse "$file: CONTAINER_RUNTIME: got '$CONTAINER_RUNTIME', wanted apptainer or pyxis"
        case $CONTAINER in
            /* | ./* | *.sif | *.sqsh) [ -f "$CONTAINER" ] || refuse "$file: CONTAINER: no image $CONTAINER" && CONTAINER=$(absolute "$CONTAINER") ;;
        esac
        [ "$CONTAINER_RUNTIME" != apptainer ] || command -v apptainer > /dev/null || refuse "apptainer is not known on $(hostname); load it with MODULES, or submit from where it is"
    else
        refuse "$file: neither VENV nor CONTAINER says how wsimil is run; set one of them"
    fi
    if [ ${#STAGE[@]} -gt 0 ] && [ -z "$CONTAINER" ]; then
        refuse "$file: STAGE: without a container nothing can stand in the place of the original; leave it empty, or set CONTAINER"
    fi
    if { [ ${#STAGE[@]} -gt 0 ] || [ -n "$STAGE_DIR" ]; } && [[ $STAGE_DIR != /* ]]; then
        refuse "$file: STAGE_DIR: got '$STAGE_DIR', wanted a folder on the nodes' own disks, such as /local/wsimil-$(id -un)"
    fi
    for path in ${HF_HOME:+"$HF_HOME"} ${STAGE[@]+"${STAGE[@]}"} ${MOUNTS[@]+"${MOUNTS[@]}"}; do
        [[ $path == /* && -e $path ]] || refuse "$file: $path: wanted a path that exists, from /"
    done
    for path in "$STUDY" "$CONTAINER" "$HF_HOME" ${STAGE[@]+"${STAGE[@]}"} ${MOUNTS[@]+"${MOUNTS[@]}"}; do
        [ -z "$CONTAINER" ] || [[ $path != *[:,]* ]] || [ "$path" = "$CONTAINER" ] || refuse "$path: containers cannot mount names with : or ,"
    done
}

check_slurm() {
    local program name limit
    for program in sbatch squeue scontrol scancel; do
        command -v "$program" > /dev/null || refuse "$program is not known on $(hostname); submit from a login node of the cluster"
    done
    for name in "$PARTITION" "$CPU_PARTITION"; do
        [ -z "$name" ] || scontrol show partition "$name" > /dev/null 2>&1 || refuse "PARTITION: Slurm has no partition $name, or does not answer; it has: $(scontrol -o show partition | sed -nE 's/^PartitionName=([^ ]+).*/\1/p' | tr '\n' ' ')"
    done
    limit=$(scontrol show config | sed -nE 's/^MaxArraySize *= *([0-9]+).*/\1/p')
    for name in GPUS CPU_WORKERS; do
        [ -z "$limit" ] || [ "${!name}" -lt "$limit" ] || refuse "$name: got ${!name}, and this cluster's arrays end at $((limit - 1)) (MaxArraySize)"
    done
}

# READER: a Python; not in a container where it can be had without, as the start of one may wait in the queue.
# WEIGHTS: the file of the encoder's weights that the plan names; workers may read a copy of it.
read_plan() {
    READER=(python3)
    command -v python3 > /dev/null || READER=("${WSIMIL_PYTHON[@]}")
    WEIGHTS=$("${READER[@]}" -I -c '
import json, sys
with open(sys.argv[1], encoding="utf-8") as file:
    study = json.load(file)["recipe"]["resolved"]
print(study["slides"] and study["extract"]["encoder_weights"] or "")
' "$STUDY/work/plan.json") || refuse "$STUDY/work/plan.json cannot be read, see above"
}

# STAGES: those of the plan, in its order. LEFT[stage]: units of it that are neither done nor bad; REFUSED: stages with too many bad.
count_units() {
    local said stage left refused
    STAGES=() REFUSED=()
    declare -gA LEFT=()
    said=$("${WSIMIL[@]}" status "$STUDY" --json ${MAX_BAD:+--max-bad "$MAX_BAD"}) || refuse "wsimil status $(printf '%q' "$STUDY") failed, see above"
    said=$("${READER[@]}" -I -c '
import json, sys
for stage in json.load(sys.stdin)["stages"]:
    print(stage["name"], stage["running"] + stage["stale"] + stage["todo"], "refused" if stage["refused"] else "")
' <<< "$said") || refuse "what wsimil status said cannot be read, see above"
    while read -r stage left refused; do
        [ -z "$stage" ] || STAGES+=("$stage") LEFT[$stage]=$left
        [ -z "$refused" ] || REFUSED+=("$stage")
    done <<< "$said"
    [ ${#STAGES[@]} -gt 0 ] || refuse "$STUDY: the plan holds no stage"
}

# Nothing but the queue knows whether the jobs of an earlier call still live; two chains would do no harm, and wait for each other.
refuse_two_at_once() {
    local more=$1 jobs live
    jobs=$(cat "$STUDY"/slurm/*/jobs 2> /dev/null | cut -f 3) || true
    [ -n "$jobs" ] || return 0
    live=$(squeue -h -u "$(id -un)" -o %F | sort -u | grep -xF "$jobs" | tr '\n' ' ' || true)
    [ -z "$live" ] || [ -n "$more" ] || refuse "this study is in the queue already, as jobs $live; watch them, add workers with --more N --stage STAGE, or end them with: scancel $live"
}

write_kit() {
    local name
    mkdir -p "$STUDY/logs" "$SUBMISSION" || refuse "$STUDY cannot be written"
    # Jobs run what is here now, whatever becomes of this folder and of the settings until they start.
    cp "$HERE/environment.sh" "$HERE/stage_in.sh" "$SUBMISSION"
    for name in "${KNOWN[@]}" WEIGHTS RESUME; do
        declare -p "$name"
    done > "$SUBMISSION/settings.sh"
}

queue_chain() {
    local stage gate='' array
    for stage in "${STAGES[@]}"; do
        if [ "${LEFT[$stage]}" = 0 ]; then
            echo "$stage: done"
            continue
        fi
        queue_workers "$stage" "$(at_most "$stage" "${LEFT[$stage]}")" "${gate:+afterok:$gate}"
        array=$JOB
        # Not afterany alone: an array that was taken out of the queue has ended, too.
        queue_gate "$stage" "${gate:+afterok:$gate,}afterany:$array"
        gate=$JOB
    done
    if [ ${#QUEUED[@]} -eq 0 ]; then
        echo "nothing to do: every unit of the study is done"
    else
        tell
    fi
}

# Nothing is queued behind a gate that is shut.
refuse_failed() {
    [ ${#REFUSED[@]} -gt 0 ] || return 0
    "${WSIMIL[@]}" status "$STUDY" --stage "${REFUSED[0]}" >&2 || true
    echo "submit.sh: ${REFUSED[0]}: too many units failed; mend what is wrong, or allow more with MAX_BAD, then:" \
        "wsimil retry $(printf '%q' "$STUDY") --stage ${REFUSED[0]} && $RESUME" >&2
    exit 3
}

queue_workers() {
    local stage=$1 count=$2 after=$3 kind=gpu
    contains "$stage" ${CPU_STAGES[@]+"${CPU_STAGES[@]}"} && kind=cpu
    local options=("--job-name=wsimil-$stage" "--array=0-$((count - 1))" "--output=$STUDY/logs/%x-%A_%a.log" --open-mode=append
        --requeue "--signal=B:USR1@$SIGNAL_S" "--time=$TIME" --ntasks=1 "--cpus-per-task=$CPUS")
    if [ $kind = gpu ]; then
        options+=("--partition=$PARTITION" "--gres=$GRES" "--mem=$MEM")
    else
        options+=("--partition=$CPU_PARTITION" "--mem=$CPU_MEM")
    fi
    queue "$stage" workers "$after" "${options[@]}" -- "$HERE/worker.sbatch" "$SUBMISSION" "$stage" $kind
}

queue_gate() {
    queue "$1" gate "$2" "--job-name=wsimil-gate-$1" "--output=$STUDY/logs/%x-%j.log" --open-mode=append --requeue --time=00:15:00 \
        --ntasks=1 --cpus-per-task=1 --mem=2G "--partition=$CPU_PARTITION" -- "$HERE/gate.sbatch" "$SUBMISSION" "$1"
}

# Queue one job and set JOB to its id: STAGE WHAT DEPENDENCY OPTION... -- SCRIPT ARGUMENT...
queue() {
    local stage=$1 what=$2 after=$3 options=(--parsable)
    shift 3
    while [ "$1" != -- ]; do
        # An empty partition is the cluster's own choice.
        [[ $1 == --partition= ]] || options+=("$1")
        shift
    done
    shift
    [ -z "$ACCOUNT" ] || options+=("--account=$ACCOUNT")
    [ -z "$QOS" ] || options+=("--qos=$QOS")
    [ -z "$after" ] || options+=("--dependency=$after" --kill-on-invalid-dep=yes)
    options+=("--chdir=$STUDY" ${SBATCH_EXTRA[@]+"${SBATCH_EXTRA[@]}"})
    if [ -n "$DRY" ]; then
        printf '%s\n' "$(printf '%q ' sbatch "${options[@]}" "$@")"
        JOB=${what^^}_${stage^^}
    else
        JOB=$(sbatch "${options[@]}" "$@") || refuse "Slurm refuses the $what of $stage, see above"
        JOB=${JOB%%;*} # the name of a cluster follows where there are several
        printf '%s\t%s\t%s\n' "$stage" "$what" "$JOB" >> "$SUBMISSION/jobs"
        echo "$stage: $what, job $JOB"
    fi
    QUEUED+=("$JOB")
}

# Half a chain would look like a whole one.
take_back() {
    local code=$?
    if [ -z "$DRY" ] && [ ${#QUEUED[@]} -gt 0 ]; then
        scancel "${QUEUED[@]}"
        echo "submit.sh: what had been queued is taken out again: ${QUEUED[*]}" >&2
    fi
    exit $code
}

add_workers() {
    local stage=$1 count=$2 before after='' gate
    [ -n "${LEFT[$stage]:-}" ] || refuse "--stage: the plan holds no stage $stage; it holds: ${STAGES[*]}"
    [ "${LEFT[$stage]}" != 0 ] || refuse "$stage: no unit is left to do"
    # Before their stage may begin they would find that out, and leave.
    before=$(unfinished_before "$stage")
    if [ -n "$before" ]; then
        gate=$(pending_gate "$before")
        [ -n "$gate" ] || refuse "--stage: $stage comes after $before, of which ${LEFT[$before]} units are left and whose gate does not wait in the queue; queue all that is left with: $RESUME"
        after=afterok:$gate
    fi
    gate=$(pending_gate "$stage")
    queue_workers "$stage" "$count" "$after"
    # The gate waits for those that were added, too.
    if [ -n "$gate" ]; then
        after=$(scontrol -o show job "$gate" | sed -nE 's/.*Dependency=([^ ]+).*/\1/p' | sed -E 's/\([^)]*\)//g; s/_\*//g')
        # Nothing stands there once its workers have ended and it waits for a place alone.
        after=${after:+$after,}afterany:$JOB
        if [ -n "$DRY" ]; then
            echo "scontrol update JobId=$gate Dependency=$after"
        else
            scontrol update "JobId=$gate" "Dependency=$after"
        fi
    fi
    [ -n "$DRY" ] || tell
}

# The last stage before STAGE that has units left.
unfinished_before() {
    local stage found=''
    for stage in "${STAGES[@]}"; do
        [ "$stage" != "$1" ] || break
        [ "${LEFT[$stage]}" = 0 ] || found=$stage
    done
    echo "$found"
}

pending_gate() {
    local gates
    gates=$(cat "$STUDY"/slurm/*/jobs 2> /dev/null | awk -F '\t' -v stage="$1" '$1 == stage && $2 == "gate" { print $3 }') || true
    [ -z "$gates" ] || squeue -h -u "$(id -un)" -t PENDING -o %A | grep -xF "$gates" | tail -n 1 || true
}

tell() {
    [ -z "$DRY" ] || return 0
    echo
    echo "watch:            wsimil status $(printf '%q' "$STUDY") --watch"
    echo "logs:             $STUDY/logs"
    echo "more workers:     $RESUME --more 8 --stage extract"
    echo "end everything:   scancel ${QUEUED[*]}"
    echo "go on afterwards: $RESUME"
}

at_most() {
    local limit=$GPUS
    contains "$1" ${CPU_STAGES[@]+"${CPU_STAGES[@]}"} && limit=$CPU_WORKERS
    echo $(($2 < limit ? $2 : limit))
}

absolute() { (cd "$(dirname "$1")" && printf '%s/%s' "$(pwd)" "$(basename "$1")"); }

is_count() { [[ $1 =~ ^[1-9][0-9]{0,6}$ ]]; }

contains() {
    local wanted=$1 one
    shift
    for one in "$@"; do
        [ "$one" != "$wanted" ] || return 0
    done
    return 1
}

# Slurm's ways to write a time: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
in_seconds() {
    local days=0 rest=$1 a b c
    [[ $1 =~ ^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$ ]] || return
    [[ $1 != *-* ]] || { days=${1%%-*} rest=${1#*-}; }
    IFS=: read -r a b c <<< "$rest"
    if [[ $1 == *-* ]]; then
        echo $((10#$days * 86400 + 10#$a * 3600 + 10#${b:-0} * 60 + 10#${c:-0}))
    elif [ -n "$c" ]; then
        echo $((10#$a * 3600 + 10#$b * 60 + 10#$c))
    else
        echo $((10#$a * 60 + 10#${b:-0}))
    fi
}

main "$@"
