"""The architecture matrix: which networks are explained, how each is built, and what is proved of it.

``torchvision_models``, ``timm_models`` and ``light_models`` list the networks; ``proof`` is what has to hold for each.
``docs/architectures.md`` is written from the lists and from what the proofs found (``.ci/write_architectures.py``).
"""
