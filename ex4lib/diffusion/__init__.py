"""Diffusion: the forward process, denoisers, guided steps, the sampling loop, and pipelines over it."""
