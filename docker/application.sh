#!/usr/bin/env bash
# Builds the wheel of the sources in the working folder, with the viewer's page that lies there built, and installs it alone.
#   application.sh ENVIRONMENT      the virtual environment to make; its Python is `python3`
# BUILD_PYTHON: a Python that has hatchling and pip.
set -euo pipefail

environment=$1
build=${BUILD_PYTHON:-python3}
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT

# The page was built of these very sources, so the hook of the wheel has nothing to do; it does not fail without npm, this does.
"$build" -c 'import hatch_build; hatch_build.vouch(hatch_build.VIEWER)'
"$build" -m hatchling build -t wheel -d "$wheels"
"$build" - "$wheels"/*.whl <<'PYTHON'
import sys, zipfile
names = set(zipfile.ZipFile(sys.argv[1]).namelist())
missing = {f"wsimil/export/viewer/static/{name}" for name in ("viewer.js", "viewer.css", "LICENSES.txt")} - names
if missing:
    sys.exit(f"{sys.argv[1]}: holds no {', no '.join(sorted(missing))}; the viewer's page is not built")
PYTHON

python3 -m venv --without-pip "$environment"
"$build" -m pip --python "$environment/bin/python" install --no-deps --no-index --no-cache-dir "$wheels"/*.whl
