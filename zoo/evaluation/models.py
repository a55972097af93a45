"""The pair that is to be evaluated, by name or path, as an `Encoder`."""

from pathlib import Path

from zoo.data.preprocess import PreprocessSpec
from zoo.inference.encoder import Encoder, keras_encoder
from zoo.models.registry import load


def load_encoder(model: str | Path, *, batch_size: int = 64, preprocess: PreprocessSpec | None = None) -> Encoder:
    """The `Encoder` of a saved or published pair.

    Args:
        model: what `zoo.load` takes.
        preprocess: how pictures are prepared; what the file says unless given.

    Raises:
        ValueError: it is a classifier, or a file that says nothing of preprocessing and none is given.
    """
    loaded = load(model)
    if loaded.tokenizer is None:
        raise ValueError(f"{str(model)!r} is a classifier; a pair of image and text towers is needed")
    spec = preprocess or loaded.info.preprocess
    if spec is None:
        raise ValueError(f"{str(model)!r} does not say how pictures are prepared; give a PreprocessSpec")
    return keras_encoder(loaded.model, spec, tokenizer=loaded.tokenizer, batch_size=batch_size)
