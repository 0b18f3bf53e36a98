"""Data sets as arrays in memory: batches of (seed, step), images by name, preparation from raw files."""

from jaxgen.data.images import load_images
from jaxgen.data.source import Dataset, Spec

__all__ = ["Dataset", "Spec", "load_images"]
