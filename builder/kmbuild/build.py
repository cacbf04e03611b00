"""Runs the stages that a build needs: looks each up by its content id, makes what is missing, two at a time."""

import errno
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from kmbuild.cache import Entry
from kmbuild.progress import Progress
from kmbuild.stage import Context, Inputs, Stage, content_id, no_space
from kmplan.errors import UserError
from kmplan.run import kill_children

AT_ONCE = 2


def run_stages(stages: tuple[Stage, ...], goal: str, context: Context, progress: Progress) -> Path:
    """Make stage `goal`; returns its folder in the cache.

    A stage whose result is in the cache is not looked into further: what fed it need not exist any more.
    """
    by_name = {stage.name: stage for stage in stages}
    inputs = compute_ids(stages, context)
    missing = find_missing(by_name, goal, context)
    for name in missing:
        progress.plan(name, explain(context, name, inputs[name]))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            make_all(missing, by_name, lambda name: pool.submit(make, by_name[name], context, inputs[name], progress))
        except KeyboardInterrupt:
            kill_children()  # or the pool would wait for the running stages to end
            raise
    return context.folder(goal)


def make_all(missing: list[str], by_name: dict[str, Stage], submit: Callable[[str], Future[Entry]]) -> None:
    """Make stages as soon as what they need is made; the first failure ends it."""
    waiting = dict.fromkeys(missing)
    running: dict[Future[Entry], str] = {}
    while waiting or running:
        ready = [name for name in waiting if not blocked(by_name[name], waiting, running)]
        for name in ready[: AT_ONCE - len(running)]:
            del waiting[name]
            running[submit(name)] = name
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            del running[future]
            future.result()


def blocked(stage: Stage, waiting: dict[str, None], running: dict[Future[Entry], str]) -> bool:
    """Tell whether something that a stage needs is not made yet."""
    return any(need in waiting or need in running.values() for need in (*stage.needs, *stage.runs_in))


def compute_ids(stages: tuple[Stage, ...], context: Context) -> dict[str, Inputs]:
    """Fill in the content ids; stages come after their needs. Returns each stage's inputs."""
    inputs = {}
    for stage in stages:
        inputs[stage.name] = stage.all_inputs(context)
        context.ids[stage.name] = content_id(stage.name, inputs[stage.name])
    return inputs


def find_missing(by_name: dict[str, Stage], goal: str, context: Context) -> list[str]:
    """Names of the stages to make for `goal`, needs first."""
    found: list[str] = []

    def visit(name: str) -> None:
        if name in found or context.cache.find(name, context.ids[name]):
            return
        for need in (*by_name[name].needs, *by_name[name].runs_in):
            visit(need)
        found.append(name)

    visit(goal)
    return found


def explain(context: Context, name: str, inputs: Inputs) -> list[str]:
    """Say why a stage is made: which inputs differ from those of its latest result."""
    last = context.cache.newest(name)
    if last is None:
        return ["no earlier result"]
    changed = [key for key in sorted({*inputs, *last.inputs}) if inputs.get(key) != last.inputs.get(key)]
    if not changed:
        return ["its result is gone or was damaged"]
    return [f"{key}: {last.inputs.get(key, 'absent')} -> {inputs.get(key, 'absent')}" for key in changed]


def make(stage: Stage, context: Context, inputs: Inputs, progress: Progress) -> Entry:
    """Make one stage under its lock; a second build that waited for the first finds the result."""
    content = context.ids[stage.name]
    with context.cache.lock(f"{stage.name}-{content}", f"{stage.name}: another build makes the same; waiting for it"):
        entry = context.cache.find(stage.name, content)
        if entry:
            return entry
        check_needs(stage, context)
        context.log(stage.name).unlink(missing_ok=True)
        progress.start(stage.name)
        start = time.monotonic()
        try:
            with context.cache.workspace(stage.name) as work:
                hashes = stage.make(context, work) or {}
                entry = context.cache.store(stage.name, content, inputs, work, start, hashes)
        except OSError as error:
            progress.fail(stage.name)
            raise disk_error(stage.name, error, context) from error
        except BaseException:
            progress.fail(stage.name)
            raise
        progress.finish(stage.name, entry.seconds)
        return entry


def check_needs(stage: Stage, context: Context) -> None:
    """Refuse to build on a cache entry whose bytes have changed; removes it, so that the next run makes it anew."""
    for need in stage.needs:
        entry = context.cache.find(need, context.ids[need])
        damaged = context.cache.damaged(entry) if entry else []
        if entry and damaged:
            context.cache.remove(entry)
            raise UserError(
                f"cache entry {need}/{entry.id[:12]} was damaged ({', '.join(damaged)}) and is removed",
                "run the command again",
            )


def disk_error(stage: str, error: OSError, context: Context) -> Exception:
    """Put an OSError of a stage into one line. Its work folder is gone by now: the disk may have room again."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_space(stage, context.cache.path)
    return UserError(f"{stage}: {error.filename or context.cache.path}: {error.strerror or error}")
