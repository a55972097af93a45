from convnext import create_convnext_v2

__all__ = ["create_convnext_v2"]
