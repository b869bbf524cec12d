"""Sources give rows whose gold scores the maximum, whose media are found, and whose defects break only themselves."""

import csv
import json
import logging
import math
from pathlib import Path

import pytest

import mmrl_vital.tasks
from mmrl_core.config import load_config
from mmrl_core.errors import TaskDataError
from mmrl_vital.data import DATA_SOURCES, activitynet, charades_sta, nextgqa, published, rextime, video_mme
from mmrl_vital.metrics import accuracy, grounded_qa, temporal_grounding
from mmrl_vital.prompts import ANSWER_FORM, TOOL_FORM, choice_question, user_prompt
from mmrl_vital.rewards import TASKS, task
from mmrl_vital.rewards import format as format_reward


def write(path: Path, content) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def write_csv(path: Path, rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def save_video(path: Path) -> None:
    """A file where a video is looked for; sources never open it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"video")


def assert_gold_scores_the_maximum(rows):
    answers = [row["answer"] for row in rows]
    assert task(answers, list(rows)) == [1.0] * len(rows)
    assert format_reward(answers, list(rows)) == [1.0] * len(rows)


# Prompts


def test_prompts_show_forms_that_the_format_reward_accepts():
    assert format_reward([ANSWER_FORM, TOOL_FORM + ANSWER_FORM], [{}, {}]) == [1.0, 1.0]
    assert "..." not in ANSWER_FORM + TOOL_FORM


def test_prompts_carry_the_facts_that_answers_depend_on():
    plain = user_prompt("what barks?", duration_s=61.456)
    assert "61.46 seconds" in plain and ANSWER_FORM in plain and plain.endswith("what barks?")
    assert "tool" not in plain
    assert "at most 2 tool calls" in user_prompt("x", max_tool_calls=2)
    assert "at most one tool call," in user_prompt("x", max_tool_calls=1)
    image = user_prompt("x", image=True, max_tool_calls=2)
    assert "This is an image." in image and "tool" not in image and "second" not in image


def test_options_have_one_letter_each():
    assert choice_question("?", ["A. cat", "(b) dog", "C) owl"]).splitlines()[1:4] == ["A. cat", "B. (b) dog", "C) owl"]


def test_prompt_rollout_and_reward_allow_equally_many_tool_calls():
    config = load_config(str(Path(mmrl_vital.tasks.__file__).parent / "tools.yaml"))
    allowed = [source.options["max_tool_calls"] for source in (config.data.train, config.data.held_out)]
    allowed += [reward.options["max_tool_calls"] for reward in config.rewards if reward.name == "vital/format"]
    assert [*allowed, config.rollout.environment.options["max_calls"]] == [2, 2, 2, 2]
    assert config.rollout.strategy.options["max_turns"] == 3


# Published records


CHARADES = {
    "id": "c1",
    "video": "3MSZA.mp4",
    "duration": 30.96,
    "text": "When does the person turn a light on?",
    "solution": [24.3, 30.4],
    "data_source": "charades_cutreward",
    "video_kwargs": {"max_frames": 32},
}


def image_record(kind, solution):
    return {
        "id": "v1",
        "image": "a/b.png",
        "text": "how many?",
        "solution": solution,
        "data_source": f"video_r1/{kind}",
    }


def test_published_grounding_record(tmp_path):
    path = write(tmp_path / "MTVR_RL" / "charades.json", [CHARADES])
    (row,) = published("train", path=path)
    assert row["video"] == str(tmp_path / "MTVR_RL" / "3MSZA.mp4") and row["image"] is None
    assert (row["task"], row["ground_truth"], row["duration"]) == ("temporal_grounding_short", [24.3, 30.4], 30.96)
    assert row["problem"] == user_prompt(CHARADES["text"], duration_s=30.96)
    assert row["answer"].endswith("<answer>From 24.30 to 30.40 seconds</answer>")
    assert (row["id"], row["video_kwargs"]) == ("c1", {"max_frames": 32})
    assert_gold_scores_the_maximum([row])


@pytest.mark.parametrize(
    ("kind", "solution", "name"),
    [
        ("multiple_choice", "<answer>B</answer>", "multiple_choice"),
        ("numerical", "3.5", "numerical"),
        ("regression", 2, "regression"),
        ("OCR", "No parking", "ocr"),
        ("free_form", "a dog runs", "free_form"),
    ],
)
def test_published_image_record(tmp_path, kind, solution, name):
    path = write(tmp_path / "Video-R1-data-image.json", [image_record(kind, solution)])
    (row,) = published("train", path=path, media=str(tmp_path / "media" / "{file}"), max_tool_calls=2)
    assert row["image"] == str(tmp_path / "media" / "Video-R1-data-image" / "a" / "b.png")
    assert (row["video"], row["duration"], row["task"]) == (None, None, name)
    assert row["problem"] == user_prompt("how many?", image=True)
    assert_gold_scores_the_maximum([row])


def test_published_grounded_record(tmp_path):
    record = CHARADES | {"data_source": "./data/rextime", "solution": "From 32.00 to 53.00, to pull the rope."}
    (row,) = published("train", path=write(tmp_path / "rextime.jsonl", json.dumps(record) + "\n"))
    assert (row["task"], row["ground_truth"]) == ("grounded_qa", "From 32.00 to 53.00, to pull the rope.")
    assert_gold_scores_the_maximum([row])


REASONING = "<think>The light goes on at the end.</think><answer>From 24.30 to 30.40 seconds</answer>"


@pytest.mark.parametrize(
    "fields",
    [
        {"solution": REASONING, "answer": "[24.3, 30.4]"},
        {"solution": REASONING, "answer": [24.3, 30.4]},
        {"solution": [24.3, 30.4], "answer": REASONING},
    ],
)
def test_published_reasoning_is_the_completion_and_the_other_field_the_gold(tmp_path, fields):
    (row,) = published("train", path=write(tmp_path / "charades.json", [CHARADES | fields]))
    assert (row["answer"], row["ground_truth"]) == (REASONING, [24.3, 30.4])


def test_reasoning_without_gold_or_known_source_takes_its_own_answer(tmp_path):
    record = CHARADES | {"solution": REASONING, "data_source": "longvideo"}
    (row,) = published("train", path=write(tmp_path / "charades.json", [record]))
    assert (row["answer"], row["ground_truth"], row["task"]) == (REASONING, "From 24.30 to 30.40 seconds", None)


def test_turns_of_published_tool_reasoning_follow_each_other(tmp_path):
    call = (
        '<tool_call>{"name": "get_video_clip_frame", "arguments": {"start_time": 20.0, "end_time": 30.96}}</tool_call>'
    )
    turns = [f"<think>Look there.</think>{call}", REASONING]
    record = CHARADES | {"solution": turns, "tool_params": "[20.0, 30.96]", "answer": "[24.3, 30.4]"}
    (row,) = published("train", path=write(tmp_path / "vidchapters.json", [record]), max_tool_calls=2)
    assert row["answer"] == "\n".join(turns) and row["ground_truth"] == [24.3, 30.4]
    assert "at most 2 tool calls" in row["problem"]
    assert_gold_scores_the_maximum([row])


def test_records_whose_span_ends_too_early_are_left_out_and_counted(tmp_path, caplog):
    records = [CHARADES | {"solution": span} for span in ([1, 2], [5, 5], [8, 3], [2, 4])]
    with caplog.at_level(logging.WARNING):
        rows = published("train", path=write(tmp_path / "charades.json", records))
    assert [row["ground_truth"] for row in rows] == [[1, 2], [2, 4]]
    assert "2 of 4 records left out" in caplog.text and "charades.json" in caplog.text
    assert rows.where(1) == f"{tmp_path / 'charades.json'} row 3"


def test_parts_and_files_of_a_folder(tmp_path):
    for name, number in (("actnet", 1), ("charades", 2), ("vidchapters", 3)):
        write(tmp_path / "MTVR_RL" / f"{name}.json", [CHARADES | {"id": f"{name}{i}"} for i in range(number)])
    options = {"path": str(tmp_path), "part": "MTVR_RL"}
    ids = [row["id"] for row in published("train", **options)]
    assert ids == ["actnet0", "charades0", "charades1", "vidchapters0", "vidchapters1", "vidchapters2"]
    assert [row["id"] for row in published("train[:2]", **options, files=["charades", "actnet"])] == [
        "charades0",
        "charades1",
    ]
    with pytest.raises(TaskDataError, match="no file 'charade'; it has: actnet, charades, vidchapters"):
        published("train", **options, files=["charade"])
    with pytest.raises(TaskDataError, match="no split 'val'"):
        published("val", **options)
    with pytest.raises(TaskDataError, match="MTVR_CoT: no such file or folder"):
        published("train", path=str(tmp_path), part="MTVR_CoT")
    with pytest.raises(TaskDataError, match="holds no JSON"):
        published("train", path=str(tmp_path))


def test_hub_set_is_read_file_by_file(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    cached = tmp_path / "datasets--owner--videos"
    write(cached / "refs" / "main", "0" * 40)
    write(cached / "snapshots" / ("0" * 40) / "MTVR_RL" / "charades.json", [CHARADES])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert [row["id"] for row in published("train", path="owner/videos", part="MTVR_RL")] == ["c1"]
    with pytest.raises(TaskDataError, match="owner/nothing: no such file or folder, nor a hub data set"):
        published("train", path="owner/nothing", part="MTVR_RL")


def test_every_published_source_has_a_reward():
    assert set(DATA_SOURCES.values()) <= set(TASKS)


def test_an_unknown_data_source_is_named_and_can_be_mapped(tmp_path):
    path = write(tmp_path / "mine.json", [CHARADES, CHARADES | {"data_source": "kitchen"}])
    with pytest.raises(TaskDataError, match=r"mine.json row 1: unknown data_source 'kitchen'.*data_sources:.*charades"):
        published("train", path=path)
    rows = published("train", path=path, data_sources={"kitchen": "temporal_grounding"})
    assert [row["task"] for row in rows] == ["temporal_grounding_short", "temporal_grounding"]
    with pytest.raises(TaskDataError, match="no reward scores 'grounding'; the tasks are: temporal_grounding,"):
        published("train", path=path, data_sources={"kitchen": "grounding"})


@pytest.mark.parametrize("folder", ["3MSZA", "3MSZA.mp4"])
def test_folders_of_frames_are_refused_with_what_to_do(tmp_path, folder):
    (tmp_path / folder).mkdir()
    path = write(tmp_path / "charades.json", [CHARADES])
    with pytest.raises(TaskDataError, match=r"row 0: .* is a folder of extracted frames.*3MSZA.mp4, or set 'media'"):
        published("train", path=path)


def test_frames_beside_the_video_do_no_harm(tmp_path):
    (tmp_path / "3MSZA").mkdir()
    save_video(tmp_path / "3MSZA.mp4")
    assert len(published("train", path=write(tmp_path / "charades.json", [CHARADES]))) == 1


@pytest.mark.parametrize(
    "broken",
    [
        {name: value for name, value in CHARADES.items() if name != "video"},
        CHARADES | {"image": "a.png"},
        CHARADES | {"duration": None},
        CHARADES | {"solution": None},
        CHARADES | {"solution": ""},
        CHARADES | {"text": 3},
        {name: value for name, value in CHARADES.items() if name != "solution"},
        [1, 2],
    ],
)
def test_a_broken_record_is_one_broken_row(tmp_path, broken):
    rows = published("train", path=write(tmp_path / "charades.json", [broken, CHARADES]))
    with pytest.raises(TaskDataError, match=r"charades.json row 0"):
        rows[0]
    assert rows[1]["id"] == "c1"


# Charades-STA


@pytest.fixture
def charades_files(tmp_path):
    write(
        tmp_path / "charades_sta_test.txt",
        "3MSZA 24.3 30.4##person turn a light on.\nAMT7R 0.0 6.9##a person sits; on 2 chairs ## of wood.\n\nbroken\n",
    )
    write_csv(tmp_path / "Charades_v1_test.csv", [{"id": "3MSZA", "length": "30.96"}, {"id": "AMT7R", "length": "25"}])
    save_video(tmp_path / "videos" / "3MSZA.mp4")
    save_video(tmp_path / "videos" / "AMT7R.webm")
    return {"annotations": str(tmp_path / "charades_sta_{split}.txt"), "videos": str(tmp_path / "videos")}


def test_charades_sta(charades_files, tmp_path):
    rows = charades_sta("test", durations=str(tmp_path / "Charades_v1_{split}.csv"), **charades_files)
    assert len(rows) == 3
    first, second = rows[:2]
    assert (first["ground_truth"], first["duration"], first["id"]) == ([24.3, 30.4], 30.96, "3MSZA:1")
    assert "lasts 30.96 seconds" in first["problem"] and "person turn a light on." in first["problem"]
    assert second["video"].endswith("AMT7R.webm") and "a person sits; on 2 chairs ## of wood." in second["problem"]
    assert_gold_scores_the_maximum([first, second])
    found = temporal_grounding([first["answer"], second["answer"]], [first, second])
    assert (found["mIoU"], found["R@0.7"]) == (1.0, 1.0)
    with pytest.raises(TaskDataError, match=r"charades_sta_test.txt:4: unusable record"):
        rows[2]


def test_charades_sta_without_durations_names_none(charades_files):
    row = charades_sta("test[:1]", max_tool_calls=2, **charades_files)[0]
    assert row["duration"] is None and "This is a video." in row["problem"] and "2 tool calls" in row["problem"]


def test_a_video_without_duration_is_one_broken_row(charades_files, tmp_path):
    durations = write_csv(tmp_path / "some.csv", [{"id": "AMT7R", "length": "25"}])
    rows = charades_sta("test", durations=durations, **charades_files)
    with pytest.raises(TaskDataError, match="3MSZA"):
        rows[0]
    assert rows[1]["duration"] == 25.0


def test_missing_files_are_named(charades_files, tmp_path):
    with pytest.raises(TaskDataError, match=r"charades_sta_val.txt: No such file"):
        charades_sta("val", **charades_files)
    with pytest.raises(TaskDataError, match="no such folder of videos"):
        charades_sta("test", annotations=charades_files["annotations"], videos=str(tmp_path / "none"))


# ActivityNet Captions


def test_activitynet(tmp_path):
    content = {
        "v_QOlSCBRmfWY": {
            "duration": 82.73,
            "timestamps": [[0.83, 19.86], [60.81, 60.81]],
            "sentences": ["A young woman is seen standing in a room.", " She dances. "],
        },
        "v_broken": {"duration": 10, "timestamps": [], "sentences": ["no time"]},
    }
    path = write(tmp_path / "val_1.json", content)
    (tmp_path / "videos").mkdir()
    rows = activitynet("val_1", annotations=str(tmp_path / "{split}.json"), videos=str(tmp_path / "videos"))
    assert [rows[0]["ground_truth"], rows[1]["ground_truth"]] == [[0.83, 19.86], [60.81, 60.81]]
    assert rows[0]["video"] == str(tmp_path / "videos" / "v_QOlSCBRmfWY.mp4")  # missing: the core sets the row aside
    assert "lasts 82.73 seconds" in rows[0]["problem"]
    assert_gold_scores_the_maximum([rows[0]])
    # An instant is a gold of its own: the same instant meets it, and nothing else.
    assert temporal_grounding([rows[1]["answer"]], [rows[1]])["mIoU"] == 1.0
    assert temporal_grounding([rows[0]["answer"]], [rows[1]])["mIoU"] == 0.0
    with pytest.raises(TaskDataError, match="v_broken sentence 0: unusable record: IndexError"):
        rows[2]
    write(Path(path), {"v_1": {"duration": 3}})
    with pytest.raises(TaskDataError, match="needs 'duration', 'timestamps' and 'sentences'"):
        activitynet("val_1", annotations=path, videos=str(tmp_path))


# NExT-GQA


@pytest.fixture
def nextgqa_files(tmp_path):
    question = {
        "video_id": "10001787725",
        "frame_count": "1019",
        "width": "640",
        "height": "480",
        "question": "why did the boy pick up one present",
        "answer": "unwrap it",
        "qid": "3",
        "type": "CW",
        **dict(
            zip(["a0", "a1", "a2", "a3", "a4"], ["share", "approach lady", "unwrap it", "play", "gesture"], strict=True)
        ),
    }
    write_csv(tmp_path / "val.csv", [question, question | {"qid": "4"}, question | {"answer": "none of these"}])
    spans = {"10001787725": {"duration": 34, "location": {"3": [[12.1, 17.1], [20.0, 23.5]]}, "fps": 29.97}}
    write(tmp_path / "gsub_val.json", spans)
    write(tmp_path / "map.json", {"10001787725": "1164/10001787725"})
    save_video(tmp_path / "videos" / "1164" / "10001787725.mp4")
    return {
        "questions": str(tmp_path / "{split}.csv"),
        "spans": str(tmp_path / "gsub_{split}.json"),
        "videos": str(tmp_path / "videos"),
        "video_map": str(tmp_path / "map.json"),
    }


def test_nextgqa(nextgqa_files):
    rows = nextgqa("val", **nextgqa_files)
    row = rows[0]
    assert Path(row["video"]).is_file() and row["duration"] == 34.0
    assert row["ground_truth"] == {"span": [[12.1, 17.1], [20.0, 23.5]], "answer": "C"}
    assert "\nC. unwrap it\n" in row["problem"] and (row["question_type"], row["id"]) == ("CW", "10001787725:3")
    assert_gold_scores_the_maximum([row])
    second_span = "<think>x</think><answer>From 20.0 to 23.5 seconds, C</answer>"
    found = grounded_qa([second_span], [row])
    assert (found["accuracy"], found["mIoU"], found["accuracy_IoU@0.5"]) == (1.0, 1.0, 1.0)
    for broken in (1, 2):  # no spans of that question; an answer that is no option
        with pytest.raises(TaskDataError, match=r"val.csv:\d: unusable record"):
            rows[broken]


# ReXTime


def test_rextime(tmp_path):
    record = {
        "qid": "anet_val384",
        "vid": "v_5R3h6lxne90",
        "duration": 55.15,
        "question": "How do we score a goal in polo?",
        "answer": "From <s0> to <e0>, <option>.",
        "source": "ActivityNet_val_2",
        "category": "means_end",
        "options": ["by riding", "by swinging sticks", "by shouting", "by waiting"],
        "ans": "B",
        "span": [32, 53],
    }
    without_options = {"qid": "q", "query": "?", "duration": 3, "vid": "v", "relevant_windows": [[0, 1]], "ans": "A"}
    save_video(tmp_path / "videos" / "v_5R3h6lxne90.mp4")
    records = [record, without_options, record | {"ans": ""}, record | {"ans": "E"}]
    path = write(tmp_path / "rextime_val.jsonl", "\n".join(map(json.dumps, records)))
    rows = rextime("val", annotations=path, videos=str(tmp_path / "videos"))
    row = rows[0]
    assert row["ground_truth"] == {"span": [[32.0, 53.0]], "answer": "B"}
    assert (row["duration"], row["category"], row["task"]) == (55.15, "means_end", "grounded_qa")
    assert_gold_scores_the_maximum([row])
    assert grounded_qa([row["answer"]], [row])["accuracy_IoU@0.5"] == 1.0
    with pytest.raises(TaskDataError, match=r"rextime_val.jsonl:2: the record has no 'options'.*query, duration"):
        rows[1]
    for hidden in (2, 3):
        with pytest.raises(TaskDataError, match="is none of the 4 options"):
            rows[hidden]


# Video-MME


def test_video_mme_reads_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def record(number, duration, answer):
        options = ["A. Apples.", "B. Candles.", "C. Berries.", "D. The three kinds are of the same number."]
        return {
            "video_id": "001",
            "duration": duration,
            "domain": "Knowledge",
            "sub_category": "Humanity & History",
            "url": "https://www.youtube.com/watch?v=fFjv93ACGo8",
            "videoID": "fFjv93ACGo8",
            "question_id": f"001-{number}",
            "task_type": "Counting Problem",
            "question": "What decorates the tree?",
            "options": options,
            "answer": answer,
        }

    records = [record(1, "short", "C"), record(2, "long", "D"), record(3, "long", "A")]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "test-00000-of-00001.parquet")
    save_video(tmp_path / "videos" / "fFjv93ACGo8.mp4")
    options = {"annotations": str(tmp_path), "videos": str(tmp_path / "videos")}
    rows = video_mme("test", **options)
    assert [row["ground_truth"] for row in rows] == ["C", "D", "A"]
    assert "\nC. Berries.\nD. The three" in rows[0]["problem"] and "A. A." not in rows[0]["problem"]
    assert (rows[0]["duration"], rows[0]["duration_class"], rows[0]["domain"]) == (None, "short", "Knowledge")
    assert_gold_scores_the_maximum(list(rows))
    found = accuracy([row["answer"] for row in rows[:2]] + ["<answer>B</answer>"], list(rows), by="duration_class")
    assert (found["accuracy/short"], found["accuracy/long"]) == (1.0, 0.5)
    assert [row["id"] for row in video_mme("test", duration_class="long", **options)] == ["001-2", "001-3"]
    with pytest.raises(TaskDataError, match="no question about a 'lang' video; there are: long, short"):
        video_mme("test", duration_class="lang", **options)


def test_spans_that_are_no_numbers_break_their_row(tmp_path):
    content = {"v": {"duration": 9, "timestamps": [[0, math.inf]], "sentences": ["x"]}}
    path = write(tmp_path / "val.json", json.dumps(content))
    rows = activitynet("val", annotations=path, videos=str(tmp_path))
    with pytest.raises(TaskDataError, match="not finite"):
        rows[0]
