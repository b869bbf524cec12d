"""The report of a run: complete, safe to open, and sound for runs that hold little."""

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

import mmrl_core.report
from mmrl_core.charts import Series, Stage, chart_uri, draw_chart
from mmrl_core.errors import MMRLError
from mmrl_core.media import content_hash
from mmrl_core.report import format_change, format_number, write_report
from mmrl_core.rollout_log import RolloutLog
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row, Scores

HOSTILE = "</div><script>alert('owned')</script><img src=x onerror=alert(1)>\x00\u202e"
SFT_STEPS, GRPO_STEPS = 60, 90
LAST = SFT_STEPS + GRPO_STEPS


def drawn_boxes(completion: str, sample: dict[str, Any]) -> list[dict[str, Any]]:
    """A view as plugins bring it, for `log.view`."""
    shapes = [{"box": sample["gold"], "label": "", "kind": "gold"}] if "gold" in sample else []
    numbers = [float(number) for number in re.findall(r"-?\d+", completion)[:4]]
    if len(numbers) == 4:
        shapes.append({"box": numbers, "label": "0.90", "kind": "predicted"})
    return shapes


def broken_view(completion: str, sample: dict[str, Any]) -> list[dict[str, Any]]:
    raise RuntimeError("the view is <broken>")


def unsound_view(completion: str, sample: dict[str, Any]) -> list[Any]:
    unsound = [None, "x", {}, {"box": [1, 2, 3]}, {"box": [1, 2, 3, "4"]}, {"box": [math.nan] * 4}, {"box": "1234"}]
    return [
        *unsound,
        {"box": [-1e150, 0, 1e150, 10], "label": "<i>", "kind": "?"},
        {"point": [500, 250], "kind": "gold"},
    ]


def scene(seed: int) -> tuple[Image.Image, list[int]]:
    """A small picture of a bright bar on a dim ground, and the bar's box per mille."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(20, 90, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(ground).resize((84, 84), Image.Resampling.BICUBIC)
    left, top = (int(value) for value in rng.integers(6, 40, 2))
    width, height = (int(value) for value in rng.integers(20, 38, 2))
    ImageDraw.Draw(image).ellipse((left, top, left + width, top + height), outline=(235, 232, 220), width=6)
    return image, [round(value / 84 * 1000) for value in (left, top, left + width, top + height)]


def rollouts_of(
    seed: int, split: str, *, size: int, noise: float, rng: random.Random
) -> tuple[RolloutGroup, list[float]]:
    image, gold = scene(seed)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "detect every 3"}]
    prompt = Prompt(
        f"{split}:{seed}", [{"role": "user", "content": content}], {"gold": gold}, str(gold), (content_hash(image),)
    )
    rollouts, rewards = [], []
    for index in range(size):
        box = [round(value + rng.gauss(0, noise)) for value in gold]
        text = f"<think></think><answer>[{{'Position': {box}, 'Confidence': 1.0}}]</answer>"
        if split == "train" and seed == 100 and index == size - 1:
            text = HOSTILE
        rewards.append(max(0.0, 1.0 - sum(abs(a - b) for a, b in zip(box, gold, strict=True)) / 500))
        row = Row(prompt.id, f"{seed}-{index}", None, torch.zeros(14, dtype=torch.int64), 14, truncated=index == 5)
        rollouts.append(Rollout([row], text))
    return RolloutGroup(prompt, rollouts), rewards


def scores_of(rewards: list[float], *, unscored: bool = False) -> Scores:
    iou, shape = torch.tensor(rewards), torch.ones(len(rewards))
    if unscored:
        iou[0] = math.nan
    return Scores(iou + 0.2 * shape, {"visual_rft/iou": iou, "visual_rft/format": shape}, {"visual_rft/iou": 1.0})


def write_rollouts(run: Path) -> None:
    log, rng = RolloutLog(run), random.Random(1)
    for step, stage, noise in ((0, "start", 320), (SFT_STEPS, "sft", 110), (LAST, "grpo", 30)):
        held_out = [rollouts_of(seed, "held_out", size=1, noise=noise, rng=rng) for seed in range(3)]
        scores = scores_of([reward for _, rewards in held_out for reward in rewards])
        log.write(step, stage, "held_out", [group for group, _ in held_out], scores, None, 0.0)
        log.write(step, stage, "held_out", [group for group, _ in held_out], scores, None, 1.0)
    for step, noise in ((SFT_STEPS + 10, 110), (SFT_STEPS + 50, 70), (LAST, 40)):
        trained = [rollouts_of(seed, "train", size=8, noise=noise, rng=rng) for seed in (100, 101)]
        rewards = [reward for _, rewards in trained for reward in rewards]
        advantages = []
        for _, own in trained:
            mean, std = float(np.mean(own)), float(np.std(own)) + 1e-4
            advantages.append([(reward - mean) / std for reward in own])
        advantages[0][0] = 0.0  # of the unscored one
        scores = scores_of(rewards, unscored=True)
        log.write(step, "grpo", "train", [group for group, _ in trained], scores, advantages, 1.0)


def step_record(step: int, rng: random.Random) -> dict[str, Any]:
    if step <= SFT_STEPS:
        record = {"stage": "sft", "stage_kind": "sft", "loss": 2.4 * math.exp(-step / 18) + rng.uniform(0.2, 0.3)}
        return record | {"grad_norm": rng.uniform(0.4, 1.2), "lr": 1e-3 * (1 - step / 80), "seconds": 0.11}
    done = (step - SFT_STEPS) / GRPO_STEPS
    iou = 0.45 + 0.2 * done + rng.gauss(0, 0.03)
    return {
        "stage": "grpo",
        "stage_kind": "grpo",
        "loss": rng.gauss(0, 0.002),
        "reward/total": iou + 0.2,
        "reward/total_std": 0.3 - 0.1 * done,
        "reward/visual_rft/iou": iou,
        "reward/visual_rft/format": 1.0,
        "advantage/abs_mean": 0.8,
        "kl_ref": 0.02 * done + rng.uniform(0, 0.002),
        "entropy": 1.6 - 0.7 * done,
        "clip_fraction_low": 0.0,
        "clip_fraction_high": 0.01,
        "grad_norm": rng.uniform(0.5, 1.0),
        "lr": 7e-4 * (1 - 0.9 * done),
        "completion_tokens/mean": 14 + rng.uniform(-0.2, 0.2),
        "truncated": rng.uniform(0, 0.02),
        "groups/flat": rng.uniform(0, 0.1),
        "seconds": rng.uniform(0.5, 0.6),
        "plugin/extra": rng.uniform(0, 1),
        "count/decode_tokens": 3584,
        "count/media_encodes": 16,
    }


def eval_record(step: int, label: str, level: float) -> dict[str, Any]:
    record: dict[str, Any] = {"kind": "eval", "stage": "x", "step": step, "label": label}
    for warmth, loss in (("greedy", 0.0), ("t1", 0.09)):
        record |= {
            f"{warmth}/AP": level - loss,
            f"{warmth}/mean_iou": 0.2 + 0.7 * level - loss,
            f"{warmth}/truncated": 0.01,
            f"{warmth}/reward/total": level + 0.2 - loss,
            f"{warmth}/reward/visual_rft/iou": level - loss,
            f"{warmth}/reward/visual_rft/format": 1.0,
        }
    return record


def write_metrics(run: Path) -> None:
    rng, lines = random.Random(2), [eval_record(0, "untrained", 0.08)]
    for step in range(1, LAST + 1):
        lines.append({"kind": "step", "step": step, **step_record(step, rng)})
        if step == SFT_STEPS:
            lines.append(eval_record(step, "after sft", 0.45))
        if step == SFT_STEPS + 45:
            lines.append(eval_record(step, f"step {step}", 0.54))
    lines.append(eval_record(LAST, "after grpo", 0.6))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "step", "st')


def write_config(run: Path, view: str | None = f"{__file__}:drawn_boxes") -> None:
    config = {
        "name": "demo_detection",
        "version": 1,
        "description": "Find the digit: a cold start on loose boxes, then GRPO on the exact reward.",
        "seed": 0,
        "model": {"build": {"name": "visual_rft/digit_detector", "width": 96}, "freeze": ["vision"]},
        "stages": [{"kind": "sft", "steps": SFT_STEPS}, {"kind": "grpo", "steps": GRPO_STEPS}],
        "log": {"view": view and {"name": view}},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def write_run(run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    write_config(run)
    write_metrics(run)
    write_rollouts(run)
    for step in (SFT_STEPS, LAST):
        (run / "checkpoints" / f"step-{step}").mkdir(parents=True)
    rows = [{"file": "data/<b>train.jsonl", "row": 17, "reason": "cannot read image a.png: truncated"}]
    (run / "set_aside.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Page(HTMLParser):
    """What a browser would act on: tags, attributes, and text by heading."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(html)
        self.close()
        self.unbalanced += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()
        else:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def plain(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))

    @property
    def charts(self) -> dict[str, str]:
        """Title of each chart -> its picture."""
        images = [attributes for tag, attributes in self.tags if tag == "img"]
        return {(image["alt"] or "").removesuffix(" over steps"): image["src"] or "" for image in images}


def page_of(run: Path) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.unbalanced == []
    return page


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "demo"
    write_run(run)
    return run


@pytest.fixture(scope="module")
def full_page(full_run: Path) -> Page:
    return page_of(full_run)


def drawn_in(run: Path) -> dict[str, tuple[list[Series], list[Stage]]]:
    """Title of each chart of a run's report -> the curves and stages in its picture."""
    drawn = {}

    def draw(series: list[Series], stages: list[Stage]) -> Any:
        drawn[chart_uri(draw_chart(series, stages))] = series, stages
        return draw_chart(series, stages)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmrl_core.report, "draw_chart", draw)
        charts = page_of(run).charts
    assert set(charts.values()) == set(drawn), "each picture is that of its data"
    return {title: drawn[uri] for title, uri in charts.items()}


@pytest.fixture(scope="module")
def full_charts(full_run: Path, full_page: Page) -> dict[str, tuple[list[Series], list[Stage]]]:
    return drawn_in(full_run)


def test_sections_stand_in_order(full_page: Page):
    sections = [attributes["id"] for tag, attributes in full_page.tags if tag == "h2"]
    assert sections == ["held-out", "curves", "rollouts", "set-aside", "counters", "config"]


def test_head_tells_task_model_and_command(full_page: Page):
    for told in ("demo_detection", "digit_detector", "frozen: vision", "150 of 150", "step-60, step-150"):
        assert told in full_page.plain
    assert "mmrl train demo/config.yaml --output demo-again" in full_page.plain


def test_the_first_screen_tells_the_held_out_score_before_and_after(full_page: Page):
    story = full_page.plain.partition("Held-out results")[0]
    assert "Held-out AP, greedy +0.520 0.080 untrained → 0.450 after sft → 0.600 after grpo" in story
    assert "Held-out total reward, greedy +0.520 0.280 untrained" in story


def test_held_out_table_shows_values_and_change_since_the_column_before(full_page: Page):
    text = full_page.plain.partition("Held-out results")[2]
    assert "untrained step 0 after sft step 60 after grpo step 150" in text
    assert "AP greedy 0.080 0.450 +0.370 0.600 +0.150 AP T = 1 −0.010 0.360 +0.370 0.510 +0.150" in text


def test_evaluations_within_a_stage_are_in_the_curves_not_the_table(full_page: Page, full_charts):
    assert "step 105" not in full_page.plain
    (greedy, sampled), stages = full_charts["Held-out AP"]
    assert (greedy.label, list(greedy.steps), list(greedy.values)) == (
        "greedy",
        [0, 60, 105, 150],
        [0.08, 0.45, 0.54, 0.6],
    )
    assert sampled.label == "T = 1" and greedy.is_measured
    assert stages == [Stage("sft", 1, SFT_STEPS), Stage("grpo", SFT_STEPS + 1, LAST)]


def test_every_known_metric_has_a_curve(full_page: Page):
    expected = {"Held-out total reward", "Held-out AP", "Held-out mean iou", "Held-out iou reward"}
    expected |= {"Total reward", "Each reward", "Reward spread within a group", "Flat groups", "Size of advantages"}
    expected |= {"Loss (sft)", "Loss (grpo)", "Gradient norm", "KL to the reference policy", "Entropy"}
    expected |= {"Clip fraction", "Learning rate", "Completion length", "Truncated", "Time per step", "plugin/extra"}
    assert expected <= set(full_page.charts)
    assert all(uri.startswith("data:image/svg+xml;base64,") for uri in full_page.charts.values())


def test_a_curve_holds_what_was_logged(full_run: Path, full_charts):
    records = [json.loads(line) for line in (full_run / "metrics.jsonl").read_text().splitlines()[:-1]]
    steps = [record for record in records if record["kind"] == "step"]
    for title, keys in {
        "Total reward": ["reward/total"],
        "Each reward": ["reward/visual_rft/iou", "reward/visual_rft/format"],
        "Clip fraction": ["clip_fraction_low", "clip_fraction_high"],
        "Gradient norm": ["grad_norm"],
    }.items():
        for series, key in zip(full_charts[title][0], keys, strict=True):
            logged = {record["step"]: record[key] for record in steps if key in record}
            assert dict(zip(series.steps, series.values, strict=True)) == logged, title
    assert [series.label for series in full_charts["Each reward"][0]] == ["iou", "format"]


def test_gold_and_predicted_boxes_are_drawn_and_distinguishable(full_page: Page):
    styles = [attributes.get("class") or "" for tag, attributes in full_page.tags if tag == "rect"]
    assert styles.count("shape predicted") == 9 + 1  # three prompts at three milestones, and the key
    assert styles.count("shape gold") == 9 + 6 + 2  # also one for each of six training groups
    assert "shape better" in styles and "shape worse" in styles


def test_a_box_is_drawn_where_it_is(tmp_path: Path):
    write_config(tmp_path)
    image = Image.new("RGB", (200, 100))
    content = [{"type": "image", "image": image}]
    prompt = Prompt("p", [{"role": "user", "content": content}], {"gold": [250, 500, 500, 1000]})
    row = Row("p", "t", None, torch.zeros(1, dtype=torch.int64), 1)
    RolloutLog(tmp_path).write(0, "s", "held_out", [RolloutGroup(prompt, [Rollout([row], "")])], None, None, 0.0)
    tags = page_of(tmp_path).tags
    assert ("use", {"href": "#picture-0"}) in tags
    (box,) = [attributes for tag, attributes in tags if tag == "rect" and attributes.get("class") == "halo"]
    assert [box[key] for key in ("x", "y", "width", "height")] == ["25.0%", "50.0%", "25.0%", "50.0%"]


def test_every_completion_stands_with_rewards_and_signed_advantage(full_page: Page):
    bars = [attributes for tag, attributes in full_page.tags if tag == "i"]
    assert len(bars) == 6 * 8 - 3  # one in each step is unscored
    assert {attributes["class"] for attributes in bars} == {"better", "worse"}
    widths = [float(re.findall(r"[\d.]+", attributes["style"] or "")[0]) for attributes in bars]
    assert max(widths) == 50.0
    assert "unscored" in full_page.plain
    assert re.search(r"\+\d\.\d{3}", full_page.plain) and re.search(r"−\d\.\d{3}", full_page.plain)


def test_nothing_a_completion_says_becomes_markup(full_run: Path, full_page: Page):
    html = (full_run / "report.html").read_text(encoding="utf-8")
    assert "alert(" in full_page.plain and "owned" in full_page.plain
    assert not [tag for tag, _ in full_page.tags if tag in ("script", "iframe", "object", "link", "base", "form")]
    assert not [name for _, attributes in full_page.tags for name in attributes if name.startswith("on")]
    assert all(uri.startswith("data:image/") for uri in full_page.charts.values())
    assert "\x00" not in html
    assert "data/<b>train.jsonl" in full_page.plain


def test_nothing_is_fetched(full_page: Page):
    addresses = [
        value for _, attributes in full_page.tags for key, value in attributes.items() if key in ("href", "src")
    ]
    assert addresses and all(address and address.startswith(("data:image/", "#")) for address in addresses)
    policies = [attributes["content"] for _, attributes in full_page.tags if attributes.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_each_picture_is_embedded_once(full_page: Page):
    pictures = [attributes["href"] for tag, attributes in full_page.tags if tag == "image"]
    assert len(pictures) == len(set(pictures)) == 3 + 2


def test_counters_are_summed(full_page: Page):
    assert "decode_tokens 322,560 3,584 3,584" in full_page.plain


def test_writing_twice_gives_the_same_page(full_run: Path, full_page: Page):
    before = (full_run / "report.html").read_bytes()
    assert write_report(full_run).read_bytes() == before
    assert not list(full_run.glob(".*"))


def test_a_repeated_step_counts_once_with_its_last_value(tmp_path: Path):
    lines = [
        {"kind": "step", "stage": "grpo", "stage_kind": "grpo", "step": 1, "reward/total": x} for x in (0.25, 0.75)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (series,), _ = drawn_in(tmp_path)["Total reward"]
    assert (list(series.steps), list(series.values)) == ([1], [0.75])


@pytest.mark.parametrize("steps", [1, 2, 5000])
def test_runs_of_any_length_are_drawn(tmp_path: Path, steps: int):
    lines = [
        {"kind": "step", "stage": "sft", "stage_kind": "sft", "step": i + 1, "loss": 1 / (i + 1)} for i in range(steps)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(tmp_path)
    assert (
        "Loss" in page.plain
        and "The run holds no evaluation." in page.plain
        and "The run holds no rollouts." in page.plain
    )
    assert len((tmp_path / "report.html").read_bytes()) < 100_000


@pytest.mark.parametrize("kept", ["config.yaml", "metrics.jsonl", "rollouts"])
def test_a_run_that_holds_one_thing_only_is_told(tmp_path: Path, kept: str):
    {"config.yaml": write_config, "metrics.jsonl": write_metrics, "rollouts": write_rollouts}[kept](tmp_path)
    assert len(page_of(tmp_path).plain) > 200


@pytest.mark.parametrize(
    "config", ["", "[1, 2]", "name: [", "log: {view: 3}\nstages: {a: 1}\nmodel: x", "name: !!python/object:os.x {}"]
)
def test_an_odd_config_does_not_hide_the_run(tmp_path: Path, config: str):
    write_metrics(tmp_path)
    (tmp_path / "config.yaml").write_text(config)
    assert "after grpo" in page_of(tmp_path).plain


def test_odd_metrics_are_left_out(tmp_path: Path):
    lines = [
        '{"kind": "step", "step": "x"}',
        '{"kind": "step"}',
        '{"kind": "step", "step": 1, "loss": NaN, "kl_ref": Infinity, "entropy": null, "lr": "high", "seconds": true}',
        '{"kind": "step", "step": 2, "stage": "grpo", "kl_ref": 1e300, "grad_norm": -1e300}',
        '{"kind": "step", "step": 3, "stage": "grpo", "kl_ref": 1e-300, "grad_norm": 1e300}',
        '{"kind": "eval", "step": 3, "greedy/AP": NaN, "label": "<b>"}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    page = page_of(tmp_path)
    assert "nan" not in page.plain.lower() and {"KL to the reference policy", "Gradient norm"} == set(page.charts)


def test_odd_rollout_lines_are_shown_as_far_as_they_go(tmp_path: Path):
    (tmp_path / "rollouts" / "media").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"x")
    lines: list[dict[str, Any]] = [
        {},
        {"prompt_id": 3, "media": "x", "rewards": [], "total": "high", "advantage": None, "completion": 7},
        {"prompt_id": "out", "media": ["../secret.png", "/etc/passwd", None], "completion_media": "../secret.png"},
        {"prompt_id": "\ud800", "completion": "\ud800", "num_tokens": "x", "group": [1], "sample": None},
    ]
    for split in ("train", "held_out"):
        path = tmp_path / "rollouts" / f"step-000001-{split}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(tmp_path)
    assert "picture missing or unreadable" in page.plain
    assert not [tag for tag, _ in page.tags if tag == "image"]


@pytest.mark.parametrize("view", ["nobody/nothing", f"{__file__}:broken_view"])
def test_a_view_that_fails_leaves_the_report_standing_and_is_named(tmp_path: Path, view: str):
    write_config(tmp_path, view)
    write_rollouts(tmp_path)
    page = page_of(tmp_path)
    assert ("nobody/nothing" if "nobody" in view else "the view is <broken>") in page.plain
    assert "halo" not in {attributes.get("class") for _, attributes in page.tags}


def test_unsound_shapes_are_left_out_and_far_ones_are_cut(tmp_path: Path):
    write_config(tmp_path, f"{__file__}:unsound_view")
    write_rollouts(tmp_path)
    halos = [(tag, attributes) for tag, attributes in page_of(tmp_path).tags if attributes.get("class") == "halo"]
    assert {tag for tag, _ in halos} == {"rect", "circle"}
    boxes = {(box["x"], box["y"], box["width"], box["height"]) for tag, box in halos if tag == "rect"}
    assert boxes == {("-2.0%", "0.0%", "104.0%", "1.0%")}
    assert {(point["cx"], point["cy"]) for tag, point in halos if tag == "circle"} == {("50.0%", "25.0%")}


def test_a_policy_that_makes_pictures_is_shown(tmp_path: Path):
    row = Row("p", "t", None, torch.zeros(1), 1)
    made = [Rollout([row], scene(seed)[0]) for seed in (1, 2)]
    group = RolloutGroup(Prompt("p", [{"role": "user", "content": "a 3"}], {}), made)
    RolloutLog(tmp_path).write(4, "grpo", "train", [group], None, [[0.5, -0.5]], 1.0)
    assert [tag for tag, _ in page_of(tmp_path).tags].count("image") == 2


def test_a_run_in_progress_shows_its_newest_evaluation(tmp_path: Path):
    records = [eval_record(0, "untrained", 0.1), eval_record(10, "step 10", 0.2), eval_record(20, "step 20", 0.3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = page_of(tmp_path).plain
    assert "untrained step 0 step 20 step 20" in text and "AP greedy 0.100 0.300 +0.200" in text


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(MMRLError, match="not a run directory"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_numbers_are_written_for_reading():
    numbers = (0.57321, -0.5, 12, 0.0, 0, 1234.5, 123.45, 0.00002, 3.2e9, None, math.nan)
    expected = ["0.573", "−0.500", "12", "0.000", "0", "1,234", "123.5", "2.0e-05", "3.2e+09", "–", "–"]
    assert [format_number(value) for value in numbers] == expected
    assert [format_change(value) for value in (0.25, -0.5, 0.0, -1e-9, None)] == [
        "+0.250",
        "−0.500",
        "±0.000",
        "±0.000",
        "–",
    ]
