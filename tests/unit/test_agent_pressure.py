"""How a node that serves its system makes way for its pods."""

from pathlib import Path

import pytest

from kmagent.pressure import Pace, Pressure

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    waited(tmp_path, 5_000_000, 7_000_000)
    return tmp_path


def waited(folder: Path, cpu: int, io: int) -> None:
    """What the kernel tells, in microseconds since the start."""
    for name, total in (("cpu", cpu), ("io", io)):
        some = f"some avg10=1.00 avg60=2.00 avg300=3.00 total={total}"
        (folder / name).write_text(f"{some}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n")


def test_a_machine_is_as_busy_as_what_is_scarcest(machine: Path) -> None:
    pressure = Pressure(machine)
    assert pressure.share(100.0) == 0
    waited(machine, 5_100_000, 7_600_000)
    assert pressure.share(102.0) == pytest.approx(0.3)
    # Too soon for another look.
    waited(machine, 9_000_000, 7_600_000)
    assert pressure.share(102.05) == pytest.approx(0.3)
    assert pressure.share(112.0) == pytest.approx(0.39)
    # Nothing waits any more.
    assert pressure.share(113.0) == 0


@pytest.mark.parametrize("text", [None, "", "some avg10=1.00\n", "some total=many\n"])
def test_a_kernel_that_does_not_tell_holds_nothing_back(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "cpu").write_text(text)
    pace = Pace(Pressure(tmp_path), 0.25, MIB)
    assert [pace.wait_s(64 * MIB, now) for now in (100.0, 101.0, 102.0)] == [0, 0, 0]


def test_all_that_a_busy_node_sends_has_one_rate(machine: Path) -> None:
    pace = Pace(Pressure(machine), 0.25, 32 * MIB)
    assert pace.wait_s(MIB, 100.0) == 0
    waited(machine, 5_500_000, 7_000_000)
    # Two connections at the same moment, 16 MiB each, wait for each other.
    assert pace.wait_s(16 * MIB, 101.0) == pytest.approx(0.5)
    assert pace.wait_s(16 * MIB, 101.05) == pytest.approx(0.95)
    # What was not used is not saved up.
    waited(machine, 9_500_000, 7_000_000)
    assert pace.wait_s(32 * MIB, 109.0) == pytest.approx(1.0)
    # And none of it counts once nothing waits.
    assert pace.wait_s(32 * MIB, 110.0) == 0
