"""From verbs to CUDA kernels.

    trace.py        verbs, written down as operations on values                       (operations.py: what these are)
    schedule.py     operations grouped into kernels: what one has in registers does not go through memory
    text.py         the generated part of a kernel: elementwise expressions, and the sums for the books
    contraction.py  convolutions and products with weights as one implicit matrix product: packing, tap tables, tiles
    lower.py        groups as launches: source, grid, arguments                        (launch.py: what a launch is)
    memory.py       which array lies where, and when its place is free again
    program.py      launches bound to addresses, run one by one or as a captured graph
    check.py        a small program of known answer, run before the first map
    device.py       what is asked of a GPU; fgcam_onnx.backends.cupy answers it with CuPy

Nothing here imports CuPy: text, packing, index arithmetic and memory plan are the same on a machine without a GPU, and
are tested there.
"""
