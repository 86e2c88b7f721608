from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from headrace.cluster.charts import MAX_POINTS, Series, line_chart, stack_chart, thin, ticks
from headrace.cluster.report import compare, write_report
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_records import Interval, SampleRecord, Scores
from headrace.verifiers.errors import UserError
from tests.factories import evaluation_record, sample_record, step_record, summary

STEP = step_record()
SUMMARY = summary(gain=Scores(Interval(0.26, 0.2, 0.31), Interval(0.0, -0.05, 0.05)))
HOSTILE = "</p><script>alert('a & b')</script>"


def sample(label: str, prompt_id: str, completion: str = "hello", reward: float = 1.0) -> SampleRecord:
    return sample_record(label, prompt_id=prompt_id, completion=completion, reward=reward)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "demo")
    folder.create()
    folder.write_job('[job]\nname = "booking <1>"\n\n[rollout]\nmax_staleness = 2\n')
    return folder


def page_of(folder: RunFolder) -> str:
    path = write_report(folder.path)
    assert path == folder.path / "report.html"
    return path.read_text(encoding="utf-8")


def drawings(page: str) -> list[ElementTree.Element]:
    """The page's charts; raises when one of them is not well-formed."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)]


def classed(drawing: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in drawing.iter() if name in element.get("class", "").split()]


def heights(bars: list[ElementTree.Element]) -> float:
    return sum(float(bar.get("height", "nan")) for bar in bars)


def test_the_page_of_a_whole_run_shows_its_numbers_and_all_charts(folder: RunFolder) -> None:
    folder.append_metrics(evaluation_record("warm", 0, 0.24))
    for number in (1, 2, 3):
        folder.append_metrics(step_record(number))
    folder.append_metrics(evaluation_record("after", 3, 0.5))
    folder.append_samples([sample("warm", "0:1", "a reply before"), sample("after", "0:1", "a reply after")])
    folder.write_summary(SUMMARY)
    page = page_of(folder)
    for part in (
        "<h1>booking &lt;1&gt;</h1>",
        "Finished",
        "+0.260",
        "a reply before",
        "a reply after",
        "runs/demo/model",
        "max_staleness = 2",
    ):
        assert part in page
    assert len(drawings(page)) == 8
    assert "step 2\nwait: 4" in page


def test_waiting_is_a_share_of_the_wall_clock_and_groups_without_gradient_are_named(folder: RunFolder) -> None:
    folder.append_metrics(step_record(phases=STEP.phases | {"publish": 17.0}))
    page = page_of(folder)
    assert "24%" in page  # 4 s of 17 s; the publish overlaps the others
    assert "2 of them without gradient; 2 filtered, 1 dropped" in page


def test_the_page_needs_no_script_and_nothing_from_elsewhere(folder: RunFolder) -> None:
    folder.append_metrics(STEP)
    page = page_of(folder)
    assert not re.search(r"<(script|link|img|iframe)|https?:|url\(|@import|\son\w+=", page)


def test_an_evaluation_whose_checks_did_not_all_run_is_named(folder: RunFolder) -> None:
    folder.append_metrics(evaluation_record("before", checks=20, scored_samples=20))
    folder.append_metrics(evaluation_record("after", checks=20, scored_samples=9, not_scored="KeyError: <answer>"))
    page = page_of(folder)
    for part in ("evaluation after", "9 of 20", "checks ran; KeyError: &lt;answer&gt;"):
        assert part in page
    assert "evaluation before" not in page


def test_what_a_model_wrote_cannot_become_markup(folder: RunFolder) -> None:
    hostile = SampleRecord("train", 1, 0, HOSTILE, HOSTILE, HOSTILE, 0.0, "fail", HOSTILE, HOSTILE, HOSTILE)
    folder.append_samples([hostile, msgspec.structs.replace(hostile, label="before")])
    folder.append_metrics(evaluation_record(HOSTILE, 0, 0.5))
    page = page_of(folder)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 12


def test_a_run_without_a_step_has_a_page(folder: RunFolder) -> None:
    page = page_of(folder)
    assert page.count("no step yet") == 8
    assert "Still running" in page


def test_a_run_of_one_step_shows_points_where_there_are_no_lines(folder: RunFolder) -> None:
    folder.append_metrics(STEP)
    reward = drawings(page_of(folder))[0]
    assert len(classed(reward, "mark")) == 1


def test_a_long_run_is_drawn_in_a_bounded_number_of_points(folder: RunFolder) -> None:
    for number in range(1, 1001):
        folder.append_metrics(step_record(number))
    for drawing in drawings(page_of(folder)):
        assert len(classed(drawing, "band")) == MAX_POINTS


def test_a_step_whose_reward_is_unknown_breaks_the_line() -> None:
    chart = line_chart("Reward", "mean reward", [1, 2, 3, 4], [Series("all", "c1", [0.1, math.nan, 0.3, 0.4])])
    (path,) = classed(ElementTree.fromstring(chart.svg), "line")
    assert re.sub(r"[\d. ]+", "", path.get("d", "")) == "MML"


def test_layers_of_a_stack_are_as_high_as_their_values_and_stand_on_each_other() -> None:
    layers = [Series("wait", "c1", [3.0, 1.0]), Series("forward", "c2", [1.0, 0.0])]
    drawing = ElementTree.fromstring(stack_chart("Phases", "seconds", [1, 2], layers).svg)
    (upper,) = classed(drawing, "c2")
    lower = classed(drawing, "c1")[0]
    assert float(upper.get("y", "nan")) + heights([upper]) == pytest.approx(float(lower.get("y", "nan")), abs=0.11)
    assert heights(classed(drawing, "c1")) == pytest.approx(4 * heights(classed(drawing, "c2")), rel=0.01)


def test_evaluations_of_the_same_step_stand_side_by_side() -> None:
    records = [evaluation_record("before", 0, 0.1), evaluation_record("warm", 0, 0.1)]
    chart = line_chart("Reward", "mean reward", [1], [Series("all", "c1", [0.2])], evaluations=records)
    groups = classed(ElementTree.fromstring(chart.svg), "evaluation")
    assert len({mark.get("cx") for group in groups for mark in classed(group, "mark")}) == 4
    assert "before, sampled: 0.100, 95% 0.050 to 0.150" in chart.svg


def test_the_same_prompt_is_compared_over_evaluations_and_training_samples_are_left_out() -> None:
    samples = [sample("before", "0:1"), sample("before", "0:2"), sample("train", "0:1"), sample("after", "0:1", "new")]
    samples.append(sample("after", "0:1", "second sample of the same prompt"))
    first, second = compare(samples)
    assert [(entry.label, entry.completion) for entry in first] == [("before", "hello"), ("after", "new")]
    assert [entry.prompt_id for entry in second] == ["0:2"]


def test_a_check_that_did_not_run_shows_no_reward(folder: RunFolder) -> None:
    failed = msgspec.structs.replace(sample("train", "0:1", reward=math.nan), verdict="infra_error", reason="timeout")
    folder.append_samples([failed])
    page = page_of(folder)
    assert "timeout" in page
    assert "nan" not in page


def test_a_folder_without_a_run_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)


def test_a_damaged_job_file_is_the_users_error(folder: RunFolder) -> None:
    folder.write_job("[job")
    with pytest.raises(UserError, match=r"job\.toml: not TOML"):
        write_report(folder.path)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_enclose_their_range_evenly_and_are_few(low: float, span: float, about: int) -> None:
    found = ticks(low, low + span, about)
    tolerance = 1e-6 * max(abs(low), span)
    assert found[0] <= low + tolerance
    assert found[-1] >= low + span - tolerance
    assert 2 <= len(found) <= about + 2


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(1, 20))
def test_thinning_keeps_the_largest_value_and_the_bound(values: list[float], limit: int) -> None:
    thinned = thin(values, max, limit)
    assert len(thinned) == min(limit, len(values))
    assert max(thinned, default=0.0) == max(values, default=0.0)


def test_a_prompts_answer_stands_beside_it_once(folder: RunFolder) -> None:
    gold = '[{"name":"book"}]'
    folder.append_samples([msgspec.structs.replace(sample(label, "0:1"), answer=gold) for label in ("before", "after")])
    assert page_of(folder).count(f"answer: <code>{escape(gold)}</code>") == 1
