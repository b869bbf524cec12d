"""What is cheap to see of all rows of a source: `mmrl check` decodes the media of the first ones only."""

from __future__ import annotations

from mmrl_core.data import PromptSource
from mmrl_core.testing.sections import MAX_SHOWN, Finding

MAX_LOOKED = 100_000  # rows; of a longer source as many, evenly spread, the last one among them


def further_row_findings(where: str, source: PromptSource, num_read: int, max_broken: float) -> list[Finding]:
    """Findings about the rows that were not read whole: lines, texts, paths, and headers of images and audios.

    Args:
        where: config key of the source, for the sentence.
        source: of the rows.
        num_read: how many from the start were read whole.
        max_broken: share of the rows that a run sets aside before it stops.
    """
    findings = []
    if source.marks_off is not None:
        findings.append(Finding(False, f"{where}: {source.marks_off}", tolerable=True))
    num_further = len(source) - num_read
    if num_further < 1 or source.is_made:  # a row costs what making it does, and no file can be broken
        return findings
    count = min(num_further, MAX_LOOKED)
    step = (num_further - 1) / max(1, count - 1)
    looked = [num_read + round(step * number) for number in range(count)] if count > 1 else [len(source) - 1]
    reasons = [reason for index in looked if (reason := source.look(index)) is not None]
    every = "of the rows behind them" if count == num_further else f"of {count} rows spread over those behind them"
    if not reasons:
        return [*findings, Finding(True, f"{where}: none {every} shows a fault before its media are decoded")]
    broken = len(source.set_aside) + len(reasons)
    over = broken > max_broken * (num_read + count)
    stops = f", more than data.max_broken ({max_broken:g}) allows" if over else ""
    more = f"\n  and {len(reasons) - MAX_SHOWN} more" if len(reasons) > MAX_SHOWN else ""
    shown = "\n  ".join(reasons[:MAX_SHOWN])
    sentence = f"{where}: {len(reasons)} {every} are broken{stops}:\n  {shown}{more}"
    return [*findings, Finding(False, sentence, tolerable=not over)]
