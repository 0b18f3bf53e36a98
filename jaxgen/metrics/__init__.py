"""Measures of models and of their samples: arrays in, floats out."""
