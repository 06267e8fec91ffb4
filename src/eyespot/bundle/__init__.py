"""Bundle: the directory a board needs, written whole or not at all, opened with every file checked."""

from eyespot.bundle.read import Bundle, open_bundle
from eyespot.bundle.settings import ImageRule, SamplingDefaults, Settings

__all__ = ["Bundle", "ImageRule", "SamplingDefaults", "Settings", "open_bundle"]
