"""Hooks of mkdocs: pages that lie elsewhere in the project join the site, and links find them there.

Plugins' READMEs become `plugins/<name>.md`, the changelog `changelog.md`. A link to a file or folder that the site does
not have, such as a recipe or a test, becomes its text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
JOINED = {
    ROOT / "CHANGELOG.md": "changelog.md",
    **({ROOT / "CONTRIBUTING.md": "contributing.md"} if (ROOT / "CONTRIBUTING.md").is_file() else {}),
    **{
        path: f"plugins/{path.parent.name.removeprefix('mmrl-')}.md"
        for path in sorted(ROOT.glob("plugins/*/README.md"))
    },
}
"""File of the project -> its page in the site."""

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    for section in config.nav:
        if "Plugins" in section:
            tutorials = sorted((DOCS / "tutorials").glob("*.md"))
            section["Plugins"] = [{f"Tutorial: {path.stem}": f"tutorials/{path.name}"} for path in tutorials] + [
                {Path(page).stem.replace("-", "_"): page} for page in JOINED.values() if page.startswith("plugins/")
            ]
    return config


def on_files(files: Any, config: Any) -> Any:
    for path, page in JOINED.items():
        files.append(File.generated(config, page, content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as the site has them; those in fenced blocks stay."""
    uri = page.file.src_uri
    source = next((path for path, joined in JOINED.items() if joined == uri), DOCS / uri)
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _relinked(part, source, uri, files) for part in parts)


def _relinked(text: str, source: Path, uri: str, files: Any) -> str:
    def replaced(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        path = (source.parent / target).resolve()
        found = JOINED.get(path)
        if found is None and path.is_relative_to(DOCS):
            found = path.relative_to(DOCS).as_posix()
        if found is None or files.get_file_from_path(found) is None:
            return label
        return f"[{label}]({os.path.relpath(found, os.path.dirname(uri) or '.')}{anchor})"

    return LINK.sub(replaced, text)
