"""timm's ConvNeXt, ConvNeXt-V2 and ResNet weights, each in the repository `timm/name.tag`.

Facts from timm's tables of pretrained configurations (Apache-2.0). Scores: facebookresearch's for its own weights
(arXiv:2201.03545, arXiv:2301.00808), those of timm's results/results-imagenet.csv at `preprocess` for the others.
"""

import dataclasses
from collections.abc import Iterator
from itertools import product
from typing import Any

from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, OPENAI_STD, PreprocessSpec
from zoo.weights.published import Weights

_IMAGENET = PreprocessSpec(224, IMAGENET_MEAN, IMAGENET_STD, rgb_first=True)
_HALF = dataclasses.replace(_IMAGENET, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_BILINEAR = dataclasses.replace(_IMAGENET, interpolation="bilinear")
_CLIP = dataclasses.replace(_IMAGENET, mean=OPENAI_MEAN, std=OPENAI_STD)


def _at(size, crop_pct, test_size=None, test_crop_pct=None, base=_IMAGENET, mode="shortest"):
    """{"preprocess", "test"} of images of `size` pixels, tested at `test_size`."""
    spec = dataclasses.replace(base, image_size=size, crop_pct=crop_pct, resize_mode=mode)
    test = test_size and dataclasses.replace(spec, image_size=test_size, crop_pct=test_crop_pct)
    return {"preprocess": spec, "test": test}


def _squashed(size, base=_IMAGENET):
    return _at(size, 1.0, base=base, mode="squash")


# Fields shared by sets of weights: preprocessing, and differences from 1000 classes and the family's licence.
_SMALL = _at(224, 0.875, 288, 0.95)
_USUAL = _at(224, 0.875, 288, 1.0)
_CLOSE = _at(224, 0.95, 288, 1.0)
_LOW = _at(160, 0.95, 224, 0.95)
_PLAIN = _at(224, 0.875)
_AT_256 = _at(256, 1.0, base=_CLIP)
_TORCHVISION = _at(224, 0.875, base=_BILINEAR) | {"licence": "BSD-3-Clause"}
_TORCHVISION_2 = _at(176, 0.875, 224, 0.965, base=_BILINEAR) | {"licence": "BSD-3-Clause"}
_SEMI_SUPERVISED = _at(224, 0.875, base=_BILINEAR) | {"licence": "CC-BY-NC-4.0"}
_IN12K, _IN22K = {"classes": 11821}, {"classes": 21841}
_FCMAE = {"classes": 0, "head_norm": False}
_DINO = {"classes": 0, "licence": "DINOv3"}
_EUPE = {"classes": 0, "licence": "FAIR-Noncommercial-Research"}
_TOWER = {"classes": 640, "embedding": True}
_XXL_TOWER = {"classes": 1024, "embedding": True}
_BAMBOO = {"classes": 0, "licence": "not stated"}

# (start of the name, licence): [(tags, sizes, preprocessing, differences)]; a size has its score behind a colon
_GROUPS: dict[tuple[str, str], list[tuple[Any, ...]]] = {
    ("convnext_", "Apache-2.0"): [
        ("d2_in1k", "atto:75.67", _SMALL),
        ("d1_in1k", "femto:77.5 pico:79.52", _SMALL),
        ("in12k_ft_in1k", "nano:82.306", _CLOSE),
        ("d1h_in1k", "nano:80.76", _CLOSE),
        ("r384_in12k_ft_in1k", "nano:83.334", _at(384, 1.0)),
        ("in12k", "nano", _at(224, 0.95), _IN12K),
        ("r384_in12k r384_ad_in12k", "nano", _at(384, 1.0), _IN12K),
        ("in12k_ft_in1k", "tiny:84.192 small:85.164", _CLOSE),
        ("in12k_ft_in1k_384", "tiny:85.154 small:86.186", _squashed(384)),
        ("in12k", "tiny small", _at(224, 0.95), _IN12K),
        ("fb_in1k", "tiny:82.1 small:83.1 base:83.8 large:84.3", _USUAL),
        ("fb_in22k_ft_in1k", "tiny:82.9 small:84.6 base:85.8 large:86.6 xlarge:87.0", _USUAL),
        ("fb_in22k_ft_in1k_384", "tiny:84.098 small:85.752 base:86.826 large:87.456 xlarge:87.8", _squashed(384)),
        ("fb_in22k", "tiny small base large xlarge", _PLAIN, _IN22K),
        ("dinov3_lvd1689m", "tiny small base large", _at(224, 1.0), _DINO),
        ("eupe_lvd1689m", "tiny small base", _at(256, 1.0), _EUPE),
        ("clip_laion2b_augreg_ft_in12k_in1k", "base:86.378", _AT_256),
        ("clip_laion2b_augreg_ft_in12k_in1k_384", "base:87.144", _squashed(384, _CLIP)),
        ("clip_laion2b_augreg_ft_in1k", "base:86.184", _AT_256),
        ("clip_laiona_augreg_ft_in1k_384", "base:86.49", _at(384, 1.0, base=_CLIP)),
        ("clip_laion2b_augreg_ft_in12k", "base", _AT_256, _IN12K),
        ("clip_laion2b clip_laion2b_augreg clip_laiona", "base", _AT_256, _TOWER),
        ("clip_laiona_320 clip_laiona_augreg_320", "base", _at(320, 1.0, base=_CLIP), _TOWER),
        ("clip_laion2b_soup_ft_in1k", "xxlarge:88.622", _AT_256),
        ("clip_laion2b_soup_ft_in12k", "xxlarge", _AT_256, _IN12K),
        ("clip_laion2b_soup clip_laion2b_rewind", "xxlarge", _AT_256, _XXL_TOWER),
    ],
    ("convnextv2_", "CC-BY-NC-4.0"): [
        ("fcmae_ft_in1k", "atto:76.7 femto:78.5 pico:80.3", _SMALL),
        ("fcmae_ft_in1k", "nano:81.9 tiny:83.0 base:84.9 large:85.8 huge:86.3", _USUAL),
        ("fcmae_ft_in22k_in1k", "nano:82.1 tiny:83.9 base:86.8 large:87.3", _USUAL),
        ("fcmae_ft_in22k_in1k_384", "nano:83.366 tiny:85.098 base:87.638 large:88.18 huge:88.7", _squashed(384)),
        ("fcmae_ft_in22k_in1k_512", "huge:88.9", _squashed(512)),
        ("fcmae", "atto femto pico nano tiny base large huge", _PLAIN, _FCMAE),
    ],
    ("resnet", "Apache-2.0"): [
        ("a1_in1k", "18:71.504 34:76.42 50:80.382 101:81.494 152:81.998", _CLOSE),
        ("a2_in1k", "18:70.634 34:75.52 50:79.828 101:81.344 152:81.764", _CLOSE),
        ("a3_in1k", "18:65.67 34:70.58 50:75.994 101:77.928 152:78.896", _LOW),
        ("a1h_in1k", "50:79.264", _at(176, 0.9, 224, 1.0)),
        ("a1h_in1k", "101:81.95 152:82.818", _CLOSE),
        ("b1k_in1k", "50:79.564", _CLOSE),
        ("b2k_in1k", "50:79.388", _CLOSE),
        ("c1_in1k", "50:79.766", _CLOSE),
        ("c2_in1k", "50:79.868", _CLOSE),
        ("d_in1k", "50:79.904", _CLOSE),
        ("ram_in1k", "50:79.034", _SMALL),
        ("ra_in1k", "50:78.82", _SMALL),
        ("bt_in1k", "34:75.176 50:78.444", _SMALL),
        ("ra4_e3600_r224_in1k", "34:77.492", _at(224, 0.9, 288, 1.0, _HALF)),
        ("am_in1k", "50:79.004", _PLAIN),
        ("gluon_in1k", "18:70.844 34:74.574 50:77.58 101:79.306 152:79.712", _PLAIN),
        ("tv_in1k", "18:69.752 34:73.298 50:76.156 101:77.404 152:78.33", _TORCHVISION),
        ("tv2_in1k", "50:80.846 101:79.908 152:80.222", _TORCHVISION_2),
        ("fb_ssl_yfcc100m_ft_in1k", "18:72.636 50:79.252", _SEMI_SUPERVISED),
        ("fb_swsl_ig1b_ft_in1k", "18:73.286 50:81.146", _SEMI_SUPERVISED),
        ("bamboo", "50", _at(224, 1.0), _BAMBOO),
    ],
}

# SHA-256 of model.safetensors, from the file's page, https://huggingface.co/timm/NAME.TAG/blob/main/model.safetensors,
# and the commit that added the file.
DIGESTS = {
    "convnext_atto.d2_in1k": "0f70bc49f1896c8c15af857d2d1d418abfaf097a62b4e29a35e6e65b752f5953",  # 0f23f6b
    "convnext_small.fb_in1k": "5ec5ed9e97fb835093aaf3e6c3fce406b160b367117b6a2b8c7b703386218d1b",  # 338bf5d
    "convnext_small.fb_in22k_ft_in1k": "2457488bec2ffcb2061b9e3fdd63360114549615e3e35ef6dc5c5efe549cbbc9",  # 1ce2b37
    "convnext_tiny.in12k": "f25a356273cc0205cb4df469b79e8652624fde0e11377b8415c0aa368224c67b",  # da30c6d
    "convnext_tiny.in12k_ft_in1k_384": "2a372497fe2d9d5994e9d69e979ac48625e40792f9f8965f498a0f68821f2adb",  # 43b9cf2
    "convnextv2_nano.fcmae": "57db05253c523e7e88abdf50c8c0315dc5c55ef80b4475334817b7c9b5a559c0",  # a0a3c35
    "convnextv2_nano.fcmae_ft_in1k": "c9b5106b30a4593916f1ad5a3fa4f659d48e8ce0107bb9901c457a3686d27a44",  # 38747e4
    "convnextv2_tiny.fcmae_ft_in1k": "fdfb4edfa5abb3b4ea29ab17e6fae5c117dc6cc32ecfb1d0726a156f40a4c1a5",  # fcd457e
    "resnet18.a1_in1k": "80c49dee3da4822c009c5a7fe591e9223c5a2cfcf95a4067ca4dfb5a7b89c612",  # b9c5426
    "resnet50.a1_in1k": "773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",  # 93271f4
    "resnet50.a2_in1k": "f531f9aca4dde1b89e9a465c5b9e3b916a2d1b20a216acf3b9473d1e1212ecf6",  # 8cbd768
    "resnet50.d_in1k": "d8ed291891c8ee5777f68136665a4eee2f9ddeb2a9bc88acf4b1676b3bbebf55",  # 1b19255
    "resnet50.tv_in1k": "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",  # aa6c2d3
    "resnet101.a1_in1k": "1ba5b660e7c175b3c27c557fc7dc8b2815be830c516815b0155f61b403f27380",  # e95c1e3
    "resnet101.a1h_in1k": "1a076c0384295e7d3704f201c5711ff245507db934230bab72ff3014a95f90fe",  # 21721ac
    "resnet101.a2_in1k": "d44a7f2e7eaea0bee834ea5e7fd691d239057014628df0bd194c312773b92c83",  # 23cab52
    "resnet101.a3_in1k": "846baf57eaff38823a70bf63fe58052d2d6b93bd25d3b89c4d31f6909babba0b",  # fe13e88
}


def rows() -> Iterator[Weights]:
    """Every `Weights` of _GROUPS, in order."""
    for (family, licence), groups in _GROUPS.items():
        for tags, sizes, *fields in groups:
            own = {key: value for part in fields for key, value in part.items()}
            for entry, tag in product(sizes.split(), tags.split()):
                size, _, score = entry.partition(":")
                full_name = f"{family}{size}.{tag}"
                yield Weights(
                    f"{family}{size}",
                    tag,
                    repository=f"timm/{full_name}",
                    files=("model.safetensors", "pytorch_model.bin"),
                    score=float(score) if score else None,
                    sha256=DIGESTS.get(full_name),
                    **{"licence": licence, "classes": 1000, **own},
                )
