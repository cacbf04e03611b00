"""Our own program of the initrd: it fetches the root of a machine that was booted from the network (components/fetch)."""

import shutil
import sys
from pathlib import Path

from kmbuild import sandbox, source
from kmbuild.stage import Context, Inputs, Stage
from kmbuild.stages import components

NAME = components.stage_name("fetch")
PROGRAM = "kubermesh-fetch"


def inputs(context: Context) -> Inputs:
    """Its source, and the Go that compiles it: it uses nothing but Go's own library."""
    return {
        "go": context.config.versions["go"],
        "components/fetch": source.digest(source.folder("components") / "fetch")[:32],
    }


def make(context: Context, work: Path) -> None:
    """Test and compile it."""
    context.say(NAME, "testing")
    shutil.copytree(source.folder("components") / "fetch", work / "module")
    components.go(context, "fetch", work, ["go", "test", "."])
    context.say(NAME, "compiling")
    output = ["-o", f"/build/{PROGRAM}", "."]
    build = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", *output]
    components.go(context, "fetch", work, build)
    shutil.rmtree(work / "module")


STAGE = Stage(NAME, (), inputs, make, (sys.modules[__name__], components, sandbox), runs_in=("tools",))
