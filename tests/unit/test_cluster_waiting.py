"""While a cluster comes up: what is done for machines that nobody stands next to."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kmcluster import bench, waiting
from kmcluster.topology import Boot

GAVE_UP = "BdsDxe: failed to load Boot0002\r\nEDK II\r\n\x1b[33m\x1b[40mShell> \x1b[37m\r\n"


@pytest.mark.parametrize(
    ("boot", "waits", "heard", "console", "again"),
    [
        (Boot.HTTP, False, False, GAVE_UP, True),
        (Boot.PXE, False, False, GAVE_UP, True),
        (Boot.HTTP, False, True, GAVE_UP, False),
        # It has been reset meanwhile, or is to be switched on later.
        (Boot.HTTP, False, False, GAVE_UP + ">>Start HTTP Boot over IPv4\r\n", False),
        (Boot.HTTP, True, False, GAVE_UP, False),
        (Boot.DISK, False, False, GAVE_UP, False),
    ],
)
def test_a_machine_whose_firmware_gave_up_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: Boot, waits: bool, heard: bool, console: str, again: bool
) -> None:
    (tmp_path / "console.log").write_text(console)
    done: list[tuple[str, ...]] = []
    monkeypatch.setattr(bench, "power", lambda *words: done.append(words))
    machine = SimpleNamespace(name="shop-2", node=SimpleNamespace(boot=boot), waits=waits)
    cluster: Any = SimpleNamespace(name="shop", machines=[machine])
    driver: Any = SimpleNamespace(console=lambda _: tmp_path / "console.log")
    seen = {"shop-2": waiting.Seen(events=[{"name": "started"}] * heard)}
    assert waiting.start_again(cluster, driver, seen) == [machine] * again
    assert done == [("shop", "shop-2", "reset")] * again


@pytest.mark.parametrize(
    ("waits", "cut", "awaited"),
    [
        (True, (True, True), False),
        (True, (True, False), True),
        # One that runs comes up, or it does not and somebody is told.
        (False, (True, True), True),
    ],
)
def test_a_machine_that_has_no_cable_to_boot_from_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, waits: bool, cut: tuple[bool, ...], awaited: bool
) -> None:
    cables = {"shop-2": [False], "shop-3": cut}
    machines = [SimpleNamespace(name="shop-2", waits=True), SimpleNamespace(name="shop-3", waits=waits)]
    now = SimpleNamespace(cables_of=lambda machine: [SimpleNamespace(cut=one) for one in cables[machine.name]])
    monkeypatch.setattr(waiting.state, "load", lambda _: now)
    seen = {name: waiting.Seen() for name in cables}
    cluster: Any = SimpleNamespace(name="shop", machines=machines)
    assert list(waiting.awaited_of(cluster, seen)) == ["shop-2", "shop-3"][: 1 + awaited]
