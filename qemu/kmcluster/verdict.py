"""What came of the scenarios: data of each run, figures over all of them, and reports for machines (JSON, JUnit)."""

import math
from collections.abc import Sequence
from xml.etree import ElementTree

import msgspec


class Mark(msgspec.Struct, frozen=True):
    """Something that was done, and when: seconds since the fault began, negative before it."""

    at_s: float
    what: str


class Outage(msgspec.Struct, frozen=True):
    """A time without an answered write, or without a connection to the service: seconds since the fault began.

    `why` is what most writes failed of meanwhile, if any were tried.
    """

    since_s: float
    until_s: float
    why: str = ""

    @property
    def length_s(self) -> float:
        """How long it was."""
        return self.until_s - self.since_s


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One time that a scenario was played; seconds count from the fault's begin.

    `faults` says what did not hold, nothing when all did. `outages` are the longest that began with the fault, and the longest
    that began when it was undone (at `undone_s`, which is `whole_s` where nobody undoes it), where they were noticeable;
    `silences` are the same of the service. All was as before at `whole_s`. `acked`, `failed` and `lost` count writes,
    `errors` are when the first and the last write failed, if any did; `probed` is whether a service was asked at all;
    `elections` counts terms of etcd that began; `evicted` names the nodes whose pods were made anew elsewhere.
    A cluster that does not heal alone is in service again only after the fault was undone. `noticed` is what did not hold
    where something was undermined on purpose: that is as it has to be.
    """

    scenario: str
    seed: int
    faults: list[str]
    marks: list[Mark]
    outages: list[Outage] = []
    silences: list[Outage] = []
    heals_alone: bool = True
    undone_s: float = 0.0
    whole_s: float = 0.0
    acked: int = 0
    failed: int = 0
    lost: int = 0
    errors: list[float] = []
    probed: bool = False
    elections: int = 0
    evicted: list[str] = []
    took_s: float = 0.0
    bundle: str = ""
    noticed: list[str] = []

    @property
    def outage(self) -> Outage | None:
        """When no write was acknowledged for longest, if it was noticeable: by the fault, or until it was undone."""
        return self._longest(self.outages)

    @property
    def silence(self) -> Outage | None:
        """When no connection to the service was opened for longest, in the same way."""
        return self._longest(self.silences)

    @property
    def outage_s(self) -> float:
        """For how long no write was acknowledged, at the longest."""
        return self.outage.length_s if self.outage else 0.0

    @property
    def silence_s(self) -> float:
        """For how long no connection to the service was opened, at the longest."""
        return self.silence.length_s if self.silence else 0.0

    @property
    def is_played(self) -> bool:
        """Whether there are figures at all."""
        return self.took_s > 0

    def _longest(self, outages: list[Outage]) -> Outage | None:
        felt = [one for one in outages if one.since_s < self.undone_s or not self.heals_alone]
        return max(felt, key=lambda one: one.length_s, default=None)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """All runs of one `kmbuild verify`, and where: `machine` describes this host, `roothash` the image.

    `left_out` names the scenarios that there was no time for, once for each run that was wanted.
    """

    version: int = 1
    date: str
    machine: str
    driver: str
    roothash: str
    seed: int
    runs: list[Run]
    left_out: list[str] = []

    @property
    def failed(self) -> list[Run]:
        """The runs in which something did not hold."""
        return [run for run in self.runs if run.faults]

    @property
    def by_scenario(self) -> dict[str, list[Run]]:
        """The runs of each scenario, in the order they were played first."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.scenario, []).append(run)
        return found


def outages_of(runs: Sequence[Run]) -> list[float]:
    """For how long no write was acknowledged, in each run that was played."""
    return [run.outage_s for run in runs if run.is_played]


def silences_of(runs: Sequence[Run]) -> list[float]:
    """For how long a service did not answer, in each run that asked one."""
    return [run.silence_s for run in runs if run.is_played and run.probed]


def wholes_of(runs: Sequence[Run]) -> list[float]:
    """After how long all was as before, in each run that was played."""
    return [run.whole_s for run in runs if run.is_played]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of values does not exceed: the nearest rank, so one that was measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def junit(verdict: Verdict) -> bytes:
    """The verdict as JUnit XML: a test case for every run."""
    suite = ElementTree.Element(
        "testsuite", name="kmbuild verify", tests=str(len(verdict.runs) + len(verdict.left_out)),
        failures=str(len(verdict.failed)), skipped=str(len(verdict.left_out)), timestamp=verdict.date,
    )  # fmt: skip
    for index, run in enumerate(verdict.runs):
        name = f"{run.scenario}[{index}]"
        case = ElementTree.SubElement(suite, "testcase", classname="verify", name=name, time=f"{run.took_s:.2f}")
        if run.faults:
            failure = ElementTree.SubElement(case, "failure", message=run.faults[0])
            failure.text = "\n".join([*run.faults, *([f"bundle: {run.bundle}"] if run.bundle else [])])
    for name in verdict.left_out:
        case = ElementTree.SubElement(suite, "testcase", classname="verify", name=name)
        ElementTree.SubElement(case, "skipped", message="there was no time for it")
    return bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))
