"""Algorithms: RL², the seam to Stable-Baselines3, and adapting to one task."""
