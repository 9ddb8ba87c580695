"""Evaluation of models: images drawn, measured and compared with real ones."""
