"""Lessons: `genray steer` and `genray navigate`, which learn how to make latent views."""
