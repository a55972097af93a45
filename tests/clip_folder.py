"""Write ViT-B-32 with random weights as a folder of transformers, with its tokenizer and image processor.

    python tests/clip_folder.py FOLDER

`zoo serve` and infinity-emb open the same folder: docs/measurements/serving.md.
"""

import json
import sys
from pathlib import Path

import keras

import zoo
from clip import Tokenizer
from zoo.data.preprocess import OPENAI_MEAN, OPENAI_STD


def write(folder: Path, name: str = "clip/ViT-B-32") -> None:
    keras.utils.set_random_seed(0)
    model = zoo.create_model(name)
    zoo.export_weights(model, folder, format="transformers")
    vocabulary, merges = Tokenizer.tables()
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {"bos_token": "<|startoftext|>"} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    side = model.image_encoder.input_shape[1]
    files = {
        "vocab.json": vocabulary,
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special},
        "special_tokens_map.json": special,
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "feature_extractor_type": "CLIPFeatureExtractor",
            **{"do_resize": True, "size": side, "resample": 3, "do_center_crop": True, "crop_size": side},
            **{"do_normalize": True, "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD},
        },
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
