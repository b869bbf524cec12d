"""What a large file costs: long lines are broken rows, and a preview of parquet reads no more than it shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mmrl_core.data import lines as lines_module
from mmrl_core.data import load_rows
from mmrl_core.data.parquet_rows import NUM_FIRST_ROWS
from mmrl_core.errors import TaskDataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


COSTS = """
import resource, sys
from pathlib import Path
import pyarrow.parquet
from mmrl_core.data import load_rows

pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (400 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    rows = load_rows(path)
    try:
        print(len(rows), rows[0])
    except Exception as error:
        print(len(rows), type(error).__name__, error)
"""


def test_the_first_row_of_a_large_file_costs_little_memory(tmp_path: Path) -> None:
    table = pyarrow.table({"n": np.zeros(20_000_000, np.int64), "text": pyarrow.repeat("the same", 20_000_000)})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=20_000_000, data_page_size=1 << 30)
    with open(tmp_path / "rows.jsonl", "wb") as file:
        file.write(b'{"a": "')
        for _ in range(300):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"a": "second"}\n')
    paths = [str(tmp_path / name) for name in ("rows.parquet", "rows.jsonl")]
    # Threads and memory pools reserve address space for each core of the machine.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [sys.executable, "-c", COSTS, *paths]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = done.stdout.splitlines()
    assert first == "20000000 {'n': 0, 'text': 'the same'}"
    assert second.startswith("2 TaskDataError") and "rows.jsonl:1: the line has 314572810 bytes, more than" in second


def test_a_long_line_is_one_broken_row_in_every_text_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lines", "delimited", "tables"):
        monkeypatch.setattr(f"mmrl_core.data.{module}.LONGEST_LINE", 100, raising=False)
    assert lines_module.LONGEST_LINE == 100
    long = "x" * 200
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"a": text}) + "\n" for text in ("b", long, "c")))
    (tmp_path / "a.csv").write_text(f"a,b\nb,1\n{long},2\nc,3")
    (tmp_path / "a.tsv").write_text(f"a\tb\nb\t1\n{long}\t2\nc\t3")
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        rows = load_rows(tmp_path / name)
        assert [rows[0]["a"], rows[2]["a"], len(rows)] == ["b", "c", 3]
        with pytest.raises(TaskDataError, match=r"the line has 20\d bytes, more than the limit of 100|has 21\d bytes"):
            rows[1]


def test_a_json_file_that_is_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "wb") as file:
        file.write(b"[")
        file.truncate(1 << 40)
    with pytest.raises(TaskDataError, match=r"a\.json has 1099511627776 bytes.*write it as JSON lines"):
        load_rows(tmp_path / "a.json")


def table_of(start: int, count: int) -> pyarrow.Table:
    numbers = list(range(start, start + count))
    return pyarrow.table({"n": numbers, "list": [[number] for number in numbers], "image": [b"x"] * count})


def test_all_rows_of_parquet_files_are_those_that_were_written(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(table_of(0, 300), tmp_path / "train-0.parquet", row_group_size=70)
    pyarrow.parquet.write_table(table_of(300, 50), tmp_path / "train-1.parquet")
    rows = load_rows(tmp_path)
    asked = [0, 40, 39, NUM_FIRST_ROWS - 1, NUM_FIRST_ROWS, 299, 300, 349, 1]
    assert [rows[index]["n"] for index in asked] == asked
    assert list(rows.select_columns(["n"])) == [{"n": number} for number in range(350)]
    assert rows[349] == {"n": 349, "list": [349], "image": b"x"} and len(rows) == 350


def test_parquet_files_of_other_columns_and_torn_ones_are_refused_by_name(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(table_of(0, 3), tmp_path / "train-0.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"other": [1]}), tmp_path / "train-1.parquet")
    with pytest.raises(TaskDataError, match=r"cannot read .*train-0\.parquet"):
        load_rows(tmp_path)
    (tmp_path / "train-1.parquet").write_bytes((tmp_path / "train-0.parquet").read_bytes()[:-9])
    with pytest.raises(TaskDataError, match=r"cannot read .*train-1\.parquet"):
        load_rows(tmp_path)


def test_damage_in_the_middle_of_a_parquet_file_breaks_rows_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table_of(0, 3000), path, compression="zstd", row_group_size=1000)
    data = bytearray(path.read_bytes())
    data[200:1200] = bytes(1000)
    path.write_bytes(data)
    with pytest.raises(TaskDataError, match=r"cannot read .*rows\.parquet"):
        load_rows(path)[0]
