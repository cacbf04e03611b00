"""The page of `kmbuild verify` in a real browser: all is to be seen, nothing stands on anything else, in light and in dark."""

import json
import re
import subprocess
from html import unescape
from typing import Any

import pytest

from kmcluster import verdict_page
from kmcluster.scenarios import ALL
from kmcluster.verdict import Mark, Outage, Run, Verdict

BROWSER = "chromium-headless-shell"
DARK = "--blink-settings=preferredColorScheme=0"
# What a person could see, measured by the browser itself, as JSON at the page's end.
MEASURE = """<script>
const box = (one) => { const r = one.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
const all = (root, what) => [...root.querySelectorAll(what)];
const seen = {
  wide: [document.documentElement.scrollWidth, window.innerWidth],
  ink: getComputedStyle(document.body).color, paper: getComputedStyle(document.body).backgroundColor,
  links: all(document, "td a").map((one) => document.getElementById(one.getAttribute("href").slice(1)) !== null),
  lines: all(document, "svg").map((one) => ({
    box: box(one), texts: all(one, "text").map((text) => [text.textContent, ...box(text)]),
    bars: all(one, "rect").map((bar) => [bar.getAttribute("class"), getComputedStyle(bar).fill, ...box(bar)]),
  })),
};
document.body.append(Object.assign(document.createElement("pre"), {id: "seen", textContent: JSON.stringify(seen)}));
</script>"""


def run(name: str, **more: Any) -> Run:
    marks = [Mark(0.0, "power cut: shop-1"), Mark(10.0, "power on: shop-1"), Mark(10.4, "cable plug: shop-1 to shop-2"),
             Mark(58.0, "replaced 7 s after the grace")]  # fmt: skip
    values: dict[str, Any] = {
        "seed": 7, "faults": [], "marks": marks, "outages": [Outage(0.2, 3.2), Outage(10.5, 12.0)],
        "silences": [Outage(0.1, 9.9)], "undone_s": 10.0, "whole_s": 61.0, "acked": 900, "failed": 12, "took_s": 80.0,
    }  # fmt: skip
    return Run(scenario=name, **{**values, **more})


def verdict(*runs: Run) -> Verdict:
    return Verdict(
        date="2026-11-26 12:00 UTC", machine="2 cores", driver="nspawn", roothash="ab" * 32, seed=7, runs=list(runs)
    )


@pytest.fixture(scope="module", params=["1280,900", "700,900", "390,800"])
def width(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(request: pytest.FixtureRequest, width: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The page of every scenario, as the browser shows it."""
    runs = [run(name, seed=seed) for name in ALL for seed in (7, 8)]
    bad = run(
        "soak", faults=["no write was acknowledged for 11.0 s, 5 s are allowed"], bundle="soak-7.tar.gz", whole_s=900.0
    )
    quick = run(
        "cable-cut",
        outages=[],
        silences=[],
        marks=[Mark(0.0, "cable cut: shop-1 to shop-2")],
        undone_s=0.4,
        whole_s=0.6,
    )
    text = verdict_page.page(verdict(*runs, bad, quick), ALL, verdict(*runs))
    path = tmp_path_factory.mktemp("page") / "verdict.html"
    path.write_text(text.replace("</html>", f"{MEASURE}</html>"))
    options = ["--no-sandbox", "--disable-gpu", f"--window-size={width}", *([DARK] if request.param == "dark" else [])]
    done = subprocess.run(
        [BROWSER, *options, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    measured: dict[str, Any] = json.loads(unescape(found[1]))
    assert len(measured["lines"]) == len(runs) + 2
    return measured


def test_the_page_is_as_wide_as_the_window(seen: dict[str, Any]) -> None:
    page, window = seen["wide"]
    assert page <= window


def test_words_can_be_read_and_do_not_stand_on_each_other(seen: dict[str, Any]) -> None:
    for line in seen["lines"]:
        left, top, right, bottom = line["box"]
        words = line["texts"]
        for index, (text, x, y, x2, y2) in enumerate(words):
            assert y2 - y >= 9, f"{text} is {y2 - y:.1f} pixels high"
            assert left - 1 <= x and x2 <= right + 1 and top - 1 <= y and y2 <= bottom + 1, f"{text} is cut off"
            for other, u, v, u2, v2 in words[:index]:
                assert x >= u2 or x2 <= u or y >= v2 or y2 <= v, f"{text} stands on {other}"


def test_bars_are_in_their_picture_and_have_colours_of_their_own(seen: dict[str, Any]) -> None:
    colours: dict[str, set[str]] = {}
    for line in seen["lines"]:
        for kind, colour, x, y, x2, y2 in line["bars"]:
            colours.setdefault(kind, set()).add(colour)
            left, top, right, bottom = line["box"]
            assert left - 1 <= x <= x2 <= right + 1 and top - 1 <= y < y2 <= bottom + 1
    assert colours.keys() == {"waiting", "whole", "out", "silent"}
    assert len(set.union(*colours.values())) == 4 and all(len(found) == 1 for found in colours.values())
    assert "rgb(0, 0, 0)" not in set.union(*colours.values())


def test_ink_stands_out_from_paper(seen: dict[str, Any]) -> None:
    """At least 7 to 1 (WCAG 2.2, 1.4.6)."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(seen["ink"]), light(seen["paper"])))
    assert (high + 0.05) / (low + 0.05) >= 7


def test_every_row_leads_to_its_scenario(seen: dict[str, Any]) -> None:
    assert len(seen["links"]) == len(ALL) and all(seen["links"])
