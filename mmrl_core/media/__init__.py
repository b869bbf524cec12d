"""Images, audio and video from files and bytes; boxes and points with their convention."""

from mmrl_core.media.audio import Audio, audio_seconds, load_audio, resample_audio
from mmrl_core.media.files import MEDIUM_KEYS, leads_out
from mmrl_core.media.geometry import MAX_COORDINATE, Box, BoxConvention, Point, box_giou, box_iou, convert
from mmrl_core.media.hashing import content_hash, media_file
from mmrl_core.media.images import (
    IMAGE_FORMATS,
    MAX_IMAGE_PIXELS,
    check_image_pixels,
    image_header,
    image_size,
    is_picture,
    load_image,
    resized_size,
)
from mmrl_core.media.inline import inline_bytes
from mmrl_core.media.video import Video, draw_timestamps, load_video
from mmrl_core.media.video_reading import open_video

__all__ = [
    "IMAGE_FORMATS",
    "MAX_COORDINATE",
    "MAX_IMAGE_PIXELS",
    "MEDIUM_KEYS",
    "Audio",
    "Box",
    "BoxConvention",
    "Point",
    "Video",
    "audio_seconds",
    "box_giou",
    "box_iou",
    "check_image_pixels",
    "content_hash",
    "convert",
    "draw_timestamps",
    "image_header",
    "image_size",
    "inline_bytes",
    "is_picture",
    "leads_out",
    "load_audio",
    "load_image",
    "load_video",
    "media_file",
    "open_video",
    "resample_audio",
    "resized_size",
]
