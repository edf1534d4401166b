"""A Groovy script that loads exported GeoJSON into QuPath: for the open image, or for a whole project."""

from __future__ import annotations

from pathlib import Path

from wsimil.files import write_text

NAME = "import_wsimil.groovy"

_SCRIPT = """\
// Loads what wsimil says of the tiles of the open image (research use only).
// Put the folder "qupath" into the folder of the project, or name its place here; then run this script in the script editor,
// or with "Run for project". "Measure > Show measurement maps" colors the tiles afterwards.
def folder = binding.hasVariable("args") && args ? args[0] : buildFilePath(PROJECT_BASE_DIR, "qupath")

def image = getProjectEntry() ? getProjectEntry().getImageName() : getCurrentServer().getMetadata().getName()
// Slides are named by what is before the last dot, unless a manifest names them. QuPath takes ".ome.tif" for one extension, and
// what is left without it may be the name of another image.
def idOf = { it.replaceFirst(/\\.[^.]*$/, "") }
def taken = getProject() ? getProject().getImageList().collect { idOf(it.getImageName()) } : []
def ids = [idOf(image), *([GeneralTools.stripExtension(image)] - taken)]
def file = ids.collect { new File(folder, it + ".geojson") }.find { it.isFile() }
if (file == null) {
    println "wsimil: " + ids.unique().join(".geojson or ") + ".geojson is not in the folder; is the image named as the slide was?"
    return
}
// What an earlier run loaded goes; what was unlocked since, to change it by hand, stays, and so does all that is not of wsimil.
def ours = { names -> names.any { it.startsWith("wsimil") } }
removeObjects(getTileObjects().findAll { tile -> ours(tile.getMeasurements().keySet()) }, false)
removeObjects(getAnnotationObjects().findAll { one -> one.isLocked() && ours(one.getMetadata().keySet()) }, true)
importObjectsFromFile(file.getAbsolutePath())
fireHierarchyUpdate()
"""


def write_script(folder: Path) -> None:
    """Write it into a folder of GeoJSON; it names no slide and no path. Raises OutputError."""
    write_text(folder / NAME, _SCRIPT)
