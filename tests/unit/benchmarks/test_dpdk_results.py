"""What benchmarks/dpdk.py makes of its windows: medians, ratios, tables, a picture."""

from __future__ import annotations

import xml.etree.ElementTree
from pathlib import Path

import pytest
import report
from case import SCENARIOS, WORKS, Case, Sweep, cases
from results import Results, Row, Window
from tables import sheets

ABOUT = {
    "date": "2026-11-30",
    "machine": {"cpu": "a CPU", "cpus": 2, "kernel": "6.18", "distribution": "Debian", "hugepages": True},
    "versions": {"guestwire": "0.1", "commit": "abc", "driver": "DPDK 22.11"},
    "method": {"backend_cpu": 0, "guest_cpu": 1, "seconds": 1.0},
}
RATES = [  # guestwire's and DPDK's, in four rounds; DPDK's last one was thrown away
    (10.0, 8.0),
    (12.0, 10.0),
    (11.0, 9.0),
    (50.0, None),
]


def window(number: int, contender: str, rate: float, placement: str = "near") -> Window:
    figures = {"frames_per_second": rate * 1e6, "backend_cycles": 2600 / rate, "backend_ns": 1000 / rate}
    return Window(number, contender, placement, (50.0, 51.0), figures)  # type: ignore[arg-type]


@pytest.fixture
def row() -> Row:
    row = Row(Case("loop", "loop", 64), ["guestwire", "DPDK"])
    for number, rates in enumerate(RATES):
        for name, rate in zip(row.contenders, rates, strict=True):
            if rate is not None:
                row.windows.append(window(number, name, rate))
    row.windows.append(window(9, "DPDK", 1.0, "far"))
    row.windows.append(window(9, "guestwire", 1.0, "mixed"))
    return row


def test_medians_are_of_one_placement(row: Row) -> None:
    assert row.median("near", "guestwire", "frames_per_second") == 11.5e6
    assert row.median("near", "DPDK", "frames_per_second") == 9e6
    assert row.median("far", "guestwire", "frames_per_second") is None
    assert row.median("near", "DPDK", "no_such_figure") is None


def test_the_ratio_is_that_of_the_medians_and_its_spread_that_of_the_pairs(row: Row) -> None:
    assert row.ratio("near", "DPDK", "frames_per_second") == pytest.approx(11.5 / 9)
    assert row.ratios("near", "DPDK", "frames_per_second") == pytest.approx([10 / 8, 12 / 10, 11 / 9])
    assert row.ratio("far", "DPDK", "frames_per_second") is None
    assert (row.pairs("near"), row.pairs("far")) == (3, 0)


def test_a_table_says_it_all(row: Row) -> None:
    (sheet,) = sheets(Results(ABOUT, [row]))
    assert sheet.lines == [
        (
            *("loop", "split", "64", "near", "DPDK"),
            *("11.50 (10.00-50.00)", "9.00 (8.00-10.00)", "1.28 (1.20-1.25)"),
            *("227", "289", "0.78", "", "", "", "", "", "", "4+3"),
        )
    ]
    heading, rule, line = sheet.markdown().splitlines()
    assert heading.count("|") == rule.count("|") == line.count("|")


def test_what_was_not_measured_is_listed() -> None:
    row = Row(Case("source", "source", 64), ["guestwire", "DPDK"], skipped="no such option")
    (sheet,) = sheets(Results(ABOUT, [row]))
    assert sheet.lines == [("source", "split", "64", "no such option")]


def test_growth_is_against_the_first_of_the_same_rings() -> None:
    rows = [
        Row(Case("scaling", "loop", 64, queue_pairs=pairs), ["guestwire"], [window(0, "guestwire", rate)])
        for pairs, rate in ((1, 10.0), (4, 8.0))
    ]
    growth = next(sheet for sheet in sheets(Results(ABOUT, rows)) if "growth" in sheet.headings)
    assert [line[5] for line in growth.lines] == ["1.00", "1.25"]


def test_results_are_read_as_they_were_saved(row: Row, tmp_path: Path) -> None:
    results = Results(ABOUT, [row])
    results.save(tmp_path / "results.json")
    loaded = Results.load(tmp_path / "results.json")
    assert report.markdown(loaded) == report.markdown(results)
    assert loaded.rows[0].case == row.case


def test_a_later_run_completes_an_earlier_one(row: Row) -> None:
    other = Row(Case("sink", "sink", 64), ["guestwire", "DPDK"], [window(0, "guestwire", 1.0)])
    empty = Row(row.case, row.contenders, skipped="the time was over")
    results = Results(ABOUT, [empty, other])
    results.complete(Results(ABOUT, [row]))
    assert results.rows == [row, other]


def test_the_picture_is_xml_with_a_bar_for_each_contender(row: Row) -> None:
    picture = report.picture(Results(ABOUT, [row]))
    xml.etree.ElementTree.fromstring(picture)
    assert "loop: frames" in picture
    assert "split 64<" in picture
    assert picture.count("<title>") == 1 + 4  # the picture's own; two charts with two bars


def test_cases_of_a_group_differ_in_their_size_only() -> None:
    groups = cases(SCENARIOS, Sweep())
    for group in groups:
        assert len({(c.scenario, c.work, c.ring, c.mergeable, c.rings, c.queue_size) for c in group}) == 1
        assert all(case.work in WORKS for case in group)
    everything = [case for group in groups for case in group]
    assert len(everything) == len(set(everything))
