"""Oracle cases of the largest models, computed on request only.

    python tests/oracles.py build/oracles --giants --only 'open_clip-ViT-H-14'

ViT-g-14, 5.5 GB of weights, takes 6.2 GB of memory to write; `zoo.bench.parity` takes up to 15 GB, the mapped
file included.
ViT-bigG-14, 10 GB of weights, takes 11 GB and up to 22 GB.
"""

import oracles_classifiers
from oracles_pairs import open_clip_named, pair_case

NAMES = ("ViT-H-14", "ViT-g-14", "ViT-bigG-14", "convnext_xxlarge", "RN50x64-quickgelu")


def cases():
    for name in NAMES:
        yield pair_case("open_clip", lambda name=name: open_clip_named(name), name)
    yield from oracles_classifiers.giant_cases()
