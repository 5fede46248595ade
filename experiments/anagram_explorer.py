"""An explorer of visual anagrams, as those of `ex4lib.widgets`."""

from typing import Any

import ipywidgets
import torch

from ex4lib.diffusion import sampling
from ex4lib.diffusion.pixel import PixelModel, pixel_model
from ex4lib.widgets import Explorer, Job, explorers
from ex4lib.widgets.controls import once, seeded
from ex4lib.widgets.watching import Settings
from experiments.illusions import IDENTITY, Anagram
from experiments.loops import VIEWS


def anagram_explorer(*, model: PixelModel | None = None, **options: Any) -> Explorer:
    """A visual anagram: one prompt as it stands, another in a view; arguments as in `explorers.sdedit`."""
    load, timesteps = once(model, pixel_model), explorers.course_timesteps()
    controls = {
        "prompt": ipywidgets.Text(value="a cat", continuous_update=False),
        "other_prompt": ipywidgets.Text(value="an owl", continuous_update=False),
        "view": ipywidgets.Dropdown(options=[name for name in VIEWS if name != IDENTITY.name]),
        **explorers.pixel_controls(),
    }

    def begin(settings: Settings) -> Job:
        loaded, view, draws = load(), VIEWS[settings["view"]], seeded(settings)
        prompts, scale = (settings["prompt"], settings["other_prompt"]), settings["guidance_scale"]
        denoisers = [loaded.denoiser(prompt, guidance_scale=scale) for prompt in prompts]
        denoiser, noise = Anagram(denoisers, [IDENTITY, view]), loaded.noise(1, draws)
        steps = sampling.sample(denoiser, loaded.scheduler, noise, steps=timesteps, generator=draws)
        return explorers.sampled(
            steps, {}, explorers.pixel_weights(loaded), seen=lambda image: torch.cat([image, view.shown(image)], -1)
        )

    about = "Each picture stands beside its view, which should show the other prompt."
    return Explorer("Visual anagram", about, controls, begin, folded=("guidance_scale",), **options)
