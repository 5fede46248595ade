"""Explorers for notebooks: one call in a cell, then sliders, Run, Cancel, and export into the report's figures.

Each function returns a `machine.Explorer`; as the last line of a cell it shows itself. Nothing is loaded before Run.

    >>> from ex4lib import widgets
    >>> widgets.style_transfer(style_weight=3.0)
"""

from ex4lib.widgets.explorers import guided_ddpm, guided_stable_diffusion, inversion, sdedit, style_transfer
from ex4lib.widgets.machine import Explorer
from ex4lib.widgets.watching import Job, Result

__all__ = ["Explorer", "Job", "Result"]
__all__ += ["guided_ddpm", "guided_stable_diffusion", "inversion", "sdedit", "style_transfer"]
