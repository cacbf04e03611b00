"""What comes on top of the packed root file system and changes often: overlays and the agent."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jinja2

from kmbuild import source, tarball
from kmbuild.stage import Context
from kmplan.errors import UserError

PYTHON = "usr/lib/python3/dist-packages"
TEMPLATES = "usr/share/kubermesh/node"

Entry = tuple[str, Path | bytes | str, int]


def overlay(context: Context) -> Iterator[Entry]:
    """overlays/root as it is (`.j2` rendered), overlays/node as templates, and the versions."""
    settings = {"version": context.config.image_version, "versions": context.config.versions}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    root = source.folder("overlays") / "root"
    for path in source.files(root):
        name = str(path.relative_to(root))
        mode = 0o755 if path.lstat().st_mode & 0o100 else 0o644
        if path.is_symlink():
            yield name, str(path.readlink()), mode
        elif path.suffix == ".j2":
            yield name.removesuffix(".j2"), environment.from_string(path.read_text()).render(settings).encode(), mode
        else:
            yield name, path, mode
    node = source.folder("overlays") / "node"
    for path in source.files(node):
        yield f"{TEMPLATES}/{path.relative_to(node)}", path, 0o644
    versions = {"image": context.config.image_version, "epoch": context.epoch, **context.config.versions}
    yield "usr/lib/kubermesh/versions.json", (json.dumps(versions, indent=1) + "\n").encode(), 0o644


def agent(context: Context, work: Path) -> Iterator[Entry]:
    """The agent's packages, compiled so that Python looks at no time stamp (PEP 552, unchecked)."""
    python = work / "python"
    for package in source.agent_packages():
        shutil.copytree(package, python / package.name, ignore=shutil.ignore_patterns(*source.IGNORED))
    argv = [
        "python3",
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        "/build/python",
        "-p",
        f"/{PYTHON}",
        "/build/python",
    ]
    context.in_tools("disk", argv, binds={work: "/build"})
    for path in sorted(python.rglob("*")):
        if path.is_file():
            yield f"{PYTHON}/{path.relative_to(python)}", path, 0o644


def write_tar(context: Context, work: Path, target: Path, more: Mapping[str, bytes]) -> None:
    """Write overlays and agent as a tar, and `more` files; UserError when one would replace a file that is there already."""
    made = ((name, content, 0o644) for name, content in more.items())
    entries = {name: (content, mode) for name, content, mode in (*overlay(context), *agent(context, work), *made)}
    present: dict[str, int] = json.loads((context.folder("root") / "modes.json").read_text())
    clash = sorted(set(entries) & set(present))
    if clash:
        raise UserError(
            f"overlays: {', '.join(clash)} would replace a Debian package's file", "use a drop-in or another path"
        )
    folders = {str(parent) for name in entries for parent in Path(name).parents} - {"."}
    with tarball.write_piece(work / "own.piece") as tar:
        # mkfs.erofs gives a folder that an appended tar does not name mode 0777, also one that is there already.
        tarball.add_folder(tar, "./", context.epoch)
        for folder in sorted(folders):
            tarball.add_folder(tar, folder, context.epoch, present.get(folder, 0o755))
        for name in sorted(entries):
            content, mode = entries[name]
            if isinstance(content, str):
                tarball.add_link(tar, name, content, context.epoch)
            else:
                tarball.add_file(tar, name, content, context.epoch, mode)
    tarball.join([work / "own.piece"], target)
    (work / "own.piece").unlink()
    shutil.rmtree(work / "python")
