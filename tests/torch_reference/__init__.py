"""References in plain torch that tests and benchmarks compare fgcam_onnx with; it imports nothing of fgcam_onnx."""

from torch_reference.compare import relative_error
from torch_reference.export import export, export_beside, live, smooth_images, spotlit_images
from torch_reference.margin import margin
from torch_reference.published_fgcam import PublishedFGCAM
from torch_reference.relevance_autograd import Relevance, RelevanceResNet, RelevanceVGG, fg_grad_cam_resnet
from torch_reference.relevance_graph import GraphRelevance
from torch_reference.thin_vgg import ThinVGG16BN
from torch_reference.torchvision_import import import_torchvision

__all__ = [
    "GraphRelevance",
    "PublishedFGCAM",
    "Relevance",
    "RelevanceResNet",
    "RelevanceVGG",
    "ThinVGG16BN",
    "export",
    "export_beside",
    "fg_grad_cam_resnet",
    "import_torchvision",
    "live",
    "margin",
    "relative_error",
    "smooth_images",
    "spotlit_images",
]
