"""Old import path of `zoo.inference.classifier`."""

from zoo.inference.classifier import Classifier, average, create_classifier

__all__ = ["Classifier", "average", "create_classifier"]
