"""Positive-unlabelled learning: losses, heads on stored features, class prior, the scorer as a function of images."""
