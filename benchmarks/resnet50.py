"""FG-Grad-CAM of ResNet-50 at the input, 224 x 224: Explainer against the same rules as torch autograd functions.

There is no published procedure for residual networks. The contestant is what one writes in PyTorch today: an
``autograd.Function`` an operator, BatchNorm folded beforehand, negative halves only where an input is negative.

    python benchmarks/resnet50.py --batch 1 8
"""

from __future__ import annotations

from typing import Any

from harness import alternate, arguments, report, require_equal, write

OURS, BASELINE = "fgcam_onnx", "torch autograd functions"
SIZE = (224, 224)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--arch", default="resnet50", help="resnet18, resnet34, resnet50, resnet101 ...")
    options = parser.parse_args()

    import onnxruntime
    import torch
    from torch_reference import RelevanceResNet, export, import_torchvision, live, smooth_images

    from fgcam_onnx import Explainer

    torch.set_num_threads(options.threads)
    model = live(getattr(import_torchvision().models, options.arch)(weights=None), seed=0, size=SIZE, images=4)
    reference = RelevanceResNet(model)
    onnx_file = export(model, smooth_images(2, SIZE, seed=0), exporter="legacy")
    explainer = Explainer(onnx_file, backend="ort", threads=options.threads)
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    session = onnxruntime.InferenceSession(onnx_file, session_options, providers=["CPUExecutionProvider"])
    results: list[dict[str, Any]] = []
    for batch in options.batch:
        x = smooth_images(batch, SIZE, seed=1)
        feed = x.numpy()

        def ours(feed: Any = feed) -> Any:
            return explainer.explain(feed, method="fg-grad-cam", layer="input").relevance

        def theirs(x: Any = x) -> Any:
            return reference.explain(x)

        def torch_forward(x: Any = x) -> None:
            with torch.no_grad():
                model(x)

        title = f"{options.arch}, FG-Grad-CAM at the input, batch {batch}"
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
