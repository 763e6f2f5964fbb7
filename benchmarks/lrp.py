"""LRP, composite epsilon_plus, at the input, 224 x 224: Explainer against zennit.

Both have the same weights and zennit's own form of z+, with the bias in its denominators (``bias=True``). zennit gets
its canonizers, and its hooks are registered and its BatchNorms folded before the clock starts. Maps are compared first.

    python benchmarks/lrp.py --arch vgg16_bn resnet50 --json benchmarks/results/lrp.json
"""

from __future__ import annotations

from typing import Any

from harness import alternate, arguments, report, require_equal, write

OURS, BASELINE = "fgcam_onnx", "zennit"
SIZE = (224, 224)
PICTURES = 5  # that are compared; of one in five a max-pool's winner is in doubt


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--arch", nargs="+", default=["vgg16_bn", "resnet50"], help="VGGs and ResNets of torchvision")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    options = parser.parse_args()

    import numpy as np
    import torch
    from torch_reference import export, import_torchvision, live, smooth_images

    models = import_torchvision().models
    torch.set_num_threads(options.threads)
    from parity import zennit_lrp

    from fgcam_onnx import Explainer

    def size_of_the_score(logits: Any) -> Any:
        """Explainer starts from |y|, where zennit's own start is 1."""
        winner = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        return winner * logits.detach().abs()

    results: list[dict[str, Any]] = []
    for arch in options.arch:
        model = live(getattr(models, arch)(weights=None), seed=0, size=SIZE, images=4)
        onnx_file = export(model, smooth_images(2, SIZE, seed=0), exporter="legacy")
        explainer = Explainer(onnx_file, backend="ort", threads=options.threads)
        for batch in options.batch:
            pictures = [smooth_images(batch, SIZE, seed=seed) for seed in range(1, 1 + PICTURES)]
            x = pictures[0]

            def ours(x: Any = x, explainer: Any = explainer) -> Any:
                return explainer.explain(x.numpy(), method="lrp", composite="epsilon_plus", bias=True).relevance

            def torch_forward(model: Any = model, x: Any = x) -> None:
                with torch.no_grad():
                    model(x)

            attributor = zennit_lrp.attributor(model, x, "epsilon_plus", bias=True)
            title = f"{arch}, LRP epsilon_plus at the input, batch {batch}"
            with attributor:

                def theirs(x: Any = x, attributor: Any = attributor) -> Any:
                    return attributor(x, size_of_the_score)[1].sum(1).detach().numpy()

                # Epsilon's denominators cancel in the head: two float32 programs agree to fewer digits than of z+.
                maps = (np.concatenate([who(x) for x in pictures]) for who in (ours, theirs))
                require_equal(*maps, title, typical=1e-4)
                contestants = {OURS: ours, BASELINE: theirs}
                timings = alternate(contestants, options.rounds)
            timings += alternate({"torch, forward only": torch_forward}, options.rounds)
            results.append({"arch": arch, "batch": batch, **report(title, timings, OURS, BASELINE)})
    write(options.json, options.threads, results)


if __name__ == "__main__":
    main()
