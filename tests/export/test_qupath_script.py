"""The script that loads exports into QuPath, run by Groovy; of QuPath there are only the functions that it calls."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from wsimil.export.qupath_script import NAME, write_script

# QuPath strips ".ome.tif" whole, as its documentation says; all else is what a script finds there.
_QUPATH = """\
import groovy.json.JsonSlurper
import groovy.json.JsonOutput

def (script, asked) = [new File(args[0]).text, new JsonSlurper().parse(new File(args[1]))]
def general = '''
class GeneralTools {
    static String stripExtension(String name) { name.replaceFirst(/(\\\\.ome)?\\\\.[^.]*$/, "") }
}'''
println JsonOutput.toJson(asked.collect { one ->
    def loaded = []
    def entry = { name -> new Expando(getImageName: { name }) }
    new GroovyShell(new Binding([
        args: [one.folder] as String[],
        getProject: { new Expando(getImageList: { one.project.collect(entry) }) },
        getProjectEntry: { one.project ? entry(one.image) : null },
        getCurrentServer: { new Expando(getMetadata: { new Expando(getName: { one.image }) }) },
        getTileObjects: { [] }, getAnnotationObjects: { [] }, removeObjects: { objects, keep -> },
        importObjectsFromFile: { loaded << new File(it).name }, fireHierarchyUpdate: { },
    ])).evaluate(script + general)
    loaded
})
"""
_CASES = [
    ("case.svs", ["case.svs"], ["case"], ["case"]),
    ("case.v2.ndpi", ["case.v2.ndpi"], ["case", "case.v2"], ["case.v2"]),
    ("case", [], ["case"], ["case"]),
    ("case.ome.tif", ["case.ome.tif", "case.svs"], ["case.ome", "case"], ["case.ome"]),
    # What is there is said of the other image.
    ("case.ome.tif", ["case.ome.tif", "case.svs"], ["case"], []),
    # A manifest may name the slide so.
    ("case.ome.tif", ["case.ome.tif"], ["case"], ["case"]),
    ("other.svs", ["other.svs"], ["case"], []),
]


@pytest.mark.skipif(shutil.which("groovy") is None, reason="needs groovy, as of Debian's package of this name")
def test_the_script_loads_what_is_said_of_the_open_image_and_of_no_other(tmp_path: Path) -> None:
    asked = []
    for number, (image, project, exported, _) in enumerate(_CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in exported:
            (folder / f"{name}.geojson").write_text("{}", encoding="utf-8")
        asked.append({"image": image, "project": project, "folder": str(folder)})
    write_script(tmp_path)
    (tmp_path / "qupath.groovy").write_text(_QUPATH, encoding="utf-8")
    (tmp_path / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    command = ["groovy", "qupath.groovy", NAME, "asked.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[f"{name}.geojson" for name in loaded] for *_, loaded in _CASES]


def test_the_script_imports_by_name_and_names_nothing(tmp_path: Path) -> None:
    write_script(tmp_path)
    text = (tmp_path / NAME).read_text(encoding="utf-8")
    assert "importObjectsFromFile(file.getAbsolutePath())" in text
    assert str(tmp_path) not in text
    for left, right in ("()", "[]", "{}"):
        assert text.count(left) == text.count(right)
