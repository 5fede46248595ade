"""The UNet of CS180's project 5B, from its own atoms: one network for the unconditional, the time-conditioned and the
class-conditioned case.

Source: https://cal-cs180.github.io/fa24/hw/proj5/partb.html, the diagrams "Unconditional UNet", "Standard UNet
operations", "Conditioned UNet" and "FCBlock". Differs from the page where it has a slip: its class-conditioned sketch
adds ``t1`` to the second place too, where only ``t2`` has the right number of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZE = 28  # pixels: two halvings lead to the 7 x 7 that Flatten averages


class Conv(nn.Sequential):
    """``(B, I, H, W) -> (B, O, H, W)``: 3 x 3 convolution, batch norm, GELU."""

    def __init__(self, before: int, after: int):
        super().__init__(nn.Conv2d(before, after, 3, 1, 1), nn.BatchNorm2d(after), nn.GELU())


class DownConv(nn.Sequential):
    """``(B, I, H, W) -> (B, O, H/2, W/2)``: 3 x 3 convolution of stride 2, batch norm, GELU."""

    def __init__(self, before: int, after: int):
        super().__init__(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.GELU())


class UpConv(nn.Sequential):
    """``(B, I, H, W) -> (B, O, 2H, 2W)``: 4 x 4 transposed convolution of stride 2, batch norm, GELU."""

    def __init__(self, before: int, after: int):
        super().__init__(nn.ConvTranspose2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.GELU())


class Flatten(nn.Sequential):
    """``(B, C, 7, 7) -> (B, C, 1, 1)``: average, GELU."""

    def __init__(self):
        super().__init__(nn.AvgPool2d(7), nn.GELU())


class Unflatten(nn.Sequential):
    """``(B, C, 1, 1) -> (B, C, 7, 7)``: 7 x 7 transposed convolution, batch norm, GELU."""

    def __init__(self, channels: int):
        super().__init__(nn.ConvTranspose2d(channels, channels, 7, 7), nn.BatchNorm2d(channels), nn.GELU())


class ConvBlock(nn.Sequential):
    """Two `Conv`."""

    def __init__(self, before: int, after: int):
        super().__init__(Conv(before, after), Conv(after, after))


class DownBlock(nn.Sequential):
    """`DownConv`, then `ConvBlock`."""

    def __init__(self, before: int, after: int):
        super().__init__(DownConv(before, after), ConvBlock(after, after))


class UpBlock(nn.Sequential):
    """`UpConv`, then `ConvBlock`."""

    def __init__(self, before: int, after: int):
        super().__init__(UpConv(before, after), ConvBlock(after, after))


class FCBlock(nn.Sequential):
    """``(B, I) -> (B, O, 1, 1)``: linear, GELU, linear; shaped to scale or shift the channels of a picture."""

    def __init__(self, before: int, after: int):
        super().__init__(nn.Linear(before, after), nn.GELU(), nn.Linear(after, after), nn.Unflatten(1, (after, 1, 1)))


class UNet(nn.Module):
    """The course's network on ``(B, 1, 28, 28)``; with D = ``width``:

        a = ConvBlock(x)        D, 28 px        u  = Unflatten(Flatten(c))     2D,  7 px
        b = DownBlock(a)        D, 14 px        v  = UpBlock([u, c])            D, 14 px
        c = DownBlock(b)       2D,  7 px        w  = UpBlock([v, b])            D, 28 px
                                                out = Conv2d(ConvBlock([w, a])) 1, 28 px

    With ``time``, ``u <- u + T1(t)`` and ``v <- v + T2(t)``; with ``classes`` too, ``u <- C1(c)·u + T1(t)`` and
    ``v <- C2(c)·v + T2(t)``, each an `FCBlock`. The class is one-hot; the zero vector stands for no class.

    Arguments:
        width: D.
        time: takes t in [0, 1] (for DDPM t/T).
        classes: how many, 0 for an unconditional network.
    """

    def __init__(self, width: int, *, time: bool = False, classes: int = 0):
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if classes and not time:
            raise ValueError("classes need time=True: the course conditions on a class only where it conditions on t")
        super().__init__()
        self.width, self.time, self.classes = width, time, classes
        self.first = ConvBlock(1, width)
        self.down1 = DownBlock(width, width)
        self.down2 = DownBlock(width, 2 * width)
        self.flatten, self.unflatten = Flatten(), Unflatten(2 * width)
        self.up1 = UpBlock(4 * width, width)
        self.up2 = UpBlock(2 * width, width)
        self.last = nn.Sequential(ConvBlock(2 * width, width), nn.Conv2d(width, 1, 3, 1, 1))
        if time:
            self.time1, self.time2 = FCBlock(1, 2 * width), FCBlock(1, width)
        if classes:
            self.class1, self.class2 = FCBlock(classes, 2 * width), FCBlock(classes, width)

    def forward(self, x: Tensor, t: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        """``(B, 1, 28, 28)``, times ``(B,)`` in [0, 1], classes ``(B, classes)`` one-hot or zero -> ``(B, 1, 28, 28)``.

        Raises:
            ValueError: another size, or conditions other than those the network was built with.
        """
        if x.ndim != 4 or tuple(x.shape[1:]) != (1, SIZE, SIZE):
            raise ValueError(f"x must have shape (B, 1, {SIZE}, {SIZE}), got {tuple(x.shape)}")
        for name, value, wanted in (("t", t, (len(x),)), ("c", c, (len(x), self.classes))):
            needed = self.time if name == "t" else bool(self.classes)
            shape = tuple(value.shape) if value is not None else None
            if shape != (wanted if needed else None):
                raise ValueError(f"{name} must {f'have shape {wanted}' if needed else 'be absent'}, got {shape}")
        a = self.first(x)
        b = self.down1(a)
        c7 = self.down2(b)
        u = self._condition(self.unflatten(self.flatten(c7)), t, c, 1)
        v = self._condition(self.up1(torch.cat([u, c7], 1)), t, c, 2)
        w = self.up2(torch.cat([v, b], 1))
        return self.last(torch.cat([w, a], 1))

    def _condition(self, x: Tensor, t: Tensor | None, c: Tensor | None, place: int) -> Tensor:
        if self.classes:
            x = getattr(self, f"class{place}")(c) * x
        if self.time:
            x = x + getattr(self, f"time{place}")(t[:, None])
        return x
