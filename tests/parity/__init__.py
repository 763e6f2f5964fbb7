"""The field's own tools, each called on a torch model in a few lines: what fgcam_onnx's maps are compared with.

Every function takes a torch model and returns numpy arrays before any normalisation; none imports fgcam_onnx. Where a
tool deviates from what its own documentation says, or from this project's definition, the docstring states it, and the
function that has to agree is beside it.
"""

from torch_reference import import_torchvision

import_torchvision()  # before these tools do, which need it to load beside any build of torch
