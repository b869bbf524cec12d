"""The report in a headless Chromium, as a person sees it: what is drawn, chosen, folded, and kept in a live page."""

import json
import math
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmrl_core.runs import ReportServer, write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

QUIET = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
HTML = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
NUM_PROMPTS = 45


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=[*QUIET.split(), "--no-first-run"])
        yield browser
        browser.close()


def answers(step: int) -> list[dict[str, Any]]:
    """Of 45 prompts the first 10 are right before, the last 35 after; the totals fall with the number."""
    lines = []
    for number in range(NUM_PROMPTS):
        correct = number < 10 if step == 0 else number >= 10
        text = HTML if number == 12 else f"says {number} after {step}"
        line = {"prompt_id": f"held_out:{number}", "prompt": f"question {number}", "answer": f"gold {number}"}
        line |= {"completion": text, "correct": correct, "total": float(correct) - number / 100, "num_tokens": 3}
        lines.append(line | {"media": [f"media/{number % 2}-small.jpg"], "rewards": {"a": 1.0, "b": 0.5}})
    return lines


def write_run(run: Path, *, level: float = 0.5, steps: int = 80) -> Path:
    (run / "rollouts" / "media").mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(f"name: shown\nseed: {level}\n")
    records: list[dict[str, Any]] = [{"kind": "eval", "step": 0, "label": "untrained", "greedy/accuracy": 0.1}]
    for step in range(1, steps + 1):
        stage = "sft" if step <= 40 else "grpo"
        record = {"kind": "step", "stage": stage, "stage_kind": stage, "step": step, "loss": math.exp(-step / 20)}
        records.append(record | {"lr": 1e-3, "entropy": 1 + level / step, "seconds": 0.1})
    last = {"kind": "eval", "step": steps, "label": "after grpo", "greedy/accuracy": level, "num_prompts": NUM_PROMPTS}
    records.append(last | {"intervals": {"greedy/accuracy": [level - 0.1, level + 0.1]}})
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for number in range(2):
        Image.new("RGB", (60, 40), (200 * number, 90, 90)).save(run / "rollouts" / "media" / f"{number}-small.jpg")
    for step in (0, steps):
        lines = "".join(json.dumps(line) + "\n" for line in answers(step))
        (run / "rollouts" / f"step-{step:06d}-answers.jsonl").write_text(lines)
    (run / "rollouts" / "step-000050-train.jsonl").write_text(
        "".join(
            json.dumps(
                {"prompt_id": f"train:{group}", "group": group, "index": index, "completion": f"{group} {index}"}
                | {"step": 50, "total": float(index * group), "advantage": 0.0, "correct": group == 2}
            )
            + "\n"
            for group in range(3)
            for index in range(2)
        )
    )
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test where a script fails, or anything is fetched that it should not be."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert problems == []


def shown_ids(page: Any) -> list[str]:
    return page.locator("#answer-list .prompt-id").all_inner_texts()


def test_answers_are_filtered_sorted_searched_and_paged(page: Any, run: Path):
    page.goto(write_report(run).as_uri())
    assert len(shown_ids(page)) == 20 and page.inner_text("#answer-place") == "1 to 20 of 45"
    tallies = page.inner_text("#answer-tallies")
    assert "22.2 % right (95 %: 12.5 % to 36.3 %, 45 prompts)" in tallies and "77.8 % right" in tallies
    assert "35 became right" in tallies and "10 became wrong" in tallies

    page.select_option("#answer-filter", "became-wrong")
    assert shown_ids(page) == [f"held_out:{number}" for number in range(10)]
    assert page.locator("#answer-list .mark.wrong").count() == page.locator("#answer-list .mark.right").count() == 10
    page.select_option("#answer-filter", "all")
    page.select_option("#answer-sort", "worst")
    assert shown_ids(page)[:2] == ["held_out:9", "held_out:8"]
    page.fill("#answer-search", "GOLD 31")
    assert shown_ids(page) == ["held_out:31"] and "says 31 after 80" in page.inner_text("#answer-list")
    page.fill("#answer-search", "")
    page.select_option("#answer-sort", "data")
    page.click("#answer-on")
    page.click("#answer-on")
    assert shown_ids(page) == [f"held_out:{number}" for number in range(40, 45)]
    assert page.is_disabled("#answer-on") and page.locator("#answer-list svg.picture").count() == 5


def test_what_a_completion_says_stays_text(page: Any, run: Path):
    page.goto(write_report(run).as_uri())
    page.fill("#answer-search", "onerror")
    assert shown_ids(page) == ["held_out:12"] and HTML in page.inner_text("#answer-list")
    assert page.locator("#answer-list img, #answer-list script").count() == 0 and page.title() == "shown: first"


def test_charts_have_a_value_for_each_step_under_the_pointer(page: Any, run: Path):
    page.goto(write_report(run).as_uri())
    assert "Learning rate 0.001" in page.inner_text(".flat >> nth=0"), "what never changed is a line"
    chart = page.locator(".chart", has_text="Entropy").first
    chart.scroll_into_view_if_needed()
    chart.locator("canvas").wait_for()
    assert chart.locator(".legend").inner_text().split() == ["1.006", "last"]
    box = chart.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 20)
    assert chart.locator(".legend").inner_text().split()[0] != "1.006"
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 20)
    told = chart.locator(".legend").inner_text().split()
    assert told[1] == "step" and 22 <= int(told[2]) <= 26
    other = page.locator(".chart", has_text="Loss (sft)").first
    assert other.locator(".legend .at").inner_text() == f"step {told[2]}", "all charts have one x axis"


def test_training_groups_are_chosen_and_sorted(page: Any, run: Path):
    page.goto(write_report(run).as_uri())
    summaries = page.locator("#groups > details:visible > summary")
    assert summaries.count() == 3
    page.select_option("#group-sort", "disagree")
    assert "train:2" in summaries.first.inner_text() and "2 of 2 right" in summaries.first.inner_text()
    page.select_option("#group-filter", "flat")
    assert summaries.count() == 1 and "train:0" in summaries.first.inner_text()


def test_a_phone_sees_the_newest_first_folds_the_charts_and_scrolls_down_only(browser: Any, run: Path):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(write_report(run).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    heads = page.locator(".held-out tr.section th").all_inner_texts()
    assert heads[2].startswith("after grpo") and heads[3].startswith("untrained")
    assert page.locator("details.fold[open]").count() == 0 and page.locator("details.fold").count() >= 2
    context.close()


def test_dark_mode_is_dark_and_readable(browser: Any, run: Path):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(write_report(run).as_uri())
    ink, back = (
        [int(part) for part in page.evaluate(f"getComputedStyle(document.body).{name}")[4:-1].split(", ")]
        for name in ("color", "backgroundColor")
    )
    assert sum(back) < 120 and sum(ink) > 500
    context.close()


def test_two_runs_stand_side_by_side(page: Any, run: Path, tmp_path: Path):
    other = write_run(tmp_path / "second", level=0.7, steps=60)
    path = write_report(run, other)
    assert path == run / "report-second.html"
    page.goto(path.as_uri())
    text = page.inner_text("main")
    assert "+0.200" in text and "first: after grpo" in text and "second: after grpo" in text
    assert page.locator("#set-b option").count() == 4
    assert "seed" in page.locator("h3#differences + div").inner_text()
    chart = page.locator(".chart", has_text="Entropy").first
    assert "first" in chart.inner_text() and "second" in chart.inner_text()
    namesake = write_run(tmp_path / "elsewhere" / "first", level=0.7, steps=60)
    page.goto(write_report(run, namesake).as_uri())
    assert f"{run.parent.name}/first: after grpo" in page.inner_text("main")
    assert "elsewhere/first: after grpo" in page.inner_text("main")


def test_a_followed_run_is_shown_anew_with_what_was_chosen(page: Any, tmp_path: Path):
    run = write_run(tmp_path / "live", steps=60)
    with ReportServer([run], 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.add_init_script("window.setTimeout = ((after) => (call, ms) => after(call, ms / 50))(window.setTimeout)")
        page.goto(server.url)
        assert page.inner_text("#live") == "● live" and "60" in page.inner_text("main")
        page.select_option("#answer-filter", "became-right")
        page.fill("#answer-search", "question 3")
        page.locator("#answer-search").blur()
        before = shown_ids(page)
        page.evaluate("scrollTo(0, 700)")
        with page.expect_navigation():
            write_run(run, steps=64)
        page.wait_for_selector("#answer-list .answer")
        assert shown_ids(page) == before != [] and page.input_value("#answer-search") == "question 3"
        assert page.evaluate("scrollY") == 700 and "64" in page.inner_text("main")
        page.goto("about:blank")  # it asks no more
        server.shutdown()
