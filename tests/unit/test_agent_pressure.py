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
    # Nothing is known yet.
    assert pressure.share(100.0) == 1
    waited(machine, 5_010_000, 7_060_000)
    assert pressure.share(100.2) == pytest.approx(0.3)
    # Too soon for another look.
    waited(machine, 5_410_000, 7_060_000)
    assert pressure.share(100.25) == pytest.approx(0.3)
    assert pressure.share(100.7) == pytest.approx(0.8)
    # Nothing waits any more.
    assert pressure.share(101.0) == 0
    # What was meanwhile says nothing of this moment.
    assert pressure.share(3000.0) == 1
    assert pressure.share(3000.2) == 0


def test_what_pods_wait_for_counts_where_that_is_told(machine: Path, tmp_path: Path) -> None:
    pods = tmp_path / "kubepods.slice"
    pods.mkdir()
    (pods / "cpu.pressure").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=70000\n")
    pressure = Pressure(pods, machine)
    pressure.share(100.0)
    # Somebody else waits.
    waited(machine, 5_400_000, 7_000_000)
    assert pressure.share(100.5) == 0
    (pods / "cpu.pressure").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=320000\n")
    assert pressure.share(101.0) == pytest.approx(0.5)


@pytest.mark.parametrize("text", [None, "", "some avg10=1.00\n", "some total=many\n"])
def test_a_kernel_that_does_not_tell_holds_nothing_back(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "cpu").write_text(text)
    pace = Pace(Pressure(tmp_path), 0.25, MIB)
    assert [pace.wait_s(64 * MIB, now) for now in (100.0, 101.0, 102.0)] == [0, 0, 0]


def test_all_that_a_busy_node_sends_has_one_rate(machine: Path) -> None:
    pace = Pace(Pressure(machine), 0.25, 32 * MIB)
    # Two connections at the same moment, 16 MiB each, wait for each other.
    assert pace.wait_s(16 * MIB, 101.0) == pytest.approx(0.5)
    assert pace.wait_s(16 * MIB, 101.05) == pytest.approx(0.95)
    waited(machine, 5_500_000, 7_000_000)
    assert pace.wait_s(16 * MIB, 101.5) == pytest.approx(1.0)
    # What was not used is not saved up.
    assert pace.wait_s(32 * MIB, 109.0) == pytest.approx(1.0)
    # And none of it counts once nothing waits.
    assert pace.wait_s(32 * MIB, 109.5) == 0
