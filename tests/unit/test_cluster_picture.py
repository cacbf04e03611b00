"""The picture of a cluster, and where its nodes are put."""

import math
from typing import Any
from xml.etree import ElementTree

import pytest

from kmcluster import picture
from kmcluster.layout import align, arrange, distances
from kmcluster.topology import find_topology, plug, read_topology, shipped_names

SVG = "{http://www.w3.org/2000/svg}"


def described(name: str, **change: Any) -> dict[str, Any]:
    """A shipped topology as `report.describe` tells it when all is well."""
    topology = read_topology(find_topology(name))
    nodes = [
        {"name": f"{name}-{number}", "number": number, "role": "worker", "power": "on", "state": "ready", "message": ""}
        for number in range(1, len(topology.nodes) + 1)
    ]
    nodes[0] |= change
    cables = [{**cable.describe(), "up": True, "cost": [96, 96], "since_s": 1.0} for cable in plug(topology)]
    return {"name": name, "driver": "nspawn", "accelerator": "native", "nodes": nodes, "cables": cables}


def parse(shown: dict[str, Any]) -> ElementTree.Element:
    return ElementTree.fromstring(picture.draw(shown))  # noqa: S314 - our own


def texts(drawn: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in drawn.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", shipped_names())
def test_every_node_and_cable_is_drawn_on_the_sheet(name: str) -> None:
    shown = described(name)
    drawn = parse(shown)
    _, _, width, height = map(float, drawn.attrib["viewBox"].split())
    cards = [card for group in drawn.iter(f"{SVG}g") for card in group.iter(f"{SVG}rect")]
    assert len(cards) == len(shown["nodes"])
    for card in cards:
        x, y, wide, high = (float(card.attrib[key]) for key in ("x", "y", "width", "height"))
        assert 0 < x < x + wide < width
        assert picture.HEAD < y < y + high < height - picture.FOOT
    lines = [path for path in drawn.iter(f"{SVG}path") if path.find(f"{SVG}title") is not None]
    assert len(lines) == len(shown["cables"])
    assert {node["name"] for node in shown["nodes"]} <= set(texts(drawn))


@pytest.mark.parametrize("name", shipped_names())
def test_no_card_hides_another(name: str) -> None:
    cards = [card for group in parse(described(name)).iter(f"{SVG}g") for card in group.iter(f"{SVG}rect")]
    places = [(float(card.attrib["x"]), float(card.attrib["y"]), float(card.attrib["width"])) for card in cards]
    for index, (x, y, width) in enumerate(places):
        assert not [
            other
            for other in places[:index]
            if abs(other[0] - x) < width + 10 and abs(other[1] - y) < picture.CARD_HEIGHT + 10
        ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"role": "voter"}, "ring voter ready"),
        ({"role": "standby", "state": "failed"}, "ring standby failed"),
        ({"state": "etcd"}, "ring worker busy"),
        ({"role": None, "power": "off", "state": "off"}, "ring none off"),
        ({"role": None, "power": "frozen", "state": "frozen"}, "ring none off"),
    ],
)
def test_a_card_shows_role_and_state(change: dict[str, Any], expected: str) -> None:
    group = next(parse(described("one", **change)).iter(f"{SVG}g"))
    assert [card.attrib["class"] for card in group.iter(f"{SVG}rect")] == [expected]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"conditions": {"api": True}, "pods": {"ready": 6, "total": 7}, "routes": 14},
            "api ok · 6/7 pods · 14 routes",
        ),
        ({"conditions": {"etcd": True}, "pods": None, "routes": 0}, "no api · 0 routes"),
        ({"conditions": {"api": True}, "power": "off", "routes": None}, ""),
    ],
)
def test_a_card_shows_what_the_table_has(change: dict[str, Any], words: str) -> None:
    group = next(parse(described("one", **change)).iter(f"{SVG}g"))
    assert [text.text or "" for text in group.iter(f"{SVG}text")][-1] == words


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({}, "plugged", "96"),
        ({"cost": [96, 256]}, "plugged", "96 / 256"),
        ({"state": "lossy"}, "lossy", "lossy 96"),
        ({"state": "cut", "up": False}, "cut", "cut"),
        ({"up": False}, "down", "no link"),
        ({"state": "slow", "up": False}, "down", "slow no link"),
    ],
)
def test_a_cable_shows_what_is_wrong_with_it(change: dict[str, Any], kind: str, words: str) -> None:
    shown = described("pair")
    shown["cables"][0] |= change
    drawn = parse(shown)
    assert f"cable {kind}" in [path.attrib["class"] for path in drawn.iter(f"{SVG}path") if len(path)]
    assert words in texts(drawn)


def test_two_cables_between_the_same_nodes_are_two_lines() -> None:
    shown = described("pair")
    shown["cables"].append({**shown["cables"][0], "a": "2:eth1", "b": "1:eth1"})
    lines = [path.attrib["d"] for path in parse(shown).iter(f"{SVG}path") if len(path)]
    assert len({line.split("Q")[1].split(" ")[1] for line in lines}) == 2


def test_a_message_cannot_break_the_picture() -> None:
    drawn = parse(described("one", message='<b>&"', state="failed"))
    assert '<b>&"' in [title.text for title in drawn.iter(f"{SVG}title")]


def test_the_same_cluster_gives_the_same_picture() -> None:
    assert picture.draw(described("grid9")) == picture.draw(described("grid9"))


def test_distances_count_cables() -> None:
    assert distances(4, [(0, 1), (1, 2)]) == [[0, 1, 2, 3], [1, 0, 1, 3], [2, 1, 0, 3], [3, 3, 3, 0]]


def test_a_grid_is_drawn_as_a_grid() -> None:
    edges = [(row * 3 + column, row * 3 + column + 1) for row in range(3) for column in range(2)]
    edges += [(row * 3 + column, row * 3 + column + 3) for row in range(2) for column in range(3)]
    places = arrange(9, edges)
    assert len({round(x, 6) for x, _ in places}) == len({round(y, 6) for _, y in places}) == 3
    assert all(0.7 < math.dist(places[a], places[b]) < 1.4 for a, b in edges)
    assert places[0] == min(places)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_nodes_without_cables_have_places_of_their_own(count: int) -> None:
    assert len(set(arrange(count, []))) == count


def test_what_is_almost_in_line_is_put_in_line() -> None:
    assert align([0.0, 1.0, 0.1, 0.5]) == [0.05, 1.0, 0.05, 0.5]
