import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from metarl.evaluation import AdaptationCurve, write_report
from metarl.evaluation.report import decimals, readable, show_estimate, text_table, versions
from metarl.evaluation.statistics import Estimate

VOID = {"meta", "img", "source", "br", "hr", "link"}


class Page(HTMLParser):
    """Collects text and attributes, and checks that tags are closed in order."""

    def __init__(self, path):
        super().__init__()
        self.open_tags, self.text, self.attributes = [], [], []
        self.feed(Path(path).read_text(encoding="utf-8"))
        assert self.open_tags == []

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if self.open_tags[-1:] != ["style"]:
            self.text.append(data.strip())


@pytest.fixture(scope="module")
def curve():
    rng = np.random.default_rng(0)
    curve = AdaptationCurve(
        name="<b>RL²</b> & co",
        env_id="metarl/BernoulliBandit-v0",
        family_kwargs={"num_arms": 5},
        split="test",
        task_hash="0123456789abcdef" * 4,
        returns=rng.random((30, 4)),
        training_steps=2_000_000,
        ceiling=np.ones(30),
    )
    return dataclasses.replace(curve, references=(dataclasses.replace(curve, name="random"),))


def test_page_holds_everything(curve, tmp_path):
    config = {"policy": "LstmPolicy", "env": {"num_arms": 5}, "path": Path("a</pre>b")}
    path = write_report(tmp_path / "run" / "report.html", curve, config=config, facts={"wall time": "3 min"})
    page = Page(path)
    for text in [curve.name, "random", "2,000,000 steps", "num_arms = 5", "wall time", "3 min", "numpy"]:
        assert text in page.text
    for row in curve.table_rows()[1]:
        assert set(filter(None, row)) <= set(page.text)
    assert "30 of split test, SHA-256 0123456789abcdef" in page.text
    assert "policy: LstmPolicy\nenv:\n  num_arms: 5\npath: a</pre>b" in page.text


def test_page_needs_nothing_else(curve, tmp_path):
    path = write_report(tmp_path / "report.html", curve)
    page = Page(path)
    sources = [value for _, name, value in page.attributes if name in ("src", "srcset", "href")]
    assert len(sources) == 2  # one picture in light and dark
    for source in sources:
        kind, data = source.split(";base64,")
        assert kind == "data:image/svg+xml"
        assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
    assert not re.search(r"https?://|@import|url\(", path.read_text(encoding="utf-8"))
    assert not any(tag in ("script", "link", "iframe") for tag, _, _ in page.attributes)


def test_several_task_sets_stand_side_by_side(curve, tmp_path):
    ood = dataclasses.replace(curve, split="ood", returns=curve.returns / 2)
    page = Page(write_report(tmp_path / "report.html", {"test": curve, "ood": ood}, title="My run"))
    assert {"My run", "Scores on test tasks", "Scores on ood tasks"} <= set(page.text)
    assert sum(name == "src" for _, name, _ in page.attributes) == 2


def test_reports_are_reproducible(curve, tmp_path):
    pages = [write_report(tmp_path / name, curve).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_text_tables_are_aligned():
    assert text_table(["player", "score"], [["a", "1.5"], ["longer name", "10"]]) == (
        "player       score\n-----------  -----\na              1.5\nlonger name     10"
    )


@pytest.mark.parametrize(
    ("width", "expected"), [(0.012, 3), (0.05, 3), (0.4, 2), (1.2, 1), (3.0, 1), (30.0, 0), (500.0, 0), (1e-9, 4), (0.0, 2)]
)
def test_decimals_follow_the_interval(width, expected):
    assert decimals([Estimate(1.0, 1.0, 1.0 + width * (1 + 1e-9)), Estimate(1.0, float("nan"), float("nan"))]) == expected


def test_estimates_as_text():
    assert show_estimate(Estimate(6.6551, 6.6432, 6.6671), 2) == "6.66 [6.64, 6.67]"
    assert show_estimate(Estimate(0.5, -0.25, 1.25), 1, sign="+") == "+0.5 [-0.2, +1.2]"
    assert show_estimate(Estimate(2.0, float("nan"), float("nan")), 1) == "2.0"
    assert show_estimate(Estimate(2.0, 2.0, 2.0), 1) == "2.0"
    assert show_estimate(Estimate(2.0, 2.0, 2.0), 1, points=True) == "2.0 [2.0, 2.0]"
    assert show_estimate(Estimate(2.0, float("nan"), float("nan")), 1, points=True) == "2.0"


def test_configurations_are_readable_and_versions_known():
    assert readable({"b": 1e-5, "a": [1, None], "c": (True, "ä")}) == "b: 1.0e-05\na:\n- 1\n- null\nc:\n- true\n- ä"
    assert {"Python", "numpy", "torch", "gymnasium", "stable-baselines3"} <= set(versions())
