"""Lets timm and open_clip be imported in a fresh process whose torchvision lacks its compiled operators.

    PYTHONPATH=tests/peer_shim zoo bench convnextv2_tiny --peer timm

Python imports this file when it starts. Nothing happens until torchvision is imported, and nothing at all needs it
where torchvision was installed for the torch that is there.
"""

import sys
from importlib.machinery import PathFinder


class BeforeTorchvision:
    """Declares torchvision's operators when it is first looked for, then steps aside."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "torchvision":
            return None
        import torch

        sys.meta_path.remove(cls)
        cls.library = torch.library.Library("torchvision", "DEF")  # the declarations live as long as this object
        for operator in ("nms", "qnms"):
            cls.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return PathFinder.find_spec(name, path, target)


sys.meta_path.insert(0, BeforeTorchvision)
