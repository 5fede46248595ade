"""Style as an optimisation target: neural style transfer and style-guided diffusion."""

__version__ = "0.1.0"
