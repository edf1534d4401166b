#!/usr/bin/env bash
# Builds an image with the version and the commit of these sources in its labels.
#   docker/build.sh cpu|cuda [OPTION OF THE ENGINE]...      such as --build-arg EXTRAS=dicom,mlflow
# ENGINE: docker (with BuildKit), podman or buildah. The image is wsimil:TARGET, and wsimil:VERSION-TARGET.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-}
case $target in
    cpu | cuda) shift ;;
    *)
        echo "docker/build.sh: got '$target', wanted cpu or cuda" >&2
        exit 2
        ;;
esac

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' wsimil/__init__.py)
revision=$(git rev-parse HEAD 2> /dev/null || echo unknown)
if [ "$revision" != unknown ] && [ -n "$(git status --porcelain 2> /dev/null)" ]; then
    revision=$revision-changed
fi

engine=${ENGINE:-docker}
words=(build)
# An OCI image has no place for a health check.
if [ "$engine" != docker ]; then words+=(--format docker); fi
exec "$engine" "${words[@]}" --file docker/Dockerfile --target "$target" \
    --tag "wsimil:$target" --tag "wsimil:$version-$target" \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "CREATED=$(date -u +%Y-%m-%dT%H:%M:%SZ)" \
    "$@" .
