#!/usr/bin/env bash
# Installs what wsimil needs, at the versions of constraints.txt in the working folder, into a virtual environment.
#   dependencies.sh ENVIRONMENT     the virtual environment to make; its Python is `python3`
# TORCH_INDEX: a package index to take torch and torchvision from; without one they come as everything else does.
# EXTRAS: extras of wsimil, with commas between them; what they bring is held by constraints.txt only where it is named there.
set -euo pipefail

environment=$1
python3 -m venv --without-pip "$environment"
install=(python3 -m pip --python "$environment/bin/python" install --constraint constraints.txt)

# requirements EXTRA... prints what the project asks for, or with names what these extras ask for.
requirements() {
    python3 - "$@" <<'PYTHON'
import pathlib, sys, tomllib
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
optional = project["optional-dependencies"]
unknown = set(sys.argv[1:]) - set(optional)
if unknown:
    sys.exit(f"EXTRAS: {', '.join(sorted(unknown))} is not an extra of wsimil; those are {', '.join(optional)}")
for name in sys.argv[1:]:
    print(*optional[name], sep="\n")
if not sys.argv[1:]:
    print(*project["dependencies"], sep="\n")
PYTHON
}

wanted=$(mktemp)
trap 'rm -f "$wanted"' EXIT

if [ -n "${TORCH_INDEX:-}" ]; then
    # Only these two, and nothing that they need: so the index has no say in other packages.
    "${install[@]}" --no-deps --index-url "$TORCH_INDEX" torch torchvision
fi
requirements > "$wanted"
"${install[@]}" --requirement "$wanted"

# An image of today and one of next year hold the same versions.
python3 - "$environment" <<'PYTHON'
import importlib.metadata, pathlib, re, sys
(site,) = pathlib.Path(sys.argv[1]).glob("lib/python*/site-packages")
pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in pathlib.Path("constraints.txt").read_text().splitlines() if "==" in line}
found = {re.sub(r"[-_.]+", "-", item.name).lower() for item in importlib.metadata.distributions(path=[str(site)])}
if found - pinned:
    sys.exit(f"constraints.txt: holds no version of {', '.join(sorted(found - pinned))}; add what `pip freeze` says")
PYTHON

if [ -n "${EXTRAS:-}" ]; then
    IFS=, read -ra extras <<< "$EXTRAS"
    requirements "${extras[@]}" > "$wanted"
    "${install[@]}" --requirement "$wanted"
fi
python3 -m pip --python "$environment/bin/python" freeze --all > "$environment/installed.txt"
