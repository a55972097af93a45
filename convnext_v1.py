from convnext import create_convnext_v1

__all__ = ["create_convnext_v1"]
