"""Models of this package handed to other libraries."""

from pathlib import Path
from typing import TYPE_CHECKING

from zoo.data.preprocess import PreprocessSpec
from zoo.models.registry import load
from zoo.weights.export import LIBRARIES, WeightExport, write_for

if TYPE_CHECKING:
    import keras

__all__ = ["LIBRARIES", "export_weights"]


def export_weights(
    model: "keras.Model | str | Path",
    path: str | Path,
    *,
    format: str = "timm",
    preprocess: PreprocessSpec | None = None,
) -> WeightExport:
    """Writes a checkpoint that another library loads strictly and that gives the same outputs there.

    The other libraries' classifiers give logits, whatever `classifier_activation` ours has.

    Args:
        model: from this package's builders, or what `load` takes: a saved file, or a name with weights.
        path: ends in `.safetensors`, or a folder, which is made if need be and gets the library's own file name.
            timm's and transformers' `config.json` and open_clip's `open_clip_config.json` are written beside the
            weights: `timm.create_model("local-dir:folder", pretrained=True)`, `from_pretrained(folder)` and
            `open_clip.create_model("local-dir:folder")` read such a folder.
        format: "timm", "transformers", "torchvision" or "facebook" for a classifier or a trunk; "open_clip" or
            "transformers" for a pair.
        preprocess: of the pictures, for timm and open_clip; unless given, what the file of the weights said, then the
            defaults: ImageNet's there, OpenAI's here.

    Returns:
        A `WeightExport`; print it.

    Raises:
        ValueError: the library has no such model, or no place for one of its variables; nothing is written.
    """
    if isinstance(model, str | Path):
        model = load(model).model
    return write_for(model, path, format, preprocess)
