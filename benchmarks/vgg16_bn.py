"""FG-Grad-CAM of VGG-16-BN at the input, 224 x 224: Explainer against the published procedure in PyTorch.

Both do one forward pass, Grad-CAM weights and the whole descent, from the same random weights and pictures, in float32.
Bare forward passes stand beside them for scale.

    python benchmarks/vgg16_bn.py --batch 1 8
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from harness import alternate, arguments, report, require_equal, write

OURS, BASELINE = "fgcam_onnx", "published procedure"
SIZE = (224, 224)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--denoise", action="store_true", help="FG-CAM with denoising, its SVD included")
    options = parser.parse_args()

    import onnxruntime
    import torch
    from torch_reference import (
        PublishedFGCAM,
        export,
        import_torchvision,
        live,
        smooth_images,
        spotlit_images,
    )

    from fgcam_onnx import Explainer

    torch.set_num_threads(options.threads)
    model = live(import_torchvision().models.vgg16_bn(weights=None), seed=0, size=SIZE, images=2)
    published = PublishedFGCAM.of(model)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg16_bn.onnx"
        export(model, smooth_images(2, SIZE, seed=0), path)
        explainer = Explainer(path, backend="ort", threads=options.threads)
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = options.threads
        session = onnxruntime.InferenceSession(str(path), session_options, providers=["CPUExecutionProvider"])

        for batch in options.batch:
            x = spotlit_images(batch, SIZE, seed=67) if options.denoise else smooth_images(batch, SIZE, seed=67)
            feed = x.numpy()

            def ours(feed: Any = feed) -> Any:
                return explainer.explain(feed, method="fg-grad-cam", layer="input", denoise=options.denoise).relevance

            def theirs(x: Any = x) -> Any:
                return published.explain(x, noise_free=options.denoise)

            def torch_forward(x: Any = x) -> None:
                with torch.no_grad():
                    model(x)

            title = f"VGG-16-BN, FG-Grad-CAM{' denoised' if options.denoise else ''} at the input, batch {batch}"
            require_equal(ours(), theirs(), title)
            contestants = {
                OURS: ours,
                BASELINE: theirs,
                "onnxruntime, forward only": lambda feed=feed: session.run(None, {"image": feed}),
                "torch, forward only": torch_forward,
            }
            results.append({"batch": batch, **report(title, alternate(contestants, options.rounds), OURS, BASELINE)})
    write(options.json, options.threads, results)


if __name__ == "__main__":
    main()
