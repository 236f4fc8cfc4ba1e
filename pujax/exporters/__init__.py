"""Networks as files that other programs run: one module a format, each `network, path -> file`."""
