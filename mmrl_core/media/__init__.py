"""Images, audio and video from files and bytes; boxes and points with their convention."""

from mmrl_core.media.audio import Audio, load_audio, resample_audio
from mmrl_core.media.geometry import MAX_COORDINATE, Box, BoxConvention, Point, box_giou, box_iou, convert
from mmrl_core.media.hashing import content_hash, media_file
from mmrl_core.media.images import is_picture, load_image, resized_size
from mmrl_core.media.video import Video, draw_timestamps, load_video
from mmrl_core.media.video_reading import open_video

__all__ = [
    "MAX_COORDINATE",
    "Audio",
    "Box",
    "BoxConvention",
    "Point",
    "Video",
    "box_giou",
    "box_iou",
    "content_hash",
    "convert",
    "draw_timestamps",
    "is_picture",
    "load_audio",
    "load_image",
    "load_video",
    "media_file",
    "open_video",
    "resample_audio",
    "resized_size",
]
