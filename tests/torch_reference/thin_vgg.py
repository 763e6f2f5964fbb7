"""VGG-16-BN with an eighth of the channels: the same modules at the same indices, cheap enough for Score-CAM."""

from __future__ import annotations

from torch import Tensor, nn

from torch_reference.torchvision_import import import_torchvision

VGG16: tuple[int | str, ...] = (64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3, "M")


class ThinVGG16BN(nn.Module):
    """``features`` as torchvision's vgg16_bn, channels divided by ``divisor``; the classifier fits one ``size``.

    torchvision's VGG pools to 7 x 7 before its classifier, which the legacy exporter refuses unless the map is a
    multiple of 7 x 7; this one flattens the last max-pool, so any multiple of 32 will do, square or not.
    """

    def __init__(self, size: tuple[int, int], divisor: int = 8, classes: int = 10) -> None:
        super().__init__()
        widths = [c if isinstance(c, str) else c // divisor for c in VGG16]
        self.features: nn.Sequential = import_torchvision().models.vgg.make_layers(widths, batch_norm=True)
        positions = (size[0] // 32) * (size[1] // 32)
        hidden = 512 // divisor
        self.classifier = nn.Sequential(
            nn.Linear(512 // divisor * positions, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).flatten(1))
        return y
