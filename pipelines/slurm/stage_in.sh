#!/usr/bin/env bash
# Copy a file or a folder to node-local disk once for all jobs of the node: stage_in.sh FOLDER SOURCE
#
# Prints the path of the copy, or SOURCE where there can be none (and why, on stderr): work goes on from the shared place then.
# One process copies, the others wait for it. Attempts are numbered, and the lock of an attempt is made once and never taken
# away: a copier that died is followed by the next number, and what a late one still writes has a place of its own. A copy
# counts once its marker is there, which says how much of what it holds; a copy that was tidied away in part is made again.
# FOLDER must be on a disk of this node alone: whether a copier lives is asked of this node's process table.
set -uo pipefail

folder=${1:?usage: stage_in.sh FOLDER SOURCE} source=${2:?usage: stage_in.sh FOLDER SOURCE}
source=${source%/}

say() { echo "stage_in: $(hostname -s): $*" >&2; }

fall_back() {
    say "$source is used from where it is: $*"
    printf '%s\n' "$source"
    exit 0
}

# Names, sizes and times of what is to be copied: another content is another copy.
identity() {
    if [ -d "$source" ]; then
        (cd "$source" && find . -printf '%P\t%y\t%s\t%T@\t%l\n' | LC_ALL=C sort)
    else
        stat -L -c '%s %Y' -- "$source"
    fi
}

# Files and bytes below a path.
amount() { find -L "$1" -type f -printf '%s\n' 2> /dev/null | awk '{ n++; s += $1 } END { printf "%d files %.0f bytes", n, s }'; }

# A process is known by its number and the tick at which it started, as numbers come back.
started() { sed 's/^.*) //' "/proc/$1/stat" 2> /dev/null | cut -d' ' -f20; }

lives() {
    local pid tick
    read -r pid tick < "$1" || return 1
    [ -n "$tick" ] && [ "$(started "$pid")" = "$tick" ]
}

whole() { [ -f "$1.done" ] && [ "$(head -n 1 "$1.done")" = "$(amount "$1")" ]; }

copy() {
    local to=$1 name before read_digest made_digest
    before=$(identity)
    name=$(basename "$source")
    mkdir -p "$to" || return
    if [ -d "$source" ]; then
        mkdir "$to/$name" || return
        tar -C "$source" -cf - . | tar -C "$to/$name" -xf - || return
        [ "$(amount "$source")" = "$(amount "$to")" ] && [ "$(identity)" = "$before" ] || return
        { amount "$to" && printf '\n'; } > "$to.marker" || return
    else
        read_digest=$(tee "$to/$name" < "$source" | sha256sum) || return
        made_digest=$(sha256sum < "$to/$name") || return
        [ "$read_digest" = "$made_digest" ] && [ "$(identity)" = "$before" ] || return
        { amount "$to" && printf '\nsha256 %s\n' "${made_digest%% *}"; } > "$to.marker" || return
    fi
    mv -- "$to.marker" "$to.done"
}

[ -e "$source" ] || fall_back "it does not exist"
(umask 077 && mkdir -p "$folder") 2> /dev/null || fall_back "$folder cannot be made"
if ! [ -O "$folder" ] || ! [ -w "$folder" ]; then
    # Whoever else can write there could put anything in the place of a copy.
    fall_back "$folder is another user's"
fi
key=$({ printf '%s\n' "$source"; identity; } | sha256sum | cut -c1-16)

highest() {
    local found=0 lock number
    for lock in "$folder/$key".*.lock; do
        number=${lock%.lock} number=${number##*.}
        [ -e "$lock" ] && [ "$number" -gt "$found" ] && found=$number
    done
    echo "$found"
}

waited=
mine=$folder/$key.$$.owner
trap 'rm -f -- "$mine"' EXIT
while :; do
    attempt=$(highest)
    place=$folder/$key.$attempt
    if whole "$place"; then
        printf '%s\n' "$place/$(basename "$source")"
        exit 0
    fi
    if [ "$attempt" -gt 0 ] && [ ! -f "$place.done" ] && lives "$place.lock"; then
        [ -n "$waited" ] || say "another job of this node copies $source; waiting for it"
        waited=yes
        sleep 0.5
        continue
    fi
    if [ -n "$waited" ] && [ -f "$place.failed" ]; then
        fall_back "the job that copied it could not: $(cat "$place.failed")"
    fi
    attempt=$((attempt + 1)) place=$folder/$key.$attempt
    printf '%s %s\n' "$$" "$(started $$)" 2> /dev/null > "$mine" || fall_back "$folder is full"
    # link(2) makes a name with its content, and fails where the name is taken.
    if ln -- "$mine" "$place.lock" 2> /dev/null; then
        for earlier in $(seq $((attempt - 1))); do # what those that died had copied takes room
            [ -f "$folder/$key.$earlier.done" ] || lives "$folder/$key.$earlier.lock" || rm -rf -- "${folder:?}/$key.$earlier"
        done
        needed=$(amount "$source" | awk '{ print $3 }')
        free=$(df --output=avail -B1 "$folder" | tail -n 1)
        if [ "$needed" -gt "$free" ]; then
            reason="it has $needed bytes, and $folder has room for $free"
        elif reason=$(copy "$place" 2>&1); then
            say "$source was copied: $(head -n 1 "$place.done")"
            continue
        fi
        rm -rf -- "$place" "$place.marker"
        { printf '%s\n' "${reason:-it changed, or did not arrive whole}" > "$place.failed"; } 2> /dev/null
        fall_back "${reason:-it changed, or did not arrive whole}"
    fi
done
