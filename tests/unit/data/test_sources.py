"""Rows come from every kind of data set as stored; what is broken is named, and breaks no more than it must."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from mmrl_core.data import Rows, load_rows, parse_split, read_parquet, write_parquet
from mmrl_core.data.sources import rows
from mmrl_core.errors import TaskDataError
from mmrl_core.media import load_image

TABLE = [{"problem": f"p{number}", "number": number} for number in range(4)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Arrow files that `datasets` writes for parquet go to the test's folder, and progress bars stay silent."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write_jsonl(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


def problems(found):
    return [row["problem"] for row in found]


def test_importing_the_module_loads_neither_torch_nor_datasets():
    code = (
        "import sys, mmrl_core.data.sources; print([n for n in ('torch', 'datasets', 'pyarrow') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# File formats


def test_every_file_format_gives_the_same_rows(tmp_path):
    from datasets import Dataset

    write_jsonl(tmp_path / "rows.jsonl", TABLE)
    write_jsonl(tmp_path / "lines.json", TABLE)
    (tmp_path / "list.json").write_text(json.dumps(TABLE))
    Dataset.from_list(TABLE).to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "lines.json", "list.json", "rows.parquet"):
        found = load_rows(tmp_path / name)
        assert len(found) == 4 and list(found) == TABLE, name
        assert found[-1] == TABLE[3]
        with pytest.raises(IndexError):
            found[4]


def test_csv_and_tsv_values_are_strings(tmp_path):
    (tmp_path / "rows.csv").write_text('\ufeffproblem,number\n"a, b",1\n\nsecond,2\n', encoding="utf-8")
    (tmp_path / "rows.tsv").write_text("problem\tnumber\nx\t3\n")
    expected = [{"problem": "a, b", "number": "1"}, {"problem": "second", "number": "2"}]
    assert list(load_rows(tmp_path / "rows.csv")) == expected
    assert list(load_rows(tmp_path / "rows.tsv")) == [{"problem": "x", "number": "3"}]


def test_a_csv_field_may_be_as_long_as_an_image_in_base64(tmp_path):
    long = "a" * 300_000  # Python's own limit is 131072
    (tmp_path / "rows.csv").write_text(f"image,label\n{long},dog\n")
    assert load_rows(tmp_path / "rows.csv")[0] == {"image": long, "label": "dog"}


def test_rows_with_some_columns_read_no_others(tmp_path):
    from datasets import Dataset

    write_jsonl(tmp_path / "train-0.jsonl", [{"kind": "a"}, {"other": 1}])
    table = [{"kind": "b", "image": b"x"}, {"kind": "c", "image": b"y"}]
    Dataset.from_list(table).to_parquet(tmp_path / "train-1.parquet")
    whole = load_rows(tmp_path)
    light = whole[1:].select_columns(["kind", "nothing"])
    assert list(light) == [{"kind": kind, "nothing": None} for kind in (None, "b", "c")]
    assert light._parts[1].column_names == ["kind"] and list(whole)[2:] == table
    assert [light.where(index) for index in range(3)] == [whole.where(index) for index in range(1, 4)]


def test_json_object_of_lists_has_its_keys_as_splits(tmp_path):
    path = tmp_path / "both.json"
    path.write_text(json.dumps({"train": TABLE, "test": TABLE[:1], "version": 1}))
    assert len(load_rows(path, split="test")) == 1
    with pytest.raises(TaskDataError, match=r"several splits.*train, test"):
        load_rows(path)
    with pytest.raises(TaskDataError, match=r"no split 'tset'. Did you mean 'test'"):
        load_rows(path, split="tset")


def test_a_saved_data_set_and_dict_are_opened(tmp_path):
    from datasets import Dataset, DatasetDict

    both = DatasetDict(train=Dataset.from_list(TABLE), test=Dataset.from_list(TABLE[:2]))
    both.save_to_disk(tmp_path / "dict")
    both["test"].save_to_disk(tmp_path / "one")
    assert list(load_rows(tmp_path / "dict", split="test")) == TABLE[:2]
    assert list(load_rows(tmp_path / "one")) == list(load_rows(tmp_path / "one", split="train")) == TABLE[:2]
    with pytest.raises(TaskDataError, match=r"no split 'val'.*Splits: train, test"):
        load_rows(tmp_path / "dict", split="val")


# Splits


def test_a_folder_takes_splits_from_file_and_folder_names(tmp_path):
    write_jsonl(tmp_path / "refcoco_val.jsonl", TABLE[:1])
    write_jsonl(tmp_path / "train-00000-of-00002.jsonl", TABLE[:2])
    write_jsonl(tmp_path / "train-00001-of-00002.jsonl", TABLE[2:])
    write_jsonl(tmp_path / "test" / "part.jsonl", TABLE[1:2])
    write_jsonl(tmp_path / ".hidden" / "train.jsonl", TABLE)
    assert list(load_rows(tmp_path, split="train")) == TABLE
    assert problems(load_rows(tmp_path, split="val")) == ["p0"]
    assert problems(load_rows(tmp_path, split="test")) == ["p1"]
    with pytest.raises(TaskDataError, match=r"no split 'vall'. Did you mean 'val'.*Splits: test, train, val"):
        load_rows(tmp_path, split="vall")
    with pytest.raises(TaskDataError, match="several splits"):
        load_rows(tmp_path)


def test_a_folder_without_split_names_is_train(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", TABLE[:2])
    write_jsonl(tmp_path / "b.jsonl", TABLE[2:])
    assert list(load_rows(tmp_path)) == list(load_rows(tmp_path, split="train")) == TABLE
    assert list(load_rows(tmp_path, split="b")) == TABLE[2:]  # a whole file name is a split, too
    with pytest.raises(TaskDataError, match="no split 'test'"):
        load_rows(tmp_path, split="test")


def test_one_file_is_not_silently_another_split(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", TABLE)
    write_jsonl(tmp_path / "rows_test.jsonl", TABLE)
    with pytest.raises(TaskDataError, match="'test' is not part of its name"):
        load_rows(tmp_path / "rows.jsonl", split="test")
    assert len(load_rows(tmp_path / "rows_test.jsonl", split="test")) == 4
    assert len(load_rows(tmp_path / "rows_test.jsonl", split="train")) == 4  # the default of a source


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:2]", [0, 1]),
        ("train[75%:]", [3]),
        ("train[:75%]", [0, 1, 2]),
        ("train[1:-1]", [1, 2]),
        ("train[:]", [0, 1, 2, 3]),
        ("train[:99]", [0, 1, 2, 3]),
    ],
)
def test_a_split_may_be_a_range(tmp_path, split, expected):
    path = write_jsonl(tmp_path / "rows.jsonl", TABLE)
    assert [row["number"] for row in load_rows(path, split=split)] == expected


def test_complementary_percentages_share_no_row_and_lose_none(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"problem": str(n)} for n in range(7)])
    for share in range(0, 101, 7):
        first, second = load_rows(path, split=f"train[:{share}%]"), load_rows(path, split=f"train[{share}%:]")
        assert problems(first) + problems(second) == [str(n) for n in range(7)]


def test_brackets_without_a_range_are_refused():
    with pytest.raises(TaskDataError, match="maybe with a range"):
        parse_split("train[a:b]")


# What is missing


def test_a_missing_file_names_path_and_nearest_names(tmp_path):
    write_jsonl(tmp_path / "refcoco_box.jsonl", TABLE)
    with pytest.raises(TaskDataError) as caught:
        load_rows(tmp_path / "refcoco_bx.jsonl")
    assert "refcoco_bx.jsonl: no such file or folder" in str(caught.value)
    assert f"nearest in {tmp_path}: refcoco_box.jsonl" in str(caught.value)
    with pytest.raises(TaskDataError, match=f"{tmp_path} holds: refcoco_box.jsonl"):
        load_rows(tmp_path / "other" / "deep" / "x.parquet")


def test_a_hub_name_that_cannot_be_loaded_is_a_task_data_error(monkeypatch):
    import datasets

    def offline(*args, **kwargs):
        raise ConnectionError("no network here")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr(datasets, "get_dataset_split_names", offline)
    with pytest.raises(TaskDataError, match=r"'nobody/nothing' at revision abc: not a local.*no network here"):
        load_rows("nobody/nothing", split="train", revision="abc")


def test_hub_rows_splits_and_revision(monkeypatch):
    import datasets

    asked = []

    def load(name, subset, split, revision):
        asked.append((name, subset, split, revision))
        if split not in ("train", "test"):
            raise ValueError(f"Unknown split {split!r}")
        return datasets.Dataset.from_list(TABLE)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *args, **kwargs: ["train", "test"])
    found = load_rows("owner/name", split="train[:1]", revision="v1", subset="small")
    assert list(found) == TABLE[:1] and found.media_root is None
    assert asked == [("owner/name", "small", "train", "v1")]
    with pytest.raises(TaskDataError, match=r"no split 'tets'. Did you mean 'test'"):
        load_rows("owner/name", split="tets")
    with pytest.raises(TaskDataError, match="several splits"):
        load_rows("owner/name")


def test_a_revision_of_local_data_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", TABLE)
    with pytest.raises(TaskDataError, match="for hub data sets only"):
        load_rows(path, revision="v1")


def test_a_folder_without_data_says_what_it_holds(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(TaskDataError, match=r"no data files.*It holds: notes.md"):
        load_rows(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", "{broken"), ("a.json", '"text"'), ("a.parquet", "no parquet")]
)
def test_an_unreadable_file_is_a_task_data_error_with_its_name(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(TaskDataError, match=name):
        load_rows(tmp_path / name)


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(TaskDataError, match="unknown kind of data file"):
        load_rows(tmp_path / "rows.xlsx")


# Columns


def test_only_the_named_columns_are_kept(tmp_path):
    from datasets import Dataset

    write_jsonl(tmp_path / "rows.jsonl", [*TABLE, {"number": 9}])
    Dataset.from_list(TABLE).to_parquet(tmp_path / "rows.parquet")
    assert load_rows(tmp_path / "rows.parquet", columns=["number"])[1] == {"number": 1}
    found = load_rows(tmp_path / "rows.jsonl", columns=["problem"])
    assert found[0] == {"problem": "p0"} and found[4] == {"problem": None}
    for name in ("rows.jsonl", "rows.parquet"):
        with pytest.raises(TaskDataError, match=r"no column 'problme'. Did you mean 'problem'"):
            load_rows(tmp_path / name, columns=["problme"])


# Broken rows


def test_a_broken_jsonl_line_is_one_broken_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"problem": "a"}\n\n{"problem": \n[1]\n{"problem": "\xff"}\n{"problem": "b"}')
    found = load_rows(path, columns=["problem"])
    assert len(found) == 5
    assert found[0] == {"problem": "a"} and found[4] == {"problem": "b"}
    for index, line, why in ((1, 3, "broken JSON"), (2, 4, "object with named columns"), (3, 5, "broken JSON")):
        with pytest.raises(TaskDataError, match=rf"rows.jsonl:{line}: .*{why}"):
            found[index]
        assert found.where(index) == f"{path}:{line}"


def test_a_csv_row_with_other_fields_than_the_header_is_one_broken_row(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n3\n4,5,6\n7,8\n")
    found = load_rows(tmp_path / "rows.csv")
    assert found[0] == {"a": "1", "b": "2"} and found[3] == {"a": "7", "b": "8"}
    with pytest.raises(TaskDataError, match=r"rows.csv:3: 1 fields, but the header has 2"):
        found[1]
    with pytest.raises(TaskDataError, match=r"rows.csv:4: 3 fields"):
        found[2]


def test_images_in_parquet_are_not_decoded_wherever_they_are_nested(tmp_path):
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "more": List(ImageFeature()), "problem": Value("string")})
    broken = {"bytes": b"not an image", "path": None}
    table = [{"image": broken, "more": [broken], "problem": "p"}]
    Dataset.from_list(table, features=features).save_to_disk(tmp_path / "saved")
    Dataset.from_list(table, features=features).to_parquet(tmp_path / "rows.parquet")
    for name in ("saved", "rows.parquet"):
        assert load_rows(tmp_path / name)[0] == table[0], name


# Image folders


def save_image(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), colour).save(path)


def test_image_folder_with_classes_and_splits(tmp_path):
    save_image(tmp_path / "train" / "cat" / "1.png")
    save_image(tmp_path / "train" / "dog" / "test_2.jpg")
    save_image(tmp_path / "val" / "cat" / "3.png")
    found = load_rows(tmp_path, split="train")
    assert [row["label"] for row in found] == ["cat", "dog"]
    assert load_image(found[0]["image"], root=tmp_path).size == (2, 2)
    assert len(load_rows(tmp_path, split="val")) == 1


def test_image_folder_with_metadata(tmp_path):
    save_image(tmp_path / "a.png")
    write_jsonl(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "problem": "p"}, {"file_name": "../b.png"}, {}])
    found = load_rows(tmp_path)
    assert found[0]["problem"] == "p" and load_image(found[0]["image"], root=tmp_path).size == (2, 2)
    with pytest.raises(TaskDataError, match=r"metadata.jsonl:2: file_name '../b.png' leads out"):
        found[1]
    with pytest.raises(TaskDataError, match=r"metadata.jsonl:3: no column 'file_name'"):
        found[2]


def test_image_paths_hold_whatever_folder_they_are_read_from(tmp_path, monkeypatch):
    save_image(tmp_path / "images" / "cat" / "1.png")
    monkeypatch.chdir(tmp_path)
    row = load_rows("images")[0]
    monkeypatch.chdir("/")
    assert load_image(row["image"], root=tmp_path).size == load_image(row["image"], root=None).size == (2, 2)


def test_a_data_file_that_is_a_link_out_of_its_folder_is_refused(tmp_path):
    write_jsonl(tmp_path / "elsewhere.jsonl", TABLE)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    with pytest.raises(
        TaskDataError, match=r"train\.jsonl is a link to .*elsewhere\.jsonl, out of .*data; if that is meant"
    ):
        load_rows(tmp_path / "data")
    assert list(load_rows(tmp_path / "data" / "train.jsonl")) == TABLE  # named by the user
    (tmp_path / "data" / "train.jsonl").unlink()
    (tmp_path / "data" / "train.jsonl").symlink_to(write_jsonl(tmp_path / "data" / ".files" / "1", TABLE))
    assert list(load_rows(tmp_path / "data")) == TABLE


def test_media_root_is_the_folder_of_the_data(tmp_path):
    path = write_jsonl(tmp_path / "data" / "rows.jsonl", TABLE)
    assert load_rows(path).media_root == load_rows(path.parent).media_root == path.parent


# The rest


def test_slices_are_rows_with_their_own_numbers(tmp_path):
    found = load_rows(write_jsonl(tmp_path / "rows.jsonl", TABLE))
    part = found[1:][::2]
    assert isinstance(part, Rows) and problems(part) == ["p1", "p3"]
    assert part.where(1).endswith("rows.jsonl:4")


def test_source_rows_is_load_rows(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", TABLE)
    assert list(rows("train[:1]", path=str(path), columns=["number"])) == [{"number": 0}]


def test_parquet_rows_come_back_as_written_and_a_torn_file_is_named(tmp_path):
    import pyarrow

    path, rows = tmp_path / "new" / "rows.parquet", [{"a": 1, "b": ["x", None]}, {"a": None, "b": []}]
    schema = pyarrow.schema({"a": pyarrow.int32(), "b": pyarrow.list_(pyarrow.string())})
    write_parquet(rows, path, schema=schema)
    assert read_parquet(path) == read_parquet(path, schema=schema) == rows
    assert read_parquet(path, schema=pyarrow.schema({"a": pyarrow.int32()})) == [{"a": 1}, {"a": None}]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TaskDataError, match=r"rows\.parquet cannot be read"):
        read_parquet(path)
    with pytest.raises(TaskDataError, match="Delete it; it is written anew when needed"):
        read_parquet(path, remade=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["rows.parquet"]
