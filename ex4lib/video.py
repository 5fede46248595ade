"""Style transfer of videos: each frame starts from the painted frame before it, moved by the optical flow.

One pass over the frames, with short-term consistency only, after Ruder, Dosovitskiy & Brox, "Artistic style transfer
for videos" (2016). PyAV reads and writes files, OpenCV finds the flow; both come with the extra ``video``.
"""

import contextlib
import dataclasses
import itertools
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ex4lib import checks, colour, files, images, transfer
from ex4lib.features import VGG
from ex4lib.images import ImageSource
from ex4lib.losses import Objective
from ex4lib.transfer import DEFAULT, Recipe

#: A frame with a smaller share of consistent pixels begins a new shot.
SAME_SHOT = 0.2


def optical_flow(start: Tensor, end: Tensor) -> Tensor:
    """The flow ``w`` ``(1, 2, H, W)``, x before y in pixels: what is at p in ``start`` is at p + w(p) in ``end``.

    ``start`` and ``end`` are pictures ``(1, 3, H, W)``.
    Source: Kroeger et al., "Fast Optical Flow using Dense Inverse Search" (2016), on grey levels.
    """
    cv2 = files.optional("cv2", "video", "opencv-python-headless")
    levels = [(colour.luminance(image)[0, 0] * 255).round().byte().cpu().numpy() for image in (start, end)]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*levels, None)
    return torch.from_numpy(flow).permute(2, 0, 1)[None].to(start)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """``x(p + w(p))`` at each pixel p, bicubic: ``image`` x ``(B, C, H, W)``, ``flow`` w ``(B, 2, H, W)``."""
    size = flow.new_tensor(flow.shape[:-3:-1])  # width, height
    grid = (2 * _targets(flow).permute(0, 2, 3, 1) + 1) / size - 1
    return F.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=False)


def consistency(forward: Tensor, backward: Tensor) -> Tensor:
    """1 where a pixel of the later frame was seen in the earlier one, else 0: ``(B, 1, H, W)``.

    With the backward flow w (later to earlier) and the forward flow v, moved by w, a pixel is excluded where

    - it is occluded: ``|v + w|² > 0.01 (|v|² + |w|²) + 0.5``,
    - it lies on a motion boundary: ``|∇w_x|² + |∇w_y|² > 0.01 |w|² + 0.002``, or
    - p + w(p) is outside of the earlier frame.

    Source: Ruder et al. (2016), section 4.2, after Sundaram et al. (2010).
    """
    moved, length = warp(forward, backward), backward.square().sum(1)
    size = backward.new_tensor(backward.shape[:-3:-1]).view(2, 1, 1)
    inside = ((_targets(backward) + 0.5).clamp_min(0) < size).all(1) & (_targets(backward) > -0.5).all(1)
    seen = (moved + backward).square().sum(1) <= 0.01 * (moved.square().sum(1) + length) + 0.5
    slopes = sum(slope.square().sum(1) for slope in torch.gradient(backward, dim=(2, 3)))
    return (inside & seen & (slopes <= 0.01 * length + 0.002))[:, None].to(backward)


def motion(earlier: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
    """The flow from a frame ``(1, 3, H, W)`` back to the one before it, and where it is consistent."""
    backward = optical_flow(later, earlier)
    return backward, consistency(optical_flow(earlier, later), backward)


@dataclasses.dataclass(frozen=True)
class TemporalTerm:
    """Steadiness ``mean_{c,h,w} m (x - x*)²``: ``target`` x* is the moved previous result, ``mask`` m `consistency`.

    Source: Ruder et al. (2016), section 4.2, the short-term loss.
    """

    target: Tensor
    mask: Tensor
    weight: float
    name = "temporal"
    layers = ()

    def loss(self, image: Tensor, features: dict[str, Tensor]) -> Tensor:
        return (self.mask * (image - self.target).square()).mean((1, 2, 3))


@dataclasses.dataclass(frozen=True)
class _TemporalRecipe(Recipe):
    """A recipe with one more term, whose target has the size of the result."""

    temporal: TemporalTerm | None = None

    def objective(self, network: VGG, content: Tensor, styles: list[Tensor], **options) -> Objective:
        objective = super().objective(network, content, styles, **options)
        return Objective(objective.network, [*objective.parts, self.temporal])


def stylize_frames(
    network: VGG,
    frames: Iterable[ImageSource],
    style: ImageSource | list[ImageSource],
    *,
    recipe: Recipe = DEFAULT,
    size: int = transfer.SIZE,
    first_evaluations: int = 100,
    evaluations: int = 15,
    temporal_weight: float = 50.0,
    **settings,
) -> Iterator[Tensor]:
    """Paint the frames of a video one by one; yields pictures ``(1, 3, H, W)`` and holds two frames in memory.

    A frame starts from the previous result, moved by the flow; where that is not consistent, from the frame itself.

    Arguments:
        frames: pictures, as `images.load` takes them; later ones are resized to the size of the first.
        style: a picture, or several.
        recipe: without tiles.
        size: longer side of the results in pixels; both sides are rounded to even numbers, as video codecs need.
        first_evaluations: forward and backward passes for the first frame of a shot, from coarse to fine.
        evaluations: the same for each later frame.
        temporal_weight: weight of `TemporalTerm`; at 0 only the start is taken from the previous frame.
        settings: further ones of `transfer.stylize`; ``start`` and ``scales`` are for the first frame of a shot.

    Ctrl-C raises KeyboardInterrupt; the frame that is being painted is lost.
    """
    if type(recipe) is not Recipe:
        raise ValueError("recipe must be a Recipe without tiles: the frames of a video are painted whole")
    weight = checks.number(temporal_weight, "temporal_weight", low=0)
    evaluations = checks.integer(evaluations, "evaluations", low=1)
    pictures = (images.picture(frame, "each of frames") for frame in frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError("frames must be one or more pictures, got none")
    size = checks.integer(checks.size(size), "size", low=12)  # the least of which OpenCV finds the flow
    sides = images.scaled_size(tuple(first.shape[-2:]), size)
    grid = tuple(max(2, 2 * round(side / 2)) for side in sides)
    first = images.resize(first, grid)
    shot = {"recipe": recipe, "evaluations": first_evaluations, "size": max(grid), **settings}
    steps = transfer.stylize_steps(network, first, style, **shot)  # now, so that wrong arguments are noticed

    def paint() -> Iterator[Tensor]:
        now, earlier = steps, first
        for frame in itertools.chain((images.resize(picture, grid) for picture in pictures), [None]):
            result = transfer.finish(now)
            if result.interrupted:
                raise KeyboardInterrupt
            yield result.image
            if frame is not None:
                start, mask = _moved(result.image, earlier, frame)
                start = colour.grey(start) if settings.get("keep_colour") == "luminance" else start
                temporal = _TemporalRecipe(**vars(recipe), temporal=TemporalTerm(start, mask, weight))
                later = {"recipe": temporal, "evaluations": evaluations, "start": start, "scales": None}
                same_shot = mask.mean() >= SAME_SHOT
                now = transfer.stylize_steps(network, frame, style, **shot | (later if same_shot else {}))
                earlier = frame

    return paint()


def _moved(result: Tensor, earlier: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """The painted earlier frame where the present one shows the same, else the frame itself; and where it does."""
    flow, mask = (found.to(result) for found in motion(earlier, frame))
    return torch.where(mask > 0, warp(result, flow).clamp(0, 1), frame.to(result)), mask


def opened(path: str | Path) -> tuple[Iterator[Tensor], Fraction, int]:
    """The frames of a video file ``(1, 3, H, W)``, decoded one by one, upright; how many per second; how many, or 0.

    Raises:
        ValueError: the file is not a video; while it is decoded, that it is damaged.
    """
    av = files.optional("av", "video")
    path = Path(path).expanduser().absolute()  # absolute, so that FFmpeg takes it for a file, not a URL

    @contextlib.contextmanager
    def explained() -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{str(path)[:200]!r} cannot be read as a video: {reason}") from error

    with explained():
        container = av.open(str(path))
        streams, name = container.streams.video, container.format.name
        if not streams or name == "image2" or name.endswith("_pipe"):
            raise ValueError("it is a picture, for which there is the command stylize" if streams else "it is sound")

    def decoded() -> Iterator[Tensor]:
        with explained(), container:
            for frame in container.decode(streams[0]):
                levels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None]
                yield torch.rot90(levels.float().div_(255), frame.rotation // 90, (2, 3))

    return decoded(), Fraction(streams[0].average_rate or 25), streams[0].frames


def save(frames: Iterable[Tensor], path: Path, rate: Fraction) -> Path:
    """Write frames ``(1, 3, H, W)`` with even sides as an MP4 file (H.264) without sound.

    The file appears whole or not at all. If ``frames`` fails or is interrupted, the frames before are written first.
    """
    av = files.optional("av", "video")
    frames, stopped = iter(frames), None
    first = next(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as file:  # without a name: a program that is killed leaves nothing
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
            stream.height, stream.width, stream.pix_fmt = *first.shape[-2:], "yuv420p"
            stream.codec_context.colorspace = 5  # BT.601, which FFmpeg converts to: players guess otherwise
            try:
                for image in itertools.chain([first], frames):
                    container.mux(stream.encode(av.VideoFrame.from_image(images.to_pil(image))))
            except (KeyboardInterrupt, Exception) as error:
                stopped = error
            container.mux(stream.encode(None))
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            files.write_bytes(path, content)
    if stopped is not None:
        raise stopped
    return path


def _targets(flow: Tensor) -> Tensor:
    """Where the flow leads from each pixel: x and y ``(B, 2, H, W)``."""
    y, x = torch.meshgrid(*(torch.arange(side).to(flow) for side in flow.shape[-2:]), indexing="ij")
    return torch.stack([x, y]) + flow
