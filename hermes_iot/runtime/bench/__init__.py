"""The benchmark: strategies x seeds on a workload, a fleet and a link, in the simulator.

What is run is a `cells.Cell`; it ends by `ends`, becomes numbers in `measure`, and numbers of several seeds become
medians and ratios in `ratios`. `run` lets processes do the cells and keeps each finished one on disk.
"""
