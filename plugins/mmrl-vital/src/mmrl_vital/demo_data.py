"""Rows for the demos: short videos made on this machine, in which digits come and go at known times.

The videos are real mp4 files (H.264); the pixels in them are real but small: 8 x 8 scans of handwritten digits (UCI,
Alpaydin and Kaynak 1998) from scikit-learn, drifting in light ink over a camera pan across a darkened photograph that
ships inside scikit-learn or scikit-image.

A video's time is cut into slots of four seconds. Short digits are shown for one slot that holds none of the frames
which the prompt shows, so only a look into the clip can tell which digit it was. Long digits are shown for several
slots, always in at least one frame of the prompt. Between two digits lies at least one empty slot. Questions name a
time, such as "Which digit is shown at 38.0 seconds?"; a row is easy if its digit is a long one.

The two splits share neither a digit scan nor any part of a photograph, so held-out scores measure generalisation:

    split      scans (of 1797)   photographs
    train      1300              left half
    held_out   497               right half

Rows carry three gold conversations: an exact one, one that never calls the tool, and what a hasty annotator would have
written: windows that are off, too wide, or not opened at all. A supervised cold start on those leaves a policy that
looks in the wrong place; the reward reads the answer, so GRPO can teach it to aim.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmrl_core.data import ListedRows
from mmrl_core.errors import TaskDataError
from mmrl_core.starting_model import cache_folder
from mmrl_core.testing import (
    CLASS_WORDS,
    MIN_DIGIT_WIDTH_PX,
    NUM_SCANS,
    ink_masks,
    photographs,
    scan_ids_by_class,
    write_aside,
)

if TYPE_CHECKING:
    import numpy as np

Split = Literal["train", "held_out"]

LETTERS = "ABCDEFGHIJ"
TOOL_NAME = "get_video_clip_frame"
PROBLEM = "The video lasts {duration:.1f} seconds. Which digit is shown at {asked:.1f} seconds?"
SLOT_S = 4  # times in questions are the middles of slots, times in calls their ends

FORMAT_VERSION = 1  # part of the cache key: raise it when the same options would give other videos
SCANS = {"train": (0, 1300), "held_out": (1300, NUM_SCANS)}  # ranges of the shuffled scans
PHOTO_SHARE = {"train": (0.0, 0.5), "held_out": (0.5, 1.0)}  # of the photograph's width
PAN_PX = 40  # how far the camera moves over a video
MAX_SIZE_PX = 224  # half of the narrowest photograph
DRIFT_PX = 8  # how far a digit moves, at most, along each axis
KEYFRAME_EVERY_S = 8  # a clip is decoded from the keyframe before it


@dataclass(frozen=True)
class VideoOptions:
    """What the videos look like.

    Attributes:
        duration_s: length of each video, a multiple of the slot of 4 s.
        fps: frames per second in the file.
        size_px: side of the square picture, up to 224; a multiple of 28 reaches the model without being resized.
        digit_px: least and greatest height of a digit's ink, pixels.
        num_classes: digits 0..num_classes - 1 occur.
        prompt_frames: how many frames the prompt will show, spread evenly from the first to the last of the file.
        long_digits, short_digits: how many of each a video holds, as far as they fit.
        brightness: factor on the photograph, so that the ink stands out.
    """

    duration_s: int
    fps: int
    size_px: int
    digit_px: tuple[int, int]
    num_classes: int
    prompt_frames: int
    long_digits: int
    short_digits: int
    brightness: float

    @property
    def num_frames(self) -> int:
        return self.duration_s * self.fps

    @property
    def num_slots(self) -> int:
        return self.duration_s // SLOT_S

    @property
    def prompt_times_s(self) -> list[float]:
        """When the frames of the prompt were taken."""
        last = self.num_frames - 1
        return [round(i * last / (self.prompt_frames - 1)) / self.fps for i in range(self.prompt_frames)]

    @property
    def shown_slots(self) -> list[int]:
        """Slots that hold a frame of the prompt."""
        return sorted({int(time // SLOT_S) for time in self.prompt_times_s})

    @property
    def long_slots(self) -> int:
        """Length of a long digit: so many slots hold a frame of the prompt, wherever they start."""
        return max(second - first for first, second in itertools.pairwise(self.shown_slots))


@dataclass(frozen=True)
class Event:
    """A digit on screen: from ``start_slot`` for ``num_slots`` slots."""

    start_slot: int
    num_slots: int
    class_id: int
    scan_id: int

    @property
    def start_s(self) -> int:
        return self.start_slot * SLOT_S

    @property
    def end_s(self) -> int:
        return (self.start_slot + self.num_slots) * SLOT_S


def tool_videos(
    split: Split,
    *,
    num_rows: int,
    seed: int = 0,
    questions_per_video: int = 5,
    easy_share: float = 0.3,
    duration_s: int = 96,
    fps: int = 2,
    size_px: int = 56,
    digit_px: tuple[int, int] = (36, 48),
    num_classes: int = 5,
    prompt_frames: int = 8,
    long_digits: int = 1,
    short_digits: int = 5,
    brightness: float = 0.35,
    aim_error_s: int = 8,
    wide_share: float = 0.5,
    direct_share: float = 0.3,
    cache_dir: str | Path | None = None,
) -> ListedRows:
    """Rows of one split; their videos are encoded when first asked for.

    A row depends on (options, seed, split, its index) only, so a longer set starts with the rows of a shorter one.

    Args:
        split: "train" or "held_out".
        num_rows: length of the set.
        seed: of the videos, the questions and the hasty annotator's mistakes.
        questions_per_video: neighbouring rows that share a file.
        easy_share: probability that a row asks about a long digit.
        duration_s, fps, size_px, digit_px, num_classes, prompt_frames, long_digits, short_digits, brightness: see
            ``VideoOptions``.
        aim_error_s: the hasty annotator's windows start up to this much too early or too late, in steps of 4 s, each
            equally likely.
        wide_share: probability that such a window is 8 s wide instead of 4.
        direct_share: probability that the hasty annotator answers without a look.
        cache_dir: folder of the videos; default: the environment variable MMRL_CACHE, else ~/.cache/mmrl. Files are
            written aside and renamed, so an interrupted or concurrent run leaves none half written.

    Returns:
        One dict per row:
            video: path of the mp4 file.
            duration: its length, seconds.
            problem: question and options.
            options: the options' texts, in order.
            ground_truth: letter of the right one.
            task: "multiple_choice".
            easy: whether a frame of the prompt shows the digit asked for.
            difficulty: "easy" or "hard", the same as a word.
            asked_s: the time asked about, seconds.
            events: every digit of the video: {"start_s", "end_s", "class_id", "scan_id"}, in order of time.
            video_id: unique over splits and seeds.
            demonstration: the hasty annotator's turns, the right answer included, joined by a line break.
            exact_demonstration: a call of the slot that holds the time asked about, then the answer.
            demonstration_without_tools: the answer at once.

    Raises:
        TaskDataError: unknown split, a value out of range, or a cache folder that cannot be written.
    """
    options = VideoOptions(
        duration_s=duration_s,
        fps=fps,
        size_px=size_px,
        digit_px=(digit_px[0], digit_px[1]),
        num_classes=num_classes,
        prompt_frames=prompt_frames,
        long_digits=long_digits,
        short_digits=short_digits,
        brightness=brightness,
    )
    check_options(
        options, split=split, num_rows=num_rows, questions_per_video=questions_per_video, aim_error_s=aim_error_s
    )
    folder = _cache_folder(cache_dir, split, seed, options)
    rows: list[dict[str, Any]] = []
    while len(rows) < num_rows:
        number = len(rows) // questions_per_video
        events = video_events(split, number, seed, options)
        path = folder / f"{number:05d}.mp4"
        if not path.is_file():
            with write_aside(path) as unfinished:
                _encode(draw_frames(split, number, seed, events, options), options, unfinished)
        rng = random.Random(f"{seed}/{split}/{number}/questions")
        for event in _asked_events(events, questions_per_video, easy_share, rng):
            asked_slot = event.start_slot + rng.randrange(event.num_slots)
            answer = LETTERS[event.class_id]
            is_direct = rng.random() < direct_share
            window = hasty_window(asked_slot, options.num_slots, aim_error_s, wide_share, rng)
            rows.append(
                {
                    "video": str(path),
                    "duration": float(duration_s),
                    "problem": problem(duration_s, (asked_slot + 0.5) * SLOT_S, num_classes),
                    "options": list(CLASS_WORDS[:num_classes]),
                    "ground_truth": answer,
                    "task": "multiple_choice",
                    "easy": event.num_slots > 1,
                    "difficulty": "easy" if event.num_slots > 1 else "hard",
                    "asked_s": (asked_slot + 0.5) * SLOT_S,
                    "events": [
                        {"start_s": e.start_s, "end_s": e.end_s, "class_id": e.class_id, "scan_id": e.scan_id}
                        for e in events
                    ],
                    "video_id": f"{split}-{seed}-{number}",
                    "demonstration": final_turn(answer) if is_direct else two_turns(*window, answer),
                    "exact_demonstration": two_turns(asked_slot * SLOT_S, (asked_slot + 1) * SLOT_S, answer),
                    "demonstration_without_tools": final_turn(answer),
                }
            )
    return ListedRows(rows[:num_rows], media_root=folder)


def problem(duration_s: float, asked_s: float, num_classes: int) -> str:
    """The prompt's text.

    >>> print(problem(96, 38, 2))
    The video lasts 96.0 seconds. Which digit is shown at 38.0 seconds?
    A. zero
    B. one
    """
    options = [f"{letter}. {word}" for letter, word in zip(LETTERS, CLASS_WORDS[:num_classes], strict=False)]
    return "\n".join([PROBLEM.format(duration=duration_s, asked=asked_s), *options])


def final_turn(letter: str) -> str:
    """
    >>> final_turn("B")
    '<think>Decide.</think><answer>B</answer>'
    """
    return f"<think>Decide.</think><answer>{letter}</answer>"


def two_turns(start_s: float, end_s: float, letter: str) -> str:
    """A call of the tool and, after a line break, the answer.

    >>> print(two_turns(0, 4, "B").removeprefix("<think>Look closer.</think><tool_call>"))
    {"name": "get_video_clip_frame", "arguments": {"start_time": 0.0, "end_time": 4.0}}</tool_call>
    <think>Decide.</think><answer>B</answer>
    """
    call = json.dumps({"name": TOOL_NAME, "arguments": {"start_time": float(start_s), "end_time": float(end_s)}})
    return f"<think>Look closer.</think><tool_call>{call}</tool_call>\n{final_turn(letter)}"


def hasty_window(
    asked_slot: int, num_slots: int, aim_error_s: int, wide_share: float, rng: random.Random
) -> tuple[int, int]:
    """Where the hasty annotator looks for what happens in a slot: (start, end) in seconds, within the video."""
    width = 2 if rng.random() < wide_share else 1
    steps = aim_error_s // SLOT_S
    first = asked_slot + rng.randint(-steps, steps)
    first = min(num_slots - width, max(0, first))
    return first * SLOT_S, (first + width) * SLOT_S


def video_events(split: Split, number: int, seed: int, options: VideoOptions) -> list[Event]:
    """The digits of one video, in order of time, with an empty slot between neighbours."""
    rng = random.Random(f"{seed}/{split}/{number}/events")
    scan_ids = scan_ids_by_class(*SCANS[split])
    taken: set[int] = set()
    events = []
    for num_events, num_slots in ((options.long_digits, options.long_slots), (options.short_digits, 1)):
        starts = list(range(options.num_slots - num_slots + 1))
        rng.shuffle(starts)
        placed = 0
        for start in starts:
            slots = set(range(start, start + num_slots))
            is_free = slots.isdisjoint(taken)
            if placed < num_events and is_free and (num_slots > 1 or slots.isdisjoint(options.shown_slots)):
                taken |= slots | {start - 1, start + num_slots}
                class_id = rng.randrange(options.num_classes)
                events.append(Event(start, num_slots, class_id, rng.choice(scan_ids[class_id])))
                placed += 1
    return sorted(events, key=lambda event: event.start_slot)


def _asked_events(events: list[Event], num_questions: int, easy_share: float, rng: random.Random) -> list[Event]:
    """Events to ask about; none twice before all of its length had their turn."""
    kinds = [[event for event in events if (event.num_slots > 1) is is_long] for is_long in (False, True)]
    left: list[list[Event]] = [[], []]
    asked = []
    for _ in range(num_questions):
        is_long = bool(kinds[1]) and (rng.random() < easy_share or not kinds[0])
        if not left[is_long]:
            left[is_long] = rng.sample(kinds[is_long], len(kinds[is_long]))
        asked.append(left[is_long].pop())
    return asked


def draw_frames(split: Split, number: int, seed: int, events: list[Event], options: VideoOptions) -> np.ndarray:
    """Every frame of one video, before it is encoded: uint8 [frames, size, size, 3]."""
    import numpy as np
    from PIL import Image

    rng = random.Random(f"{seed}/{split}/{number}/pixels")
    size = options.size_px
    _, photo = rng.choice(photographs(options.brightness))
    first, last = (round(share * photo.shape[1]) for share in PHOTO_SHARE[split])
    pan = min(PAN_PX, last - first - size)
    left = rng.randint(first, last - size - pan)
    top = rng.randint(0, photo.shape[0] - size)
    progress = np.linspace(0, 1, options.num_frames)
    lefts = left + np.round(pan * (progress if rng.random() < 0.5 else 1 - progress)).astype(int)
    frames = np.stack([photo[top : top + size, x : x + size] for x in lefts])
    for event in events:
        ink = ink_masks()[event.scan_id]
        height = rng.randint(*options.digit_px)
        width = min(size, max(MIN_DIGIT_WIDTH_PX, round(height * ink.width / ink.height)))
        opacity = np.asarray(ink.resize((width, height), Image.Resampling.BICUBIC), np.float32)[..., None] / 255
        colour = np.array([rng.randint(200, 255) for _ in range(3)], np.float32)
        shown = range(event.start_s * options.fps, event.end_s * options.fps)
        tracks = [_track(size - side, len(shown), rng) for side in (height, width)]
        for frame, y, x in zip(shown, *tracks, strict=True):
            patch = frames[frame, y : y + height, x : x + width]
            patch[:] = patch * (1 - opacity) + colour * opacity
    return frames


def _track(room: int, num_frames: int, rng: random.Random) -> list[int]:
    """Positions along one axis, 0..room, of something that moves evenly."""
    start = rng.randint(0, room)
    end = min(room, max(0, start + rng.randint(-DRIFT_PX, DRIFT_PX)))
    return [round(start + (end - start) * i / (num_frames - 1)) for i in range(num_frames)]


def _encode(frames: np.ndarray, options: VideoOptions, path: Path) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=options.fps)
        stream.width = stream.height = options.size_px
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # with more, the bytes of the file depend on the machine
        stream.codec_context.gop_size = KEYFRAME_EVERY_S * options.fps
        stream.options = {"preset": "ultrafast", "crf": "20"}
        for pixels in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))


def check_options(
    options: VideoOptions,
    *,
    split: str = "train",
    num_rows: int = 1,
    questions_per_video: int = 1,
    aim_error_s: int = 0,
) -> None:
    """Raise a TaskDataError that names every value out of range; see ``tool_videos`` for what they are."""
    smallest, largest = options.digit_px
    problems = {
        f"split {split!r} is none of {', '.join(PHOTO_SHARE)}": split not in PHOTO_SHARE,
        f"num_rows is {num_rows}, below 1": num_rows < 1,
        f"questions_per_video is {questions_per_video}, below 1": questions_per_video < 1,
        f"aim_error_s {aim_error_s} is no multiple of {SLOT_S} from 0 on": aim_error_s < 0 or aim_error_s % SLOT_S != 0,
        f"duration_s {options.duration_s} is no multiple of {SLOT_S} from {2 * SLOT_S} on": (
            options.duration_s < 2 * SLOT_S or options.duration_s % SLOT_S != 0
        ),
        f"fps is {options.fps}, below 1": options.fps < 1,
        f"size_px {options.size_px} is not even and within 2..{MAX_SIZE_PX}": (
            not 2 <= options.size_px <= MAX_SIZE_PX or options.size_px % 2 != 0  # odd sides are not for H.264
        ),
        f"digit_px {options.digit_px} does not rise within {MIN_DIGIT_WIDTH_PX}..size_px": not (
            MIN_DIGIT_WIDTH_PX <= smallest <= largest <= options.size_px
        ),
        f"num_classes is {options.num_classes}, not within 2..10": not 2 <= options.num_classes <= 10,
        f"prompt_frames is {options.prompt_frames}, below 2": options.prompt_frames < 2,
        "long_digits and short_digits are both 0": options.long_digits < 1 and options.short_digits < 1,
    }
    wrong = [problem for problem, is_wrong in problems.items() if is_wrong]
    if not wrong and options.long_slots == 1:
        wrong = [f"prompt_frames {options.prompt_frames} leaves no slot of {SLOT_S} s that the prompt does not show"]
    if wrong:
        raise TaskDataError(f"tool_videos: {'; '.join(wrong)}.")


def _cache_folder(cache_dir: str | Path | None, split: str, seed: int, options: VideoOptions) -> Path:
    folder = Path(cache_dir or cache_folder()).absolute()
    key = {"version": FORMAT_VERSION, "split": split, "seed": seed, **asdict(options)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "tool_videos" / f"{split}-{digest}"
