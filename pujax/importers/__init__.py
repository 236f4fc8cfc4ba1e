"""Networks that others trained, as pujax networks."""
