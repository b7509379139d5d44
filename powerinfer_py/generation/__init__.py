"""Turning logits into text: sampling, stop strings, the decode loop, and `LLM`."""
