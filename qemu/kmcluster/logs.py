"""A machine's journal and the logs of its pods, read where they are: no API is needed, and no power with nspawn."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kmcluster import inside
from kmcluster.driver import Driver
from kmcluster.state import Machine
from kmplan.errors import UserError

# What tells the story of a node, read as one.
NODE_UNITS = ("kmagent", "kubelet", "containerd", "kubermesh-babeld")
ALIASES = {"agent": "kmagent", "babeld": "kubermesh-babeld"}
SUFFIXES = (".service", ".socket", ".timer", ".mount", ".target")
READ_S = 120.0
CURSOR = "-- cursor: "


@dataclass(frozen=True)
class Source:
    """What to read: units of the journal, or a pod's log files."""

    units: tuple[str, ...] = ()
    pod: str = ""


@dataclass
class Place:
    """How far a source was read: the journal's cursor, or bytes of every log file."""

    cursor: str = ""
    files: dict[str, int] = field(default_factory=dict)


def choose_source(driver: Driver, machine: Machine, what: str | None) -> Source:
    """What a user means: nothing is the node's own units; else a unit, or a pod's name or its beginning.

    Raises UserError when the node has neither.
    """
    if what is None:
        return Source(units=NODE_UNITS)
    name = ALIASES.get(what, what)
    if name in NODE_UNITS or name.endswith(SUFFIXES):
        return Source(units=(name,))
    pods = find_pods(driver, machine, what)
    if any(pod == what or pod.partition("/")[2].startswith(what) for pod in pods):
        return Source(pod=what)
    if has_journal(driver, machine, what):
        return Source(units=(what,))
    raise UserError(f"{machine.name} has no unit and no pod {what}", f"pods: {', '.join(pods) or 'none'}")


def find_pods(driver: Driver, machine: Machine, what: str) -> list[str]:
    """NAMESPACE/NAME of the pods that `what` means, or of all when it means none."""
    pods: list[str] = inside.run_script(driver, machine, "pod_logs", what, "0", "{}", timeout_s=READ_S)["pods"]
    return pods


def has_journal(driver: Driver, machine: Machine, unit: str) -> bool:
    """Whether the journal has a line of a unit."""
    argv = [*journal_argv((unit,), 0, ""), "--lines=1"]
    result = inside.run(driver, machine, argv, timeout_s=READ_S)
    return result.code == 0 and bool(take_cursor(result.stdout, Place()))


def journal_argv(units: tuple[str, ...], since_s: int, cursor: str, output: str = "short-iso-precise") -> list[str]:
    """The argv that prints the journal; `--merge` as the journal of an off machine's disk is not this machine's."""
    argv = ["journalctl", "--merge", "--no-pager", f"--output={output}", "--show-cursor"]
    # As JSON it leaves long messages out otherwise.
    argv += ["--all"] if output == "json" else []
    argv += [f"--unit={unit}" for unit in units]
    argv += [f"--since=-{since_s}s"] if since_s and not cursor else []
    return [*argv, f"--after-cursor={cursor}"] if cursor else argv


def read(driver: Driver, machine: Machine, source: Source, since_s: int, place: Place, *, as_json: bool = False) -> str:
    """Read what is new since `place`, which is moved on; at first what is younger than `since_s`, 0 being all.

    Lines for people; or JSON objects, one a line: `time` (RFC 3339), `node`, `unit` or `pod` (POD/CONTAINER), `message`.
    """
    if source.pod:
        given = (source.pod, str(since_s), json.dumps(place.files))
        answer = inside.run_script(driver, machine, "pod_logs", *given, timeout_s=READ_S)
        place.files = answer["places"]
        lines = [pod_record(machine.name, line) for line in answer["lines"]] if as_json else answer["lines"]
        return "".join(f"{line}\n" for line in lines)
    argv = journal_argv(source.units, since_s, place.cursor, "json" if as_json else "short-iso-precise")
    result = inside.run(driver, machine, argv, timeout_s=READ_S)
    if result.code != 0:
        raise UserError(f"{machine.name}: journal: {result.stderr.strip() or result.code}")
    text = take_cursor(result.stdout, place)
    if not as_json:
        return text
    # A message may have other characters that end a line somewhere.
    entries = (json.loads(line) for line in text.split("\n") if line)
    return "".join(f"{journal_record(machine.name, entry)}\n" for entry in entries)


def pod_record(node: str, line: str) -> str:
    """One line of a pod's log, `TIME POD/CONTAINER TEXT`, as JSON."""
    moment, pod, message = line.split(" ", 2)
    return json.dumps({"time": moment, "node": node, "pod": pod, "message": message})


def journal_record(node: str, entry: dict[str, Any]) -> str:
    """One entry of the journal (systemd.journal-fields(7)) as JSON; a message that is no text comes as its bytes."""
    moment = datetime.fromtimestamp(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, UTC).isoformat()
    unit, message = entry.get("UNIT") or entry.get("_SYSTEMD_UNIT"), entry.get("MESSAGE") or ""
    text = bytes(message).decode(errors="replace") if isinstance(message, list) else message
    return json.dumps({"time": moment, "node": node, "unit": unit, "message": text})


def take_cursor(text: str, place: Place) -> str:
    """Take the cursor off the end of what journalctl printed, and its remark when there was nothing."""
    lines = text.splitlines(keepends=True)
    if lines and lines[-1].startswith(CURSOR):
        place.cursor = lines.pop().removeprefix(CURSOR).strip()
    return "".join(line for line in lines if not line.startswith("-- No entries --"))
