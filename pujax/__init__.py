"""pujax: compress image classifiers with a few labelled images and a large unlabelled pool."""

__version__ = "0.1.0"
