"""Where images come from, how they are augmented, and the batches that training draws."""
