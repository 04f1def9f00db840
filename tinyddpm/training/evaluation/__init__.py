"""Compare generated images with real ones: a classifier's features, distances between sets of features, and FID."""

from tinyddpm.training.evaluation.classifier import Classifier, train_classifier
from tinyddpm.training.evaluation.distances import GROUPS, Estimate, compare

__all__ = ["GROUPS", "Classifier", "Estimate", "compare", "train_classifier"]
