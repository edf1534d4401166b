"""Scripts of pipelines/ and those in its README are read by the tools that know their language."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
README = (PIPELINES / "README.md").read_text(encoding="utf-8")
SHELL = sorted(
    path for path in PIPELINES.rglob("*") if path.suffix in (".sh", ".sbatch") or path.name == "slurm.env.example"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shellcheck(*arguments: str | Path, text: str | None = None) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck; apt-get install shellcheck")
    done = subprocess.run(["shellcheck", *arguments], input=text, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in_a_script(path: Path) -> None:
    shellcheck("--external-sources", "--source-path=SCRIPTDIR", path)


@pytest.mark.parametrize("index", range(len(blocks("bash"))))
def test_shellcheck_finds_nothing_in_what_the_readme_tells_to_run(index: int) -> None:
    # Trap strings are expanded when the signal comes, and `. activate` is nowhere here.
    shellcheck("--shell=bash", "--exclude=SC1091", "-", text=blocks("bash")[index])


def test_the_kubernetes_job_is_yaml_whose_script_shellcheck_accepts() -> None:
    jobs = [loaded for block in blocks("yaml") if (loaded := yaml.safe_load(block)).get("kind") == "Job"]
    (job,) = jobs
    (container,) = job["spec"]["template"]["spec"]["containers"]
    shellcheck("--shell=bash", "--exclude=SC2086", "-", text=container["args"][0])
    rules = job["spec"]["podFailurePolicy"]["rules"]
    told = [rule["onExitCodes"] for rule in rules if "onExitCodes" in rule]
    assert {one["containerName"] for one in told} == {container["name"]}


def test_every_setting_of_the_example_is_known_and_every_known_one_is_in_it() -> None:
    example = (PIPELINES / "slurm" / "slurm.env.example").read_text(encoding="utf-8")
    submit = (PIPELINES / "slurm" / "submit.sh").read_text(encoding="utf-8")
    known = re.search(r"^KNOWN=\((.*?)\)", submit, flags=re.DOTALL | re.MULTILINE)
    assert known is not None
    assert re.findall(r"^([A-Z_]+)=", example, flags=re.MULTILINE) == sorted(
        known[1].split(), key=lambda name: example.index(f"\n{name}=")
    )
