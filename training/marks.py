"""Marks that a painter makes on a batch of pictures: blur, flow, strokes, dabs, tiles, lines, hatching, grain.

Pictures are float32 (B, 3, S, S) in [0, 1]. A parameter of a mark is a number or a tensor (B, 1, 1, 1), one value
for each picture. Lengths are in pixels of a picture with 128 pixels a side and follow the size of the picture. All
random numbers come from one generator, which lives on the device of the pictures.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

LUMINANCE = (0.299, 0.587, 0.114)
SIZE = 128  # the side of a picture that lengths refer to


def uniform(low: float, high: float, shape, generator: Generator) -> Tensor:
    """Uniform random numbers. An int means (B, 1, 1, 1)."""
    shape = (shape, 1, 1, 1) if isinstance(shape, int) else shape
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def log_uniform(low: float, high: float, shape, generator: Generator) -> Tensor:
    """Random numbers whose logarithm is uniform."""
    return uniform(math.log(low), math.log(high), shape, generator).exp()


def normal(shape, generator: Generator) -> Tensor:
    """Standard normal random numbers."""
    return torch.randn(shape, generator=generator, device=generator.device)


def grey(pictures: Tensor) -> Tensor:
    """The luminance, (B, 1, S, S)."""
    red, green, blue = pictures.split(1, 1)
    return LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue


def box(fields: Tensor, width: int) -> Tensor:
    """The mean over a square of `width` pixels (odd)."""
    half = width // 2
    if not half:
        return fields
    rows = F.avg_pool2d(F.pad(fields, (0, 0, half, half), mode="replicate"), (width, 1), 1)
    return F.avg_pool2d(F.pad(rows, (half, half, 0, 0), mode="replicate"), (1, width), 1)


def blur(fields: Tensor, sigma: float) -> Tensor:
    """Two box filters in a row, whose variance is about that of a Gaussian of `sigma` pixels at 128."""
    width = 2 * round(sigma * 1.22 * fields.shape[-1] / SIZE) + 1
    return box(box(fields, width), width)


def smooth_noise(number: int, channels: int, cells: int, size: int, generator: Generator) -> Tensor:
    """Noise that changes over about 1/cells of the picture, unit variance at the nodes."""
    coarse = normal((number, channels, cells, cells), generator)
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)


def band_noise(number: int, channels: int, size: int, period: Tensor, generator: Generator, slope: float = 0.5):
    """Noise (B, C, S, S) of unit variance with waves of about `period` pixels, in all directions."""
    fy = torch.fft.fftfreq(size, device=generator.device)[:, None]
    fx = torch.fft.rfftfreq(size, device=generator.device)[None]
    centre = SIZE / size / period
    radius = (fx**2 + fy**2).sqrt()
    gain = torch.exp(-(((radius - centre) / (slope * centre)) ** 2))
    spectrum = torch.fft.rfft2(normal((number, channels, size, size), generator)) * gain
    noise = torch.fft.irfft2(spectrum, s=(size, size))
    return noise / noise.std((2, 3), keepdim=True).clamp_min(1e-6)


def positions(size: int, device) -> tuple[Tensor, Tensor]:
    """The x and y of every pixel's middle, in pixels, (1, 1, S, S)."""
    line = torch.arange(size, device=device, dtype=torch.float32) + 0.5
    return line.view(1, 1, 1, -1).expand(1, 1, size, size), line.view(1, 1, -1, 1).expand(1, 1, size, size)


def sample(fields: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The fields at positions in pixels, bilinear. x and y are (B, 1, H, W)."""
    grid = torch.stack([x[:, 0], y[:, 0]], -1) * (2 / fields.shape[-1]) - 1
    return F.grid_sample(fields, grid, padding_mode="border", align_corners=False)


def flow(pictures: Tensor, contours: Tensor | float, generator: Generator) -> Tensor:
    """Directions (B, 2, S, S) of strokes: cosine and sine of an angle whose sign has no meaning.

    `contours` in [0, 1] says how much strokes follow the contours of the picture (the small eigenvector of its
    structure tensor); the rest is one angle of the whole picture and a random field that changes slowly.
    """
    number, size = len(pictures), pictures.shape[-1]
    luminance = blur(grey(pictures), 1.2)
    gx = F.pad(luminance, (0, 1, 0, 0), mode="replicate")[..., 1:] - luminance
    gy = F.pad(luminance, (0, 0, 0, 1), mode="replicate")[..., 1:, :] - luminance
    tensor = blur(torch.cat([gy**2 - gx**2, -2 * gx * gy], 1), 3.0)  # cosine and sine of twice the angle
    tensor = tensor / (tensor.norm(dim=1, keepdim=True) + 2e-4)
    base = uniform(0, 2 * math.pi, number, generator)
    angle = base + uniform(0, 2.5, number, generator) * smooth_noise(number, 1, 4, size, generator)
    doubled = contours * tensor + (1.05 - contours) * torch.cat([angle.cos(), angle.sin()], 1)
    half = torch.atan2(doubled[:, 1:], doubled[:, :1]) / 2
    return torch.cat([half.cos(), half.sin()], 1)


def along(fields: Tensor, directions: Tensor, length: Tensor | float, doublings: int = 3) -> Tensor:
    """The fields averaged along the flow over `length` pixels: line integral convolution (Cabral 1993).

    The mean of two samples a step apart, repeated with half the step, covers 2^doublings points of the line.
    """
    size = fields.shape[-1]
    x, y = positions(size, fields.device)
    for level in range(doublings):
        step = directions * (length * (size / SIZE / 2 ** (level + 2)))
        dx, dy = step[:, :1], step[:, 1:]
        fields = (sample(fields, x + dx, y + dy) + sample(fields, x - dx, y - dy)) / 2
    return fields


def _cells(pictures: Tensor, pitch: Tensor, jitter: float, generator: Generator):
    """A jittered grid: cell of each pixel (B, 1, S, S), sides of the table, and its points in pixels, (B, 2, G*G)."""
    number, size = len(pictures), pictures.shape[-1]
    sides = int(size / SIZE * 64) + 3  # enough for a pitch of two pixels
    line = torch.arange(sides, device=pictures.device, dtype=torch.float32) - 1
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    nodes = torch.stack([columns + 0.5 * (rows % 2), rows]).view(1, 2, -1)
    shift = uniform(-jitter, jitter, (number, 2, sides * sides), generator)
    return sides, (nodes + 0.25 + shift) * pitch.view(-1, 1, 1)


def _neighbours(pictures: Tensor, pitch: Tensor, sides: int):
    """For each of the nine cells around a pixel: the index into the table, (B, 1, S*S)."""
    x, y = (p.expand(len(pictures), -1, -1, -1) / pitch for p in positions(pictures.shape[-1], pictures.device))
    row = y.floor()
    column = x.floor()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            cell = (row + dy + 1).clamp(0, sides - 1) * sides + (column + dx + 1).clamp(0, sides - 1)
            yield cell.long().flatten(2)


def _at(table: Tensor, index: Tensor) -> Tensor:
    """Entries (B, C, N) of a table (B, C, G*G) at indices (B, 1, N)."""
    return table.gather(2, index.expand(-1, table.shape[1], -1))


def dabs(pictures, directions, pitch, width, length, variation, generator: Generator, jitter: float = 0.3):
    """Lay one coat of dabs: colours (B, 3, S, S) and opacity (B, 1, S, S).

    Dabs lie on a jittered grid of `pitch` pixels. Each is an ellipse along the flow, `width` and `length` (half axes)
    in shares of the pitch, of the colour under its middle, which `variation` (B, 3, G) changes at random. Where dabs
    overlap, a random order decides.
    """
    number, size = len(pictures), pictures.shape[-1]
    pitch = pitch * size / SIZE + torch.zeros(number, 1, 1, 1, device=pictures.device)
    sides, points = _cells(pictures, pitch, jitter, generator)
    px, py = points.unsqueeze(2).split(1, 1)
    local = sample(torch.cat([pictures, directions], 1), px, py).squeeze(2)
    order = torch.rand(number, 1, sides * sides, generator=generator, device=pictures.device)
    spread = normal((number, 1, sides * sides), generator) * 0.8 + normal((number, 3, sides * sides), generator) * 0.5
    colours = local[:, :3] + spread * variation.view(-1, 1, 1)
    table = torch.cat([points, local[:, 3:], order], 1)
    x, y = (p.flatten(2) for p in positions(size, pictures.device))
    across, lengthwise = (torch.as_tensor(v, device=pictures.device) * pitch for v in (width, length))
    across, lengthwise = across.view(number, 1, 1), lengthwise.view(number, 1, 1)
    best = torch.full((number, 1, size * size), -1.0, device=pictures.device)
    chosen, opacity = torch.zeros_like(best).long(), torch.zeros_like(best)
    for index in _neighbours(pictures, pitch, sides):
        cx, cy, cosine, sine, priority = _at(table, index).split(1, 1)
        dx, dy = x - cx, y - cy
        distance = (((dx * cosine + dy * sine) / lengthwise) ** 2 + ((dy * cosine - dx * sine) / across) ** 2).sqrt()
        cover = ((1 - distance) * across + 0.5).clamp(0, 1)
        score = torch.where(cover > 0.3, priority, cover - 1)
        better = score > best
        best, opacity = torch.where(better, score, best), torch.where(better, cover, opacity)
        chosen = torch.where(better, index, chosen)
    return _at(colours, chosen).view(pictures.shape), opacity.view(number, 1, size, size)


def tiles(pictures: Tensor, pitch, jitter: float, variation: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Voronoi cells of a jittered grid: colours (B, 3, S, S), and the distance to the border in shares of the pitch."""
    number, size = len(pictures), pictures.shape[-1]
    pitch = pitch * size / SIZE + torch.zeros(number, 1, 1, 1, device=pictures.device)
    sides, points = _cells(pictures, pitch, jitter, generator)
    px, py = points.unsqueeze(2).split(1, 1)
    colours = sample(blur(pictures, 1.2), px, py).squeeze(2)
    colours = colours + normal((number, 1, sides * sides), generator) * variation.view(-1, 1, 1)
    x, y = (p.flatten(2) for p in positions(size, pictures.device))
    first = torch.full((number, 1, size * size), 1e6, device=pictures.device)
    second, chosen = first, torch.zeros_like(first).long()
    for index in _neighbours(pictures, pitch, sides):
        cx, cy = _at(points, index).split(1, 1)
        distance = ((x - cx) ** 2 + (y - cy) ** 2).sqrt()
        nearer = distance < first
        second = torch.where(nearer, first, torch.minimum(second, distance))
        first, chosen = torch.where(nearer, distance, first), torch.where(nearer, index, chosen)
    border = ((second - first) / pitch.view(-1, 1, 1)).view(number, 1, size, size)
    return _at(colours, chosen).view(pictures.shape), border


def edges(pictures: Tensor, sigma: float) -> Tensor:
    """The largest Sobel gradient of the three colours, (B, 1, S, S), of a picture blurred by `sigma` pixels."""
    soft = F.pad(blur(pictures, sigma), (1,) * 4, mode="replicate")
    gx = soft[..., 1:-1, 2:] - soft[..., 1:-1, :-2]
    gy = soft[..., 2:, 1:-1] - soft[..., :-2, 1:-1]
    return (gx**2 + gy**2).amax(1, keepdim=True).sqrt()


def hatching(shade: Tensor, period, angle, waver, generator: Generator) -> Tensor:
    """Parallel lines that swell with the `shade` (B, 1, S, S) in [0, 1]: opacity of the ink in [0, 1]."""
    number, size = len(shade), shade.shape[-1]
    x, y = positions(size, shade.device)
    phase = (x * torch.cos(angle) + y * torch.sin(angle)) * (SIZE / size) / period
    phase = phase + waver * smooth_noise(number, 1, 6, size, generator)
    wave = 0.5 + 0.5 * torch.cos(2 * math.pi * phase)
    return ((wave - (1 - shade)) * 3).clamp(0, 1)


def kuwahara(pictures: Tensor, width: int) -> Tensor:
    """Of the four squares that touch a pixel with a corner, the mean of the one that varies least (Kuwahara 1976)."""
    half = width // 2
    luminance = grey(pictures)
    fields = box(torch.cat([pictures, luminance, luminance**2], 1), width)
    fields = F.pad(fields, (half,) * 4, mode="replicate")
    size, far = pictures.shape[-1], 2 * half
    best, chosen = None, None
    for top in (0, far):
        for left in (0, far):
            corner = fields[..., top : top + size, left : left + size]
            variance = corner[:, 4:] - corner[:, 3:4] ** 2
            colours = corner[:, :3]
            if best is None:
                best, chosen = variance, colours
            else:
                chosen = torch.where(variance < best, colours, chosen)
                best = torch.minimum(best, variance)
    return chosen
