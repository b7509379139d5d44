"""Activation statistics: how often each neuron fires."""
