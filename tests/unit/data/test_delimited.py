"""CSV and TSV: no stray quotation mark loses rows, and what writers of such files produce is read as they meant it."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest

from mmrl_core.data import load_rows
from mmrl_core.errors import TaskDataError


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def reasons(path: Path) -> list[str]:
    """Why rows are broken."""
    rows, found = load_rows(path), []
    for index in range(len(rows)):
        try:
            _ = rows[index]
        except TaskDataError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("place", ['"{}', '{}"', '"{}" he said', '5" {}', '{} "', '"'])
def test_stray_quotation_marks_lose_no_row_of_a_tsv(tmp_path: Path, place: str) -> None:
    texts = {number: f"text {number}" for number in range(200)}
    texts |= {number: place.format(f"text {number}") for number in (49, 99, 100)}
    lines = [f"{number}\t{text}\tyes" for number, text in texts.items()]
    rows = load_rows(write(tmp_path / "rows.tsv", "id\tquestion\tanswer", *lines))
    assert [row["id"] for row in rows] == [str(number) for number in range(200)]
    assert [row["question"] for row in rows] == list(texts.values())


def test_stray_quotation_marks_of_a_csv_are_broken_rows_and_the_others_stay(tmp_path: Path) -> None:
    lines = [f"{number},{chr(34) if number in (9, 19) else ''}text {number},yes" for number in range(40)]
    path = write(tmp_path / "rows.csv", "id,question,answer", *lines)
    assert len(load_rows(path)) == 40
    assert [reason.partition(": ")[0] for reason in reasons(path)] == [f"{path}:11", f"{path}:21"]
    assert all("a quotation mark opens a field, and none closes it" in reason for reason in reasons(path))


ROWS = [
    ["1", "two\nlines", 'a "quoted" word'],
    ["2", "a\ttab, a comma", "three\n\nlines"],
    ["first\nfield", "x", "y"],
    ["4", "plain", 'ends with a quote"'],
    ["5", "a\r\nb", ""],
]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_what_a_writer_quotes_is_read_as_it_was_meant(
    tmp_path: Path, suffix: str, delimiter: str, quoting: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"rows{suffix}"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, quoting=quoting).writerows([["id", "question", "answer"], *ROWS])
    with caplog.at_level(logging.WARNING):
        found = load_rows(path)
    assert [list(row.values()) for row in found] == ROWS
    assert "rows" + suffix + ":2: a field in quotation marks goes over several lines (4 rows have such)" in caplog.text
    assert found.where(1).endswith(":4")  # the line at which the row starts


def test_a_row_of_other_fields_than_the_header_is_broken_and_no_other(tmp_path: Path) -> None:
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        path = write(
            tmp_path / f"rows{suffix}", *(line.replace("|", delimiter) for line in ("a|b", "1|2", "3", "4|5|6"))
        )
        assert len(load_rows(path)) == 3
        assert [reason.partition(": ")[2] for reason in reasons(path)] == [
            "1 fields, but the header has 2",
            "3 fields, but the header has 2",
        ]


def test_bytes_that_are_no_utf8_break_their_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a,b\n1,\xff\n2,\xc3\xa9\n")
    assert load_rows(path)[1] == {"a": "2", "b": "é"}
    assert reasons(path) == [f"{path}:2: broken UTF-8; save the file as UTF-8"]
    path.write_text("a,b\n1,2\n", encoding="utf-16")
    with pytest.raises(TaskDataError, match=r"rows\.csv: its first line, which names the columns, is broken"):
        load_rows(path)


def test_an_empty_file_and_blank_lines_give_no_rows(tmp_path: Path) -> None:
    assert len(load_rows(write(tmp_path / "a.csv", "a,b", "", "1,2", ""))) == 1
    (tmp_path / "b.tsv").write_text("")
    assert len(load_rows(tmp_path / "b.tsv")) == 0
