"""``python -m fgcam_onnx``: the same as ``fgcam``."""

from fgcam_onnx.cli import main

if __name__ == "__main__":
    main()
