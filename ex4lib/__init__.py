"""Style as an optimisation target: neural style transfer and style-guided diffusion.

The public names and modules are imported when they are first used, so that ``import ex4lib`` is quick and style
transfer loads neither diffusers nor transformers.

    >>> import ex4lib
    >>> network = ex4lib.models.features()
    >>> result = ex4lib.stylize(network, "chelsea", "hokusai-great-wave", progress=True)
    >>> ex4lib.save(result.image, "cat.png")

What a public function does not accept it refuses with a ValueError, one sentence that names the argument, before heavy
work starts; docstrings name the other errors.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {
    "images": ("load", "save"),
    "transfer": ("Recipe", "stylize", "stylize_steps", "invert", "invert_steps", "synthesize", "synthesize_steps"),
    "losses": ("Objective", "content_terms", "style_terms"),
    "optimisation": ("Result", "Step", "optimise"),
    "statistics": ("STATISTICS",),
    "tiles": ("TiledRecipe",),
    "video": ("stylize_frames",),
    "diffusion.guidance": ("Guidance",),
    "diffusion.steering": ("guided",),
    "diffusion.sampling": ("sample",),
    "diffusion.pipelines": (
        *("StyleGuidedDDPMPipeline", "StyleGuidedStableDiffusionPipeline", "StyleObjective"),
        *("ddpm", "stable_diffusion"),
    ),
}
_HOME = {name: f"ex4lib.{module}" for module, names in _MODULES.items() for name in names}
_SUBMODULES = ("colour", "diffusion", "features", "figures", "images", "losses", "models", "optimisation")
_SUBMODULES += ("statistics", "tiles", "transfer", "video", "widgets")

__all__ = sorted([*_HOME, *_SUBMODULES])


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"ex4lib.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'ex4lib' has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
