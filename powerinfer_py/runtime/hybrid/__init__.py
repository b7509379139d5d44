"""One model on two sides: blocks and hot neurons on a device, the rest on the CPU, both computing at once.

`executor` runs a forward, `loading` brings a model into place as a `Placement` says, `device` is what a device must
offer; everything here runs with a stand-in (`stand_in`) where there is no GPU.
"""
