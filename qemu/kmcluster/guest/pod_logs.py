"""Carried into a machine: the log lines of its pods, read from kubelet's files, without the API.

`pod_logs.py POD SINCE_S PLACES`: POD is NAMESPACE/NAME or the beginning of a name; SINCE_S leaves out what is older
(0: nothing); PLACES is JSON {file: how much of it was read before}. Prints {"pods", "lines", "places"}: names of the
pods that match, or of all when none does; lines of `TIME POD/CONTAINER TEXT` by time.
"""

# ruff: noqa: PTH112, PTH118, PTH123, PTH208
import json
import os
import sys
import time

ROOT = "/var/log/pods"


def find(word: str) -> list[tuple[str, str]]:
    """(folder, NAMESPACE/NAME) of the pods that are meant; a folder is called NAMESPACE_NAME_UID."""
    names = [(folder, "/".join(folder.split("_")[:2])) for folder in sorted(os.listdir(ROOT)) if folder.count("_") == 2]
    exact = [pair for pair in names if word in (pair[1], pair[1].partition("/")[2])]
    return exact or [pair for pair in names if word == "" or pair[1].partition("/")[2].startswith(word)]


def log_files(folder: str) -> list[tuple[str, str]]:
    """(file, container) of a pod's logs; the running one's is called N.log, those that were turned over N.log.TIME."""
    found = []
    for container in sorted(os.listdir(os.path.join(ROOT, folder))):
        place = os.path.join(ROOT, folder, container)
        if os.path.isdir(place):
            found += [(os.path.join(place, name), container) for name in sorted(os.listdir(place)) if ".log" in name]
    return [pair for pair in found if not pair[0].endswith(".gz")]


def read(path: str, start: int, after: str) -> tuple[list[tuple[str, str]], int]:
    """(time, text) of a file's whole lines from `start` on, and where they end; CRI lines are TIME STREAM TAG TEXT."""
    with open(path, "rb") as file:
        file.seek(start if start <= os.fstat(file.fileno()).st_size else 0)
        start = file.tell()
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    lines = []
    for line in whole.decode(errors="replace").splitlines():
        moment, _, rest = line.partition(" ")
        if moment[:19] >= after:
            lines.append((moment, rest.split(" ", 2)[-1]))
    return lines, start + len(whole)


def main(word: str, since_s: float, places: dict[str, int]) -> dict[str, object]:
    """Read all that is new."""
    after = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - since_s)) if since_s else ""
    if not os.path.isdir(ROOT):
        return {"pods": [], "lines": [], "places": {}}
    pods = find(word)
    lines = []
    for folder, name in pods:
        for path, container in log_files(folder):
            new, places[path] = read(path, places.get(path, 0), after)
            lines += [(moment, f"{moment} {name.partition('/')[2]}/{container} {text}") for moment, text in new]
    shown = [line for _, line in sorted(lines, key=lambda pair: pair[0])]
    return {"pods": [name for _, name in pods or find("")], "lines": shown, "places": places}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3]))))
