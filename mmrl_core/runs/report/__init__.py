"""`mmrl view`: a run directory, or two side by side, as one HTML file that needs no network and nothing beside it.

It reads config.yaml, metrics.jsonl, starts.jsonl, rollouts/, eval/ and set_aside.jsonl. Each of them may be missing,
torn, unfinished or of an older version: what is not known is left out. Completions are untrusted: the template escapes
everything, what the script is given is JSON whose texts it sets as text, media are decoded and encoded again, and a
content security policy in the page allows no script but ours, by their hashes, and no address.

`reading` reads the files, `numbers` makes tables and charts, `media` embeds pictures and sounds, `samples` shows
prompts and completions, `answers` has all held-out ones, `text` writes numbers and texts, `page` puts all together and
renders `report.html.j2` with `report.css`, `charts.js`, `answers.js` and `page.js`; `live` serves it while a run goes
on. `vendor` holds uPlot, which draws the charts, as published on npm, with its license.
"""

from mmrl_core.runs.report.live import ReportServer
from mmrl_core.runs.report.page import write_report
from mmrl_core.runs.report.reading import at, read_config
from mmrl_core.runs.report.text import number_of

__all__ = ["ReportServer", "at", "number_of", "read_config", "write_report"]
