"""Maps of k classes of one picture in one call, against a single class: the forward pass and denominators are shared.

The maps are compared with those of k calls first; then the one call is timed against one for a single class and against
k calls.

    python benchmarks/several_classes.py --classes 3 --json benchmarks/results/several_classes.json
"""

from __future__ import annotations

from typing import Any

from harness import alternate, arguments, report, require_equal, write

SIZE = (224, 224)


def main() -> None:
    parser = arguments(__doc__, rounds=11)
    parser.add_argument("--arch", nargs="+", default=["vgg16_bn", "resnet50"], help="models of torchvision")
    parser.add_argument("--method", nargs="+", default=["fg-grad-cam", "lrp"])
    parser.add_argument("--classes", type=int, default=3)
    options = parser.parse_args()

    import numpy as np
    import torch
    from torch_reference import export, import_torchvision, live, smooth_images

    from fgcam_onnx import Explainer

    torch.set_num_threads(options.threads)
    results: list[dict[str, Any]] = []
    for arch in options.arch:
        model = live(getattr(import_torchvision().models, arch)(weights=None), seed=0, size=SIZE, images=4)
        onnx_file = export(model, smooth_images(2, SIZE, seed=0), exporter="legacy")
        explainer = Explainer(onnx_file, backend="ort", threads=options.threads)
        x = smooth_images(1, SIZE, seed=1).numpy()
        for method in options.method:

            def explain(target: Any, method: Any = method, explainer: Any = explainer, x: Any = x) -> Any:
                return explainer.explain(x, method=method, layer="input", target=target)

            several = explain(f"top{options.classes}")
            classes = several.target[0].tolist()

            def each(classes: Any = classes, explain: Any = explain) -> Any:
                return np.concatenate([explain([c]).relevance for c in classes])

            title = f"{arch}, {method} at the input, {options.classes} classes of one picture"
            require_equal(several.relevance[0], each(), title)
            at_once, calls, one = "at once", "one call each", "a single class"
            contestants = {
                at_once: lambda explain=explain: explain(f"top{options.classes}"),
                one: lambda explain=explain: explain(None),
                calls: each,
            }
            timings = alternate(contestants, options.rounds)
            found = report(title, timings, at_once, calls)
            by_name = {t.name: t.median for t in timings}
            print(f"  {options.classes} classes at once cost {by_name[at_once] / by_name[one]:.2f} times one class")
            results.append({"arch": arch, "method": method, "over_one_class": by_name[at_once] / by_name[one], **found})
    write(options.json, options.threads, results)


if __name__ == "__main__":
    main()
