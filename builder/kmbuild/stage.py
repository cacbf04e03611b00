"""What a stage of the build is, and what it is given."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from kmbuild import sandbox
from kmbuild.cache import Cache
from kmbuild.config import Config
from kmbuild.lock import Lock
from kmplan.errors import UserError
from kmplan.run import CommandError, run

Inputs = dict[str, str]


@dataclass
class Context:
    """One build: what it is of, where its results lie, and whom to tell.

    `ids` maps every stage to its content id; the folders of a stage's needs exist when it is made.
    """

    config: Config
    lock: Lock
    cache: Cache
    ids: dict[str, str] = field(default_factory=dict)
    say: Callable[[str, str], None] = lambda _stage, _text: None

    def folder(self, stage: str) -> Path:
        """Where a finished stage lies in the cache."""
        return self.cache.place(stage, self.ids[stage])

    @property
    def epoch(self) -> int:
        """Time stamp of everything in the image, seconds since 1970 (SOURCE_DATE_EPOCH)."""
        return self.lock.epoch

    @property
    def tools(self) -> Path:
        """Root of the tools tree."""
        return self.folder("tools") / "root"

    def in_tools(
        self,
        stage: str,
        argv: Sequence[str | Path],
        *,
        binds: Mapping[Path, str] | None = None,
        read_only: Mapping[Path, str] | None = None,
        env: Mapping[str, str] | None = None,
        network: bool = False,
        workdir: str = "/",
    ) -> str:
        """Run a command in the tools tree, its output into the stage's log; returns that output."""
        merged = {"SOURCE_DATE_EPOCH": str(self.epoch), **(env or {})}
        words = sandbox.in_tree(
            self.tools, argv, binds=binds, read_only=read_only, env=merged, network=network, workdir=workdir
        )
        return self.logged(stage, words)

    def logged(
        self, stage: str, words: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> str:
        """Run a command with its output in the stage's log; a failure says when the disk is full."""
        try:
            return run(words, env=env, cwd=cwd, log=self.log(stage)).stdout
        except CommandError as error:
            # The tool may have removed its output already: what it said counts too.
            if self.cache.full_disk() or "no space left on device" in error.output.lower():
                raise no_space(stage, self.cache.path) from error
            raise

    def log(self, stage: str) -> Path:
        """The log file of a stage of this build."""
        return self.cache.logs / f"{stage}-{self.ids[stage][:12]}.log"


@dataclass(frozen=True)
class Stage:
    """One step of the build.

    `inputs` names everything but the needs that feeds the result, as short strings: a rebuild is explained with them.
    `make` fills an empty folder and may return hashes (file name -> SHA-256) that it has computed already.
    `modules` are the code that does it: a change of one redoes the stage. `runs_in` are stages that must exist to make this
    one, but whose content does not reach its result.
    """

    name: str
    needs: tuple[str, ...]
    inputs: Callable[[Context], Inputs]
    make: Callable[[Context, Path], Mapping[str, str] | None]
    modules: tuple[ModuleType, ...]
    runs_in: tuple[str, ...] = ()

    def all_inputs(self, context: Context) -> Inputs:
        """Own inputs, the needs' content ids, and the stage's code."""
        code = {f"code of {module.__name__}": digest_code(module) for module in self.modules}
        return {**self.inputs(context), **{f"stage {need}": context.ids[need] for need in self.needs}, **code}


def no_space(stage: str, cache: Path) -> UserError:
    """What a stage says that found the disk full."""
    return UserError(f"{stage}: no space left on the disk of {cache}", "free some, or set cache.path elsewhere")


def digest_code(module: ModuleType) -> str:
    """Hash of a module's source."""
    return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:16]


def content_id(name: str, inputs: Inputs) -> str:
    """Hash of a stage's name and inputs: 32 hex digits."""
    return hashlib.sha256(json.dumps([name, inputs], sort_keys=True).encode()).hexdigest()[:32]
