"""Finds an image that was built, and what of the build cache belongs to it."""

from pathlib import Path

from kmbuild import config as configuration
from kmbuild.artefacts import MANIFEST, read_manifest
from kmbuild.cache import Cache
from kmcluster.image import Image
from kmplan.errors import UserError


def locate_image(path: Path) -> Image:
    """The image in a folder, or the one whose .raw is given, with the tools it was built by.

    Raises UserError when there is none, or the build cache no longer has what machines need beside it.
    """
    if not path.exists():
        raise UserError(f"{path}: no image here", "build one with `make image`")
    folder = path if path.is_dir() else path.parent
    manifest = read_manifest(folder)
    stages = Cache(configuration.load(None)[0].cache_path).stages
    needed = [stages / name / manifest.stages.get(name, "none") for name in ("tools", "components-kubernetes")]
    for place in needed:
        if not place.is_dir():
            raise UserError(f"{place}: no longer in the build cache", "`make image` makes it again")
    return Image(
        raw=path if path.is_file() else folder / manifest.artefacts["raw"].name,
        erofs=folder / manifest.artefacts["erofs"].name,
        manifest=folder / MANIFEST,
        tools=needed[0] / "root",
        kubectl=needed[1] / "kubernetes",
    )
