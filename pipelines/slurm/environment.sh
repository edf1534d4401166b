# shellcheck shell=bash
# How wsimil is run, by a job or on the login node; sourced after the settings.
#
# `wsimil_environment` sets the arrays WSIMIL, the words that come before `status` or `worker`, WSIMIL_PYTHON, its interpreter, and
# NEAR, options of a worker that uses a copy of WEIGHTS.
# $1: "worker" uses node-local copies where STAGE_DIR is set; "gate", a job, and "login" take everything from where it is.
# $2: "gpu" shows GPUs to a container.

wsimil_environment() {
    local where=$1 kind=$2 original
    declare -gA STAGED=()
    NEAR=()
    local near=''
    if [ "$where" = worker ] && [ -n "$STAGE_DIR" ]; then
        # shellcheck disable=SC2153
        for original in ${VENV:+"$VENV"} ${CONTAINER:+"$CONTAINER"} ${HF_HOME:+"$HF_HOME"} ${WEIGHTS:+"$WEIGHTS"} \
            ${STAGE[@]+"${STAGE[@]}"}; do
            # An image by its registry's name is pulled by the runtime, which keeps its own copies.
            [ -e "$original" ] || continue
            STAGED[$original]=$("$KIT/stage_in.sh" "$STAGE_DIR" "$original") || STAGED[$original]=$original
        done
        [ -z "$WEIGHTS" ] || near=${STAGED[$WEIGHTS]:-}
    fi
    if [ -n "$MODULES" ]; then
        _load_modules || return
    fi
    if [ -n "$HF_HOME" ]; then
        # What is staged is complete: a worker that asks the hub on every node is slow, or fails where nodes have no internet.
        export HF_HUB_OFFLINE=1
    fi
    # No module is taken from the folder that a job happens to start in, nor by the processes that it starts.
    export PYTHONSAFEPATH=1
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
    if [ -z "$CONTAINER" ]; then
        [ -z "$HF_HOME" ] || export HF_HOME="${STAGED[$HF_HOME]:-$HF_HOME}"
        # shellcheck disable=SC2034
        [ -z "$near" ] || NEAR=(--encoder-weights "$near")
        local venv=${STAGED[$VENV]:-$VENV}
        export VIRTUAL_ENV="$venv" PATH="$venv/bin:$PATH"
        # Scripts in bin/ name the place where they were installed; the interpreter goes by where it stands.
        WSIMIL_PYTHON=("$venv/bin/python")
        WSIMIL=("${WSIMIL_PYTHON[@]}" -m wsimil)
        return
    fi
    # shellcheck disable=SC2153  # a setting
    local mounts=("$STUDY" ${MOUNTS[@]+"${MOUNTS[@]}"}) binds=() path
    for path in "${mounts[@]}"; do
        binds+=("$path:$path")
    done
    local -A shown=()
    for path in ${HF_HOME:+"$HF_HOME"} ${STAGE[@]+"${STAGE[@]}"} ${near:+"$WEIGHTS"}; do
        # Containers cannot mount names with : or , and no place twice. Weights that are not shown here are where MOUNTS has them.
        [[ $path != *[:,]* && -z ${shown[$path]:-} ]] || continue
        shown[$path]=yes
        binds+=("${STAGED[$path]:-$path}:$path")
    done
    export PYTHONNOUSERSITE=1 # packages in a home folder have no business in an image
    [ -z "$HF_HOME" ] || export HF_HOME
    local image=${STAGED[$CONTAINER]:-$CONTAINER} inside=()
    if [ "$CONTAINER_RUNTIME" = apptainer ]; then
        inside=(apptainer exec)
        [ "$kind" != gpu ] || inside+=(--nv)
        for path in "${binds[@]}"; do
            inside+=(--bind "$path")
        done
        inside+=("$image")
    else
        local joined
        joined=$(IFS=,; printf '%s' "${binds[*]}")
        # srun hands signals on to what it runs, and ends as that ends.
        inside=(srun --ntasks=1 "--cpus-per-task=${SLURM_CPUS_PER_TASK:-1}" "--container-image=$image" "--container-mounts=$joined")
        if [ "$where" = login ]; then
            inside+=("--partition=$CPU_PARTITION" --time=00:10:00)
            [ -z "$ACCOUNT" ] || inside+=("--account=$ACCOUNT")
            [ -z "$QOS" ] || inside+=("--qos=$QOS")
        fi
    fi
    WSIMIL_PYTHON=("${inside[@]}" python3)
    # shellcheck disable=SC2034
    WSIMIL=("${inside[@]}" wsimil)
}

_load_modules() {
    local script name
    for script in /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh; do
        if ! command -v module > /dev/null && [ -r "$script" ]; then
            # shellcheck source=/dev/null
            . "$script"
        fi
    done
    if ! command -v module > /dev/null; then
        echo "MODULES=\"$MODULES\": the command module is not known on $(hostname); leave MODULES empty" >&2
        return 1
    fi
    for name in $MODULES; do
        module load "$name" || return
    done
}
