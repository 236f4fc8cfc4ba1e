"""Weights that other projects wrote: read from their files, renamed onto pujax's networks."""
