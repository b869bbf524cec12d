"""Pictures of simple objects from known camera poses, by Panda3D's software renderer: no display, no GPU, no download.

Meshes are trimesh's. Panda3D draws them with a depth buffer, one directional and one ambient light, at twice the size;
halving it smooths the edges. The same scene gives the same bytes on one machine.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import TaskDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

Vector = tuple[float, float, float]

FIELD_OF_VIEW_DEG = 40.0
OVERSAMPLING = 2
AMBIENT = 0.45
DIRECTED = 0.75
LIGHT_TOWARDS = (-0.4, 0.7, -0.9)  # from the front, from above, a little from the right
SETTINGS = "audio-library-name null\nnotify-level error\n"
PIPE = "TinyOffscreenGraphicsPipe"


@dataclass(frozen=True)
class Part:
    """One coloured solid.

    Attributes:
        shape: "box", "cylinder", "cone" or "sphere".
        centre, size: of its bounding box, world units.
        colour: red, green, blue, 0..1.
        axis: of a cylinder or cone: "z", upwards, or "y", towards the front, which is -y.
    """

    shape: str
    centre: Vector
    size: Vector
    colour: Vector
    axis: str = "z"


def render(
    parts: Sequence[Part], poses: Sequence[NDArray[Any]], *, size_px: int, background: Vector = (0.5, 0.5, 0.5)
) -> list[Image.Image]:
    """Pictures of one scene from several cameras.

    Args:
        parts: the scene.
        poses: of the cameras, [4, 4], in the conventions of `poses`.
        size_px: side of the square pictures.
        background: colour, 0..1.

    Returns:
        A picture of mode RGB for each pose.

    Raises:
        TaskDataError: Panda3D or trimesh is not installed, or its software renderer is missing.
    """
    return _studio(size_px).shoot(parts, poses, background)


class _Studio:
    """Panda3D's off-screen software renderer for pictures of one size."""

    def __init__(self, size_px: int) -> None:
        self._core = core = _import("panda3d.core", "panda3d")
        core.load_prc_file_data("", f"load-display p3tinydisplay\n{SETTINGS}")
        pipes = core.GraphicsPipeSelection.get_global_ptr()
        pipe = next((pipes.make_pipe(kind) for kind in pipes.get_pipe_types() if str(kind) == PIPE), None)
        if pipe is None:
            raise TaskDataError("this build of Panda3D has no software renderer. Try: pip install --force panda3d")
        self._size_px = size_px
        self._engine = core.GraphicsEngine.get_global_ptr()
        buffer = core.FrameBufferProperties()
        buffer.set_rgb_color(True)
        buffer.set_depth_bits(24)
        side = OVERSAMPLING * size_px
        size = core.WindowProperties.size(side, side)
        self._window = self._engine.make_output(pipe, f"{side}", 0, buffer, size, core.GraphicsPipe.BF_refuse_window)
        if self._window is None:
            raise TaskDataError("Panda3D's software renderer could not be started")
        self._picture = core.Texture()
        self._window.add_render_texture(self._picture, core.GraphicsOutput.RTM_copy_ram)
        lens = core.PerspectiveLens()
        lens.set_fov(FIELD_OF_VIEW_DEG)
        self._world = core.NodePath("world")
        self._camera = self._world.attach_new_node(core.Camera("camera", lens))
        self._window.make_display_region().set_camera(self._camera)
        ambient = core.AmbientLight("ambient")
        ambient.set_color((AMBIENT, AMBIENT, AMBIENT, 1))
        directed = core.DirectionalLight("directed")
        directed.set_color((DIRECTED, DIRECTED, DIRECTED, 1))
        directed.set_direction(LIGHT_TOWARDS)
        for light in (ambient, directed):
            self._world.set_light(self._world.attach_new_node(light))

    def shoot(self, parts: Sequence[Part], poses: Sequence[NDArray[Any]], background: Vector) -> list[Image.Image]:
        """See `render`."""
        from PIL import Image

        self._window.set_clear_color((*background, 1))
        nodes = [self._add(part) for part in parts]
        pictures = []
        for pose in poses:
            right, down, forward, place = (pose[:3, column] for column in range(4))
            # Panda3D's camera looks along its y axis, z is up; its matrices act on rows.
            rows = [(*right, 0), (*forward, 0), (*-down, 0), (*place, 1)]
            self._camera.set_mat(self._core.LMatrix4f(*(float(value) for row in rows for value in row)))
            self._engine.render_frame()
            side = OVERSAMPLING * self._size_px
            fine = Image.frombytes("RGB", (side, side), bytes(self._picture.get_ram_image_as("RGB")))
            pictures.append(fine.transpose(Image.Transpose.FLIP_TOP_BOTTOM).reduce(OVERSAMPLING))
        for node in nodes:
            node.remove_node()
        return pictures

    def _add(self, part: Part) -> Any:
        """Put a part into the world: three vertices of its own for each face, which is lit as flat."""
        import numpy as np

        core = self._core
        corners = _unit_mesh(part.shape, part.axis) * np.asarray(part.size) + np.asarray(part.centre)  # [F, 3, 3]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        vertices = np.concatenate([corners, np.repeat(normals[:, None], 3, axis=1)], axis=2).astype(np.float32)
        data = core.GeomVertexData("", core.GeomVertexFormat.get_v3n3(), core.Geom.UH_static)
        data.unclean_set_num_rows(3 * len(corners))
        data.modify_array(0).modify_handle().copy_data_from(vertices.tobytes())
        triangles = core.GeomTriangles(core.Geom.UH_static)
        triangles.add_next_vertices(3 * len(corners))
        geometry = core.Geom(data)
        geometry.add_primitive(triangles)
        holder = core.GeomNode(part.shape)
        holder.add_geom(geometry)
        material = core.Material()
        material.set_ambient((*part.colour, 1))
        material.set_diffuse((*part.colour, 1))
        node = self._world.attach_new_node(holder)
        node.set_material(material)
        return node


@functools.cache
def _studio(size_px: int) -> _Studio:
    return _Studio(size_px)


@functools.cache
def _unit_mesh(shape: str, axis: str) -> NDArray[Any]:
    """Corners [F, 3, 3] of a solid whose bounding box has sides of 1 about the origin."""
    creation = _import("trimesh.creation", "trimesh")
    makers: Mapping[str, Any] = {
        "box": creation.box,
        "cylinder": lambda: creation.cylinder(radius=0.5, height=1.0, sections=16),
        "cone": lambda: creation.cone(radius=0.5, height=1.0, sections=16),
        "sphere": lambda: creation.icosphere(subdivisions=2, radius=0.5),
    }
    mesh = makers[shape]()
    mesh.apply_translation(-mesh.bounds.mean(0))
    corners = mesh.triangles.copy()
    if axis == "y":
        corners = corners[..., [0, 2, 1]] * [1, -1, 1]  # a quarter turn: what pointed up points to -y
    return corners


def _import(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TaskDataError(f"the demo's pictures need {package} ({error}). Try: pip install {package}") from error
