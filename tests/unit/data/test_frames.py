"""Annotations of pictures that are stored turned, or were changed since: placed right, or refused."""

import io

import numpy as np
import pytest
from PIL import Image

from mmrl_core.data import declared_size, picture_frame
from mmrl_core.errors import MediaError, TaskDataError
from mmrl_core.media import load_image

STORED = (40, 24)  # width and height in pixels
BOX = (4, 6, 20, 12)  # of the white region in the stored pixels


def picture(orientation=None, form="JPEG", size=STORED):
    """Black, with a white region, and maybe a tag that turns it; "PNG, tag last" has it after the pixels."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    exif = Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, exif=exif)
    return file.getvalue()


def white_box(data):
    """Corners of the white region in the picture as it is shown."""
    ys, xs = np.nonzero(np.asarray(load_image(data, root=None))[:, :, 0] > 128)
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 1, 5, 6, 7, 8])
def test_a_box_of_the_stored_pixels_is_turned_with_them(orientation, form):
    data = picture(orientation, form)
    frame = picture_frame(data, None)
    assert (frame.width, frame.height) == load_image(data, root=None).size
    placement = frame.place(STORED)
    assert (placement.width, placement.height) == (frame.width, frame.height)
    if form != "JPEG":  # whose edges are not sharp
        assert placement.box(*BOX) == white_box(data)
    assert placement.box(*BOX) == pytest.approx(white_box(data), abs=2)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_box_of_the_picture_as_shown_stays(orientation):
    placement = picture_frame(picture(orientation), None).place(STORED[::-1])
    assert placement.box(1, 2, 3, 4) == (1, 2, 3, 4) and placement.point(5, 6) == (5, 6)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_turn_that_keeps_the_sides_cannot_be_told_and_is_refused(orientation):
    frame = picture_frame(picture(orientation), None)
    with pytest.raises(TaskDataError, match=f"EXIF orientation {orientation}.*does not tell.*Save it upright"):
        frame.place(STORED)


def test_a_turned_picture_of_unknown_or_square_annotation_is_refused():
    with pytest.raises(TaskDataError, match="no size of the annotated picture tells"):
        picture_frame(picture(6), None).place(None)
    with pytest.raises(TaskDataError, match="does not tell"):
        picture_frame(picture(6, size=(30, 30)), None).place((30, 30))
    assert picture_frame(picture(), None).place(None).box(*BOX) == BOX


def test_a_picture_that_was_shrunk_as_a_whole_keeps_its_shares_and_one_of_another_shape_is_refused():
    frame = picture_frame(picture(), None)
    assert (frame.place((80, 48)).width, frame.place((81, 48)).height) == (80, 48)
    for size in ((24, 40), (40, 40), (640, 480)):
        with pytest.raises(TaskDataError, match=rf"of {size[0]} x {size[1]} pixels, and the file holds one of 40 x 24"):
            frame.place(size)


def test_the_size_that_a_record_declares():
    assert declared_size({"img_size": [3840, 2160]}) == (3840, 2160)
    assert declared_size({"width": 640, "height": 480}) == (640, 480)
    assert declared_size({"width": 640}) is None and declared_size({"img_size": "?"}) is None


def test_a_file_that_is_no_picture_is_an_error():
    with pytest.raises(MediaError, match="cannot read image"):
        picture_frame(b"no picture", None)
