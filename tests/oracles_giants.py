"""Oracle cases of the largest pairs, computed on request only.

    python tests/oracles.py build/oracles --giants --only 'open_clip-ViT-H-14'

ViT-g-14, 5.5 GB of weights, takes 6.2 GB of memory to write; `zoo.parity` takes up to 15 GB, the mapped file included.
ViT-bigG-14 alone is not among them: its 2.5 billion parameters are 10 GB in float32, and it has its narrow case.
"""

from oracles_pairs import open_clip_named, pair_case

NAMES = ("ViT-H-14", "ViT-g-14", "convnext_xxlarge", "RN50x64-quickgelu")


def cases():
    for name in NAMES:
        yield pair_case("open_clip", lambda name=name: open_clip_named(name), name)
