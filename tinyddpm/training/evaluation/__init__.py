"""Scoring samples: a classifier's accuracy, Frechet and kernel distances, FID."""
