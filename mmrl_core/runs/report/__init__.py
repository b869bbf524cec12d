"""`mmrl view`: a run directory as one HTML file that needs no network, no script and nothing beside it.

It reads config.yaml, metrics.jsonl, rollouts/ and set_aside.jsonl. Each of them may be missing, torn or unfinished.
Completions are untrusted: the template escapes everything, media are decoded and encoded again, and a content security
policy in the page forbids scripts and addresses.

`reading` reads the files, `numbers` makes tables and charts, `media` embeds pictures and sounds, `samples` shows
prompts and completions, `text` writes numbers and texts, `page` puts all together and renders `report.html.j2`.
"""

from mmrl_core.runs.report.page import write_report
from mmrl_core.runs.report.reading import at, read_config
from mmrl_core.runs.report.text import number_of

__all__ = ["at", "number_of", "read_config", "write_report"]
