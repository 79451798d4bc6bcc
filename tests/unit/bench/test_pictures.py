"""Pictures and tables: well-formed, with every figure in its place."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from guestwire.bench import charts, picture
from guestwire.bench.charts import Chart, Point
from guestwire.bench.table import table
from guestwire.errors import ConfigurationError
from unit.bench.figures import TRIPS, report, result, window

SVG = "{http://www.w3.org/2000/svg}"


def texts(document: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(document).iter(f"{SVG}text")]


def sample() -> charts.Chart:
    return Chart(
        "Title", "unit", "axis", ["a", "b"], {"one": [Point(5, 4, 6), None], "two": [Point(10, 9, 11)] * 2}
    )


def bars(document: str) -> list[tuple[float, float]]:
    """Top and height of each bar."""
    rectangles = [r for r in ET.fromstring(document).iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    return [(float(r.attrib["y"]), float(r.attrib["height"])) for r in rectangles]


def test_bars_are_as_high_as_their_values_and_stand_on_one_line() -> None:
    small, *large = bars(charts.draw("t", [], [[sample()]], []))
    assert large[0] == large[1]
    assert large[0][1] == pytest.approx(2 * small[1], abs=0.2)
    assert sum(large[0]) == pytest.approx(sum(small), abs=0.2)


def test_everything_lies_within_the_picture() -> None:
    long = "A note of many words. " * 40
    document = charts.draw("t", ["subtitle"], [[sample(), sample()], [sample()]], [long])
    root = ET.fromstring(document)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for group in root.iter(f"{SVG}g"):
        x, y = map(float, re.findall(r"[\d.]+", group.attrib["transform"]))
        for text in group.iter(f"{SVG}text"):
            assert 0 <= x + float(text.attrib.get("x", 0)) <= width
            assert 0 <= y + float(text.attrib.get("y", 0)) <= height
    notes = [t for t in root.findall(f"{SVG}text") if "many words" in (t.text or "")]
    assert len(notes) > 3
    assert float(notes[-1].attrib["y"]) < height


@pytest.mark.parametrize("largest", [0.013, 0.99, 1.0, 7.3, 14.9, 101, 99_999])
def test_ticks_are_few_round_and_enclose(largest: float) -> None:
    ticks = charts.linear_ticks(largest)
    assert ticks[0] == 0
    assert ticks[-2] < largest <= ticks[-1] * (1 + 1e-9)
    assert 4 <= len(ticks) <= 8
    logarithmic = charts.log_ticks(largest / 37, largest)
    assert logarithmic[0] <= largest / 37
    assert logarithmic[-1] >= largest
    assert 2 <= len(logarithmic) <= 8


def test_a_picture_shows_when_where_and_what() -> None:
    made = report(
        result(round_trips=TRIPS),
        result(window(received=1_234_000), ring_size=1024),
        result(port="null", queue_pairs=4, returning=False),
        result(port="null"),
    )
    words = texts(picture.svg(made))
    assert "guestwire bench" in words
    line = next(word for word in words if word.startswith("2026-11-22"))
    for known in ("guestwire 1.2.3", "Processor <1> & more, 2 CPUs (machine)", "Linux 6.18", "Debian"):
        assert known in line
    for shown in (
        "echo: frames",
        "null: throughput",
        "million a second",
        "Gbit/s",
        "µs",
        "ring 1024, 1 pair",
    ):
        assert shown in words
    assert {"10.0", "12.3", "0.48"} <= set(words)
    assert any("A cache line took 70 to 92 ns" in word for word in words)


def test_a_page_has_the_table_too(tmp_path: Path) -> None:
    made = report(result(round_trips=TRIPS))
    path = tmp_path / "bench.html"
    picture.save(made, path)
    page = path.read_text()
    body = ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    cells = [cell.text for cell in body.iter("td")]
    assert "10.00 (10.00 to 10.00)" in cells
    assert any((cell or "").startswith("backend: the backend ran 100%") for cell in cells)
    assert "prefers-color-scheme: dark" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=", page)


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"bench.png: there are pictures in .svg and .html"):
        picture.save(report(result()), tmp_path / "bench.png")
    with pytest.raises(ConfigurationError, match="cannot write"):
        picture.save(report(result()), tmp_path / "missing" / "bench.svg")


def test_a_report_without_windows_can_be_drawn() -> None:
    skipped = result()
    skipped.windows, skipped.skipped = [], "the port does not take VIRTIO_NET_F_CSUM"
    made = report(skipped)
    ET.fromstring(picture.svg(made))
    assert "not measured: the port does not take VIRTIO_NET_F_CSUM" in picture.html(made)


def test_the_table_fits_a_terminal() -> None:
    console = Console(width=80, record=True)
    console.print(table(report(result(round_trips=TRIPS), result(port="null"))))
    lines = console.export_text().splitlines()
    (first, second) = (line for line in lines if re.match(r" ?(echo|null)", line))
    assert first.split() == [
        "echo",
        "256",
        "1",
        "64",
        "10.0",
        "±0%",
        "5.12",
        "0.48",
        "1.25",
        "0.10",
        "backend",
    ]
    assert second.split()[-1] == "backend"
