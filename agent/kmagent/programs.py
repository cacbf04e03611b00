"""Starts programs without blocking the event loop."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from kmplan.run import CommandError


async def run_async(argv: Sequence[str | Path], *, input: str | None = None, check: bool = True) -> tuple[int, str]:  # noqa: A002
    """Run a command without blocking the event loop; returns its status and its mixed output.

    Raises CommandError when it fails and `check` is set.
    """
    words = [str(word) for word in argv]
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.PIPE if input is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate(input.encode() if input is not None else None)
    text = out.decode(errors="replace")
    code = process.returncode or 0
    if check and code != 0:
        raise CommandError(words, code, text)
    return code, text


async def restart_kubelet() -> None:
    """Have kubelet begin anew, if it runs: running pods do not notice."""
    await run_async(["systemctl", "try-restart", "kubelet.service"], check=False)


async def start_async(argv: Sequence[str | Path]) -> asyncio.subprocess.Process:
    """Start a command to talk with over its standard input and output; it ends with this process's end of its input."""
    return await asyncio.create_subprocess_exec(
        *map(str, argv), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=8 * 2**20
    )
