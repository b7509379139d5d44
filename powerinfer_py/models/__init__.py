"""The supported architectures: declarations over shared blocks, and the graph they vary."""
