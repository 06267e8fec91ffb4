"""Pictures with exact answers, drawn from a seed: what the embedded model learns from and is examined on."""

from eyespot.train.scenes.generate import BY_NAME, TASKS, Scenes
from eyespot.train.scenes.scene import Question, Scene
from eyespot.train.scenes.split import SPLITS

__all__ = ["BY_NAME", "SPLITS", "TASKS", "Question", "Scene", "Scenes"]
