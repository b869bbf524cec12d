"""Media of the report: pictures, films and sounds as data URIs, and the shapes that a view draws on them."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import MediaError
from mmrl_core.media import IMAGE_FORMATS, load_audio, load_image
from mmrl_core.plugins import load_plugins
from mmrl_core.runs.charts import draw_spectrogram
from mmrl_core.runs.report.reading import Record, at, list_of, mapping_of
from mmrl_core.runs.report.text import format_seconds, name_of, number_of
from mmrl_core.runs.rollouts import FILM_SUFFIX, MAX_MADE_FRAMES, MAX_SOUND_S, SOUND_SUFFIX, encode_film
from mmrl_core.support import need

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PICTURES_OF_MESSAGE = 8
MAX_SHAPES_OF_COMPLETION = 100
MAX_VIEWED_CHARS = 100_000  # of a completion that a view is given
MAX_MEDIUM_BYTES = 256 << 20
MAX_PIXELS = 50_000_000  # of a picture that is decoded: 200 MB
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PICTURE_SIDE = 640  # larger pictures are scaled down, so that a report of photographs stays a few megabytes
MAX_SMALL_SIDE = 256  # smaller pictures are shown with their pixels
MAX_THUMBNAIL_SIDE = 144
THUMBNAIL_QUALITY = 40
SOUND_HZ = 16_000  # sounds are played, and drawn, as audio encoders hear them
MAX_PNG_BYTES = 8_000  # small pictures are kept exactly, but not where that would make a report of photographs huge


class Media:
    """Media of a run, each picture embedded once and shown by its id, and the view that draws shapes on them.

    Attributes:
        embedded: the pictures, as the template takes them.
        problem: why the view cannot be loaded, or failed, which leaves pictures without shapes; "" if all is well.
        has_areas, has_spans: whether the view drew on pictures, and stretches of time.
    """

    def __init__(
        self, root: Path, config: Any, *, runs_files: bool = True, sheet: list[dict[str, Any]] | None = None
    ) -> None:
        """
        Args:
            root: folder of rollouts.
            runs_files: whether a view may be a Python file that the config names.
            sheet: pictures that are embedded already, of another run.
        """
        self.embedded: list[dict[str, Any]] = [] if sheet is None else sheet
        self.problem = ""
        self.has_areas = self.has_spans = False
        self._view: Callable[..., Any] | None = None
        self._root = root
        self._known: dict[str, dict[str, Any] | None] = {}
        self._sounds: dict[str, dict[str, Any] | None] = {}
        component = at(config, "log", "view")
        component = {"name": component} if isinstance(component, str) else component
        if isinstance(component, Mapping):
            options = {str(key): value for key, value in component.items() if key != "name"}
            if not runs_files and ".py:" in str(component.get("name")):
                self.problem = (
                    f"Nothing is drawn on the pictures: the view is a file, {name_of(component.get('name'))}, and "
                    "opening a run does not run files that it names. With --trust it does."
                )
                return
            try:
                self._view = partial(load_plugins().registry.get("view", str(component.get("name"))).load(), **options)
            except Exception as error:  # a plugin that is missing or broken: the report does without it
                self.problem = f"Nothing is drawn on the pictures: {error}"

    def picture(self, path: Any) -> dict[str, Any] | None:
        """id, width, height, natural size in pixels and uri of a picture; None if it cannot be read or is elsewhere."""
        if str(path) not in self._known:
            try:
                self._refuse_unsafe(str(path))
                self._known[str(path)] = self._embed(load_image(str(path), root=self._root))
            except MediaError:
                self._known[str(path)] = None
        return self._known[str(path)]

    def small(self, path: Any) -> dict[str, Any] | None:
        """The same of a picture that is shown small, among thousands; one that is embedded already serves here too."""
        if self._known.get(str(path)) is not None:
            return self._known[str(path)]
        key = f"small {path}"
        if key not in self._known:
            try:
                self._refuse_unsafe(str(path))
                self._known[key] = self._embed(load_image(str(path), root=self._root), max_side=MAX_THUMBNAIL_SIDE)
            except MediaError:
                self._known[key] = None
        return self._known[key]

    def sound(self, path: Any) -> dict[str, Any] | None:
        """uri of a sound, and its spectrogram as `picture`; None if it is no sound, or cannot be read."""
        if not isinstance(path, str) or not path.endswith(SOUND_SUFFIX):
            return None
        if path not in self._sounds:
            try:
                self._refuse_unsafe(path, is_picture=False)
                sound = load_audio(path, root=self._root, sampling_rate=SOUND_HZ, max_seconds=MAX_SOUND_S + 1)
            except MediaError:
                self._sounds[path] = None
            else:
                soundfile: Any = need("soundfile", "audio", "a report with sounds")
                buffer = io.BytesIO()
                soundfile.write(buffer, sound.samples, SOUND_HZ, format="MP3")
                uri = f"data:audio/mpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
                picture = self._embed(draw_spectrogram(sound.samples, SOUND_HZ))
                self._sounds[path] = {"uri": uri, "picture": picture}
        return self._sounds[path]

    def film(self, path: Any) -> dict[str, Any] | None:
        """width, height and uri of a video that the policy made; None if it is none, or cannot be read."""
        if not isinstance(path, str) or not path.endswith(FILM_SUFFIX):
            return None
        from PIL import Image, ImageSequence

        try:
            self._refuse_unsafe(path)
            load_image(path, root=self._root)  # refuses what is no picture, too large, or elsewhere
            frames: list[Image.Image] = []
            with Image.open(self._root / path, formats=IMAGE_FORMATS) as film:
                for frame in islice(ImageSequence.Iterator(film), MAX_MADE_FRAMES):
                    frames.append(frame.convert("RGB"))
                    frames[-1].thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE), Image.Resampling.LANCZOS)
            width, height = frames[0].size
            uri = f"data:image/webp;base64,{base64.b64encode(encode_film(frames)).decode()}"
        except Exception:  # format plugins raise anything on torn data
            return None
        is_small = max(width, height) <= MAX_SMALL_SIDE
        return {"width": width, "height": height, "is_small": is_small, "natural": (width, height), "uri": uri}

    def _refuse_unsafe(self, path: str, *, is_picture: bool = True) -> None:
        """Refuse, before anything is decoded, what no run writes.

        Raises:
            MediaError: no regular file, more bytes or pixels than the media of a run have, or a format that runs code.
        """
        from PIL import Image

        try:
            file = self._root / path
            if not file.is_file() or file.stat().st_size > MAX_MEDIUM_BYTES:
                raise MediaError(f"{name_of(path)} is no regular file, or too large.")
            if is_picture:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                    with Image.open(file, formats=PICTURE_FORMATS) as picture:
                        width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise MediaError(f"{name_of(path)} has {width} x {height} pixels.")
        except MediaError:
            raise
        except Exception as error:  # format plugins raise anything on hostile headers; paths may be absurd
            raise MediaError(f"{name_of(path)}: {error}") from error

    def _embed(self, image: Image, *, max_side: int = MAX_PICTURE_SIDE) -> dict[str, Any]:
        from PIL.Image import Resampling

        # Shapes are drawn on a canvas whose longer side is 1000.
        width, height = (round(1000 * side / max(image.size), 1) for side in image.size)
        is_thumbnail, is_small = max_side == MAX_THUMBNAIL_SIDE, max(image.size) <= MAX_SMALL_SIDE
        natural = image.size
        image.thumbnail((max_side, max_side), Resampling.LANCZOS)
        buffer, kind = io.BytesIO(), "png"
        if is_small and not is_thumbnail:
            image.save(buffer, format=kind)
        if not buffer.tell() or buffer.tell() > MAX_PNG_BYTES:
            buffer, kind = io.BytesIO(), "jpeg"
            image.convert("RGB").save(buffer, format=kind, quality=THUMBNAIL_QUALITY if is_thumbnail else 88)
        uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
        name = f"picture-{len(self.embedded)}"
        told = {"id": name, "width": width, "height": height, "is_small": is_small, "natural": natural, "uri": uri}
        self.embedded.append(told)
        return self.embedded[-1]

    def shapes(self, rollout: Record) -> list[dict[str, Any]]:
        """Valid shapes of a rollout, as the template draws them: areas of pictures and spans of time."""
        if self._view is None or not isinstance(rollout.get("completion"), str):
            return []
        try:
            sample = {**mapping_of(rollout, "sample"), **mapping_of(rollout, "outcome")}
            found = list(islice(self._view(rollout["completion"][:MAX_VIEWED_CHARS], sample), MAX_SHAPES_OF_COMPLETION))
        except Exception as error:  # third-party code on untrusted text
            self.problem = f"The view failed on a completion: {type(error).__name__}: {error}"
            return []
        valid = [_valid_span(shape) or _valid_area(shape) for shape in found[:MAX_SHAPES_OF_COMPLETION]]
        shapes = [shape for shape in valid if shape is not None]
        self.has_areas |= any(is_area(shape) for shape in shapes)
        self.has_spans |= not all(is_area(shape) for shape in shapes)
        return shapes

    def panels(self, message: Record, shapes: Sequence[dict[str, Any]] = ()) -> list[Any]:
        """The media of a prompt or turn with shapes on them, gold on top; None for one that cannot be read.

        A sound is shown by its spectrogram, with a player below it.
        """
        paths, times = list_of(message, "media"), list_of(message, "times_s")
        panels: list[Any] = []
        for position, path in enumerate(paths[:MAX_PICTURES_OF_MESSAGE]):
            drawn = [shape for shape in shapes if is_area(shape) and shape["medium"] == position]
            drawn.sort(key=lambda shape: shape["style"] == "gold")
            sound = self.sound(path)
            picture = sound["picture"] if sound else self.picture(path)
            time_s = number_of(times[position]) if position < len(times) else None
            uri = sound and sound["uri"]
            panels.append(picture and {"picture": picture, "shapes": drawn, "time_s": time_s, "sound_uri": uri})
        return panels


def is_area(shape: Mapping[str, Any]) -> bool:
    return "medium" in shape


def _valid_area(shape: Any) -> dict[str, Any] | None:
    """A box or point per mille, with its edges in percent of the picture's sides; None if it is neither."""
    box, point, medium = at(shape, "box"), at(shape, "point"), at(shape, "medium")
    values = point if box is None else box
    is_valid = isinstance(values, Sequence) and len(values) == (2 if box is None else 4)
    if not is_valid or any(number_of(value) is None for value in values):
        return None
    # A little beyond the edge stays visible as being beyond it; the rest would only be a long line.
    edges = [min(102.0, max(-2.0, value / 10)) for value in values]
    (left, *_, right), (top, *_, bottom) = sorted(edges[0::2] * 2), sorted(edges[1::2] * 2)
    return {
        "style": "gold" if at(shape, "kind") == "gold" else "predicted",  # a CSS class
        "label": str(at(shape, "label") or "")[:24],
        "medium": medium if isinstance(medium, int) else 0,  # position among the prompt's pictures
        "is_point": box is None,
        "x": round(left, 2),
        "y": round(top, 2),
        "width": round(max(0.4, right - left), 2),  # one without area stays visible
        "height": round(max(0.4, bottom - top), 2),
    }


def _valid_span(shape: Any) -> dict[str, Any] | None:
    """A stretch of time, with its edges in percent of the medium's length; None if it is none."""
    span, length_s = at(shape, "span"), number_of(at(shape, "length_s"))
    if length_s is None or length_s <= 0 or not isinstance(span, Sequence) or len(span) != 2:
        return None
    if any(number_of(value) is None for value in span):
        return None
    start_s, end_s = sorted(map(float, span))
    kind, label = at(shape, "kind"), str(at(shape, "label") or "")[:24]
    left, right = percent(start_s, length_s), percent(end_s, length_s)
    return {
        "style": kind if kind in ("gold", "call") else "predicted",  # a CSS class
        "told": f"{label} {format_seconds(start_s)[:-2]} to {format_seconds(end_s)}".strip(),
        "length_s": length_s,
        "x": min(left, 99.4),
        "width": round(max(0.6, right - left), 2),  # one without extent, or outside, stays visible
    }


def percent(time_s: float, length_s: float) -> float:
    return round(min(100.0, max(0.0, 100 * (time_s / length_s))), 2)
