"""The visual toolbox of VITAL: look again at a part of the video, closely.

Source: VITAL, arXiv:2508.04416, and its public code as of October 2025. Quirks of that code, mended: an end a little
past the video, which a duration rounded in the prompt makes, is moved to the end and not refused; the time stamp of a
frame is the frame's own; clips are described and questions answered greedily.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from mmrl_core.conversation import Part, Question, Tool, ToolContext
from mmrl_core.errors import ConfigError, ToolError
from mmrl_core.media import Video, load_video, open_video
from mmrl_core.types import Prompt

END_TOLERANCE_S = 0.5
"""How far past the video's end a clip may reach."""


class Clip(BaseModel):
    """Arguments of a tool that looks at a part of the video."""

    model_config = ConfigDict(extra="forbid")

    start_time: float = Field(ge=0, description="start of the clip in seconds")
    end_time: float = Field(description="end of the clip in seconds")


class ClipQuestion(Clip):
    """Arguments of a question about a part of the video."""

    question: str = Field(min_length=1, max_length=1000, description="question about the clip")


class ClipTool(Tool):
    """A tool that samples frames of a clip densely."""

    arguments: ClassVar[type[Clip]] = Clip

    def __init__(
        self,
        *,
        max_frames: int = 64,
        fps: float = 2.0,
        min_clip_s: float = 1.0,
        min_pixels: int = 4 * 28 * 28,
        max_pixels: int = 64 * 28 * 28,
        timestamps: bool = True,
    ) -> None:
        """
        Args:
            max_frames: at most so many frames of a clip.
            fps: frames per second, as far as `max_frames` goes.
            min_clip_s: shortest clip, seconds.
            min_pixels, max_pixels: area of a frame, pixels.
            timestamps: draw each frame's time on it.

        Raises:
            ConfigError: a limit that no clip meets.
        """
        if max_frames < 2 or fps <= 0 or min_clip_s <= 0 or not 0 < min_pixels <= max_pixels:
            raise ConfigError(
                f"{self.name}: fps, min_clip_s and min_pixels must be positive, max_frames at least 2, and max_pixels "
                "at least min_pixels."
            )
        self._limits: dict[str, Any] = {
            "fps": fps,
            "min_frames": min(4, max_frames),
            "max_frames": max_frames,
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            "timestamps": timestamps,
        }
        self._min_clip_s = min_clip_s

    def offered(self, prompt: Prompt) -> bool:
        """With one video; pictures have no clips."""
        kinds = [part["type"] for message in prompt.messages for part in message["content"]]
        return kinds.count("video") == 1

    def start(self) -> None:
        """See `Tool.start`."""
        for module in ("av", "matplotlib", "torchvision.transforms.functional"):  # which `load_video` imports
            import_module(module)

    def _frames(self, arguments: Clip, context: ToolContext) -> tuple[Video, str]:
        """Frames of the clip, and a line that names it.

        Raises:
            ToolError: the clip is not in the video, or too short.
            MediaError: the video cannot be read.
        """
        file = context.file("video")
        with open_video(file) as video:
            duration_s = video.duration_s
        if arguments.end_time > duration_s + END_TOLERANCE_S:
            raise ToolError(f"end_time: the video ends at {duration_s:.2f} s.")
        end_s = min(arguments.end_time, duration_s)
        if end_s - arguments.start_time < self._min_clip_s:
            raise ToolError(f"end_time must be at least {self._min_clip_s:g} s after start_time.")
        clip = load_video(file, start_s=arguments.start_time, end_s=end_s, **self._limits)
        return clip, f"Frames of the video from {arguments.start_time:.2f} to {end_s:.2f} seconds."


class ClipFrames(ClipTool):
    """Shows the frames of a clip."""

    name = "get_video_clip_frame"
    description = "Shows frames of a part of the video."

    def run(self, arguments: Clip, context: ToolContext) -> Sequence[Part]:
        """See `Tool.run`: a line of text, and the clip as a video."""
        clip, line = self._frames(arguments, context)
        return [_part(clip), {"type": "text", "text": line}]


class ClipCaption(ClipTool):
    """Has the policy itself describe a clip."""

    name = "get_video_clip_caption"
    description = "Describes a part of the video in words."

    def run(self, arguments: Clip, context: ToolContext) -> Question:
        """See `Tool.run`."""
        clip, _ = self._frames(arguments, context)
        text = "Describe what happens in this clip of a video. Tell only what can be seen."
        return _question(clip, text)


class ClipAnswer(ClipTool):
    """Has the policy itself answer a question about a clip."""

    name = "ask_video_clip_question"
    description = "Answers a question about a part of the video."
    arguments = ClipQuestion

    def run(self, arguments: ClipQuestion, context: ToolContext) -> Question:
        """See `Tool.run`."""
        clip, _ = self._frames(arguments, context)
        text = f"Answer from this clip of a video, by what can be seen in it alone: {arguments.question}"
        return _question(clip, text)


def _part(clip: Video) -> Part:
    return {"type": "video", "video": clip.frames, "metadata": clip.metadata, "times_s": list(clip.times_s)}


def _question(clip: Video, text: str) -> Question:
    return Question([{"role": "user", "content": [_part(clip), {"type": "text", "text": text}]}])
