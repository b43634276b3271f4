"""Metrics, scores, inference strategies, fusion of images."""
