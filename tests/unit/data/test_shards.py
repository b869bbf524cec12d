"""Tar files of WebDataset: rows by the names of their members, read where they lie."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmrl_core.config.schema import DataConfig, PromptConfig, SourceConfig
from mmrl_core.data import PromptSource, load_rows
from mmrl_core.data.draw import Mixture
from mmrl_core.errors import TaskDataError
from mmrl_core.plugins import load_plugins


def png(size: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, 6)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, members: dict[str, Any]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_members_of_one_name_are_a_row(tmp_path: Path) -> None:
    path = write_shard(
        tmp_path / "rows.tar",
        {
            "a/01.jpg": png(8),
            "a/01.json": {"question": "What?", "answer": 3},
            "a/01.cls": b"7",
            "a/02.txt": b"a caption",
            "a/02.0.png": png(9),
            "a/02.1.png": png(10),
            "a/03.json": {"images": ["03.right.png", "03.left.png"], "of": ["x"]},
            "a/03.left.png": png(11),
            "a/03.right.png": png(12),
        },
    )
    rows = load_rows(path)
    assert [row["__key__"] for row in rows] == ["a/01", "a/02", "a/03"]
    assert (rows[0]["question"], rows[0]["answer"], rows[0]["cls"], rows[1]["txt"]) == ("What?", 3, 7, "a caption")
    widths = [[Image.open(io.BytesIO(image["bytes"])).width for image in row["images"]] for row in rows]
    assert widths == [[8], [9, 10], [12, 11]], "in the order of the shard, or of the row's own column"
    assert rows.where(2) == f"{path}/a/03" and rows[2]["of"] == ["x"]


def test_shards_of_a_folder_are_one_data_set_whose_order_follows_from_the_position(tmp_path: Path) -> None:
    for number in range(3):
        members = {}
        for row in range(4):
            key = f"{number}{row}"
            members |= {
                f"{key}.png": png(8),
                f"{key}.json": {"messages": [{"role": "user", "content": f"<image>{key}"}]},
            }
        write_shard(tmp_path / f"train-{number:05}.tar", members)

    def ids(position: int, count: int) -> list[str]:
        """As a run that is started there draws: nothing is carried over."""
        config = SourceConfig(path=str(tmp_path))
        source = PromptSource(load_plugins(), config, PromptConfig(), DataConfig(), name="train")
        assert source.files == sorted(tmp_path.glob("*.tar")), "that a resumed run would miss if they had changed"
        prompts = Mixture([source]).draw(position, count, seed=3).prompts
        return [prompt.messages[0]["content"][1]["text"] for prompt in prompts]

    whole = ids(0, 24)
    assert sorted(whole[:12]) == sorted(f"{number}{row}" for number in range(3) for row in range(4))
    assert whole[:12] != sorted(whole[:12])
    assert [ids(position, 5) for position in (5, 10)] == [whole[5:10], whole[10:15]]


def test_a_broken_member_breaks_its_row_and_a_broken_shard_the_data_set(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "rows.tar", {"1.json": b"{", "2.json": {"a": 1}})
    rows = load_rows(path)
    assert rows[1]["a"] == 1
    with pytest.raises(TaskDataError, match=r"rows.tar/1: its member .json cannot be read"):
        rows[0]
    packed = tmp_path / "packed.tar"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(TaskDataError, match=r"packed.tar: no tar file, or a compressed one, which has to be unpacked"):
        load_rows(packed)
