"""timm's ConvNeXt, ConvNeXt-V2 and ResNet weights, each in the repository `timm/name.tag`.

Facts from timm's tables of pretrained configurations (Apache-2.0). Scores: facebookresearch's for its own weights
(arXiv:2201.03545, arXiv:2301.00808), those of timm's results/results-imagenet.csv at `preprocess` for the others.
"""

import dataclasses
from collections.abc import Iterator
from itertools import product
from typing import Any

from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, OPENAI_STD, PreprocessSpec
from zoo.weights.published.rows import TIMM_FILES, Weights

IMAGENET = PreprocessSpec(224, IMAGENET_MEAN, IMAGENET_STD, rgb_first=True)
HALF = dataclasses.replace(IMAGENET, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
BILINEAR = dataclasses.replace(IMAGENET, interpolation="bilinear")
CLIP = dataclasses.replace(IMAGENET, mean=OPENAI_MEAN, std=OPENAI_STD)


def at(size, crop_pct, test_size=None, test_crop_pct=None, base=IMAGENET, mode="shortest"):
    """{"preprocess", "test"} of images of `size` pixels, tested at `test_size`."""
    spec = dataclasses.replace(base, image_size=size, crop_pct=crop_pct, resize_mode=mode)
    test = test_size and dataclasses.replace(spec, image_size=test_size, crop_pct=test_crop_pct)
    return {"preprocess": spec, "test": test}


def squashed(size, base=IMAGENET):
    return at(size, 1.0, base=base, mode="squash")


# Fields shared by sets of weights: preprocessing, and differences from 1000 classes and the family's licence.
SMALL = at(224, 0.875, 288, 0.95)
USUAL = at(224, 0.875, 288, 1.0)
CLOSE = at(224, 0.95, 288, 1.0)
LOW = at(160, 0.95, 224, 0.95)
PLAIN = at(224, 0.875)
AT_256 = at(256, 1.0, base=CLIP)
TORCHVISION = at(224, 0.875, base=BILINEAR) | {"licence": "BSD-3-Clause"}
TORCHVISION_2 = at(176, 0.875, 224, 0.965, base=BILINEAR) | {"licence": "BSD-3-Clause"}
YFCC, INSTAGRAM = "fb_ssl_yfcc100m_ft_in1k", "fb_swsl_ig1b_ft_in1k"
SEMI_SUPERVISED = at(224, 0.875, base=BILINEAR) | {"licence": "CC-BY-NC-4.0"}
IN12K, IN22K = {"classes": 11821}, {"classes": 21841}
FCMAE = {"classes": 0, "head_norm": False}
DINO = {"classes": 0, "licence": "DINOv3"}
EUPE = {"classes": 0, "licence": "FAIR-Noncommercial-Research"}
TOWER = {"classes": 640, "embedding": True}
XXL_TOWER = {"classes": 1024, "embedding": True}
BAMBOO = {"classes": 0, "licence": "not stated"}

# (start of the name, licence): [sizes, tags, preprocessing, differences]
GROUPS: dict[tuple[str, str], list[tuple[Any, ...]]] = {
    ("convnext_", "Apache-2.0"): [
        ("atto",                         "d2_in1k",                              SMALL),
        ("femto pico",                   "d1_in1k",                              SMALL),
        ("nano",                         "in12k_ft_in1k d1h_in1k",               CLOSE),
        ("nano",                         "r384_in12k_ft_in1k",                   at(384, 1.0)),
        ("nano",                         "in12k",                                at(224, 0.95), IN12K),
        ("nano",                         "r384_in12k r384_ad_in12k",             at(384, 1.0), IN12K),
        ("tiny small",                   "in12k_ft_in1k",                        CLOSE),
        ("tiny small",                   "in12k_ft_in1k_384",                    squashed(384)),
        ("tiny small",                   "in12k",                                at(224, 0.95), IN12K),
        ("tiny small base large",        "fb_in1k",                              USUAL),
        ("tiny small base large xlarge", "fb_in22k_ft_in1k",                     USUAL),
        ("tiny small base large xlarge", "fb_in22k_ft_in1k_384",                 squashed(384)),
        ("tiny small base large xlarge", "fb_in22k",                             PLAIN, IN22K),
        ("tiny small base large",        "dinov3_lvd1689m",                      at(224, 1.0), DINO),
        ("tiny small base",              "eupe_lvd1689m",                        at(256, 1.0), EUPE),
        ("base",                         "clip_laion2b_augreg_ft_in12k_in1k",    AT_256),
        ("base",                         "clip_laion2b_augreg_ft_in12k_in1k_384", squashed(384, CLIP)),
        ("base",                         "clip_laion2b_augreg_ft_in1k",          AT_256),
        ("base",                         "clip_laiona_augreg_ft_in1k_384",       at(384, 1.0, base=CLIP)),
        ("base",                         "clip_laion2b_augreg_ft_in12k",         AT_256, IN12K),
        ("base",                         "clip_laion2b clip_laion2b_augreg",     AT_256, TOWER),
        ("base",                         "clip_laiona",                          AT_256, TOWER),
        ("base",                         "clip_laiona_320 clip_laiona_augreg_320", at(320, 1.0, base=CLIP), TOWER),
        ("xxlarge",                      "clip_laion2b_soup_ft_in1k",            AT_256),
        ("xxlarge",                      "clip_laion2b_soup_ft_in12k",           AT_256, IN12K),
        ("xxlarge",                      "clip_laion2b_soup clip_laion2b_rewind", AT_256, XXL_TOWER),
    ],
    ("convnextv2_", "CC-BY-NC-4.0"): [
        ("atto femto pico",              "fcmae_ft_in1k",                        SMALL),
        ("nano tiny base large huge",    "fcmae_ft_in1k",                        USUAL),
        ("nano tiny base large",         "fcmae_ft_in22k_in1k",                  USUAL),
        ("nano tiny base large huge",    "fcmae_ft_in22k_in1k_384",              squashed(384)),
        ("huge",                         "fcmae_ft_in22k_in1k_512",              squashed(512)),
        ("atto femto pico nano",         "fcmae",                                PLAIN, FCMAE),
        ("tiny base large huge",         "fcmae",                                PLAIN, FCMAE),
    ],
    ("resnet", "Apache-2.0"): [
        ("18 34 50 101 152",             "a1_in1k a2_in1k",                      CLOSE),
        ("18 34 50 101 152",             "a3_in1k",                              LOW),
        ("50",                           "a1h_in1k",                             at(176, 0.9, 224, 1.0)),
        ("101 152",                      "a1h_in1k",                             CLOSE),
        ("50",                           "b1k_in1k b2k_in1k c1_in1k c2_in1k",    CLOSE),
        ("50",                           "d_in1k",                               CLOSE),
        ("50",                           "ram_in1k ra_in1k bt_in1k",             SMALL),
        ("34",                           "bt_in1k",                              SMALL),
        ("34",                           "ra4_e3600_r224_in1k",                  at(224, 0.9, 288, 1.0, HALF)),
        ("50",                           "am_in1k",                              PLAIN),
        ("18 34 50 101 152",             "gluon_in1k",                           PLAIN),
        ("18 34 50 101 152",             "tv_in1k",                              TORCHVISION),
        ("50 101 152",                   "tv2_in1k",                             TORCHVISION_2),
        ("18 50",                        f"{YFCC} {INSTAGRAM}",                  SEMI_SUPERVISED),
        ("50",                           "bamboo",                               at(224, 1.0), BAMBOO),
    ],
}  # fmt: skip

SCORES = {
    "convnext_atto.d2_in1k": 75.67,
    "convnext_femto.d1_in1k": 77.5,
    "convnext_pico.d1_in1k": 79.52,
    "convnext_nano.in12k_ft_in1k": 82.306,
    "convnext_nano.d1h_in1k": 80.76,
    "convnext_nano.r384_in12k_ft_in1k": 83.334,
    "convnext_tiny.in12k_ft_in1k": 84.192,
    "convnext_small.in12k_ft_in1k": 85.164,
    "convnext_tiny.in12k_ft_in1k_384": 85.154,
    "convnext_small.in12k_ft_in1k_384": 86.186,
    "convnext_tiny.fb_in1k": 82.1,
    "convnext_small.fb_in1k": 83.1,
    "convnext_base.fb_in1k": 83.8,
    "convnext_large.fb_in1k": 84.3,
    "convnext_tiny.fb_in22k_ft_in1k": 82.9,
    "convnext_small.fb_in22k_ft_in1k": 84.6,
    "convnext_base.fb_in22k_ft_in1k": 85.8,
    "convnext_large.fb_in22k_ft_in1k": 86.6,
    "convnext_xlarge.fb_in22k_ft_in1k": 87.0,
    "convnext_tiny.fb_in22k_ft_in1k_384": 84.098,
    "convnext_small.fb_in22k_ft_in1k_384": 85.752,
    "convnext_base.fb_in22k_ft_in1k_384": 86.826,
    "convnext_large.fb_in22k_ft_in1k_384": 87.456,
    "convnext_xlarge.fb_in22k_ft_in1k_384": 87.8,
    "convnext_base.clip_laion2b_augreg_ft_in12k_in1k": 86.378,
    "convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384": 87.144,
    "convnext_base.clip_laion2b_augreg_ft_in1k": 86.184,
    "convnext_base.clip_laiona_augreg_ft_in1k_384": 86.49,
    "convnext_xxlarge.clip_laion2b_soup_ft_in1k": 88.622,
    "convnextv2_atto.fcmae_ft_in1k": 76.7,
    "convnextv2_femto.fcmae_ft_in1k": 78.5,
    "convnextv2_pico.fcmae_ft_in1k": 80.3,
    "convnextv2_nano.fcmae_ft_in1k": 81.9,
    "convnextv2_tiny.fcmae_ft_in1k": 83.0,
    "convnextv2_base.fcmae_ft_in1k": 84.9,
    "convnextv2_large.fcmae_ft_in1k": 85.8,
    "convnextv2_huge.fcmae_ft_in1k": 86.3,
    "convnextv2_nano.fcmae_ft_in22k_in1k": 82.1,
    "convnextv2_tiny.fcmae_ft_in22k_in1k": 83.9,
    "convnextv2_base.fcmae_ft_in22k_in1k": 86.8,
    "convnextv2_large.fcmae_ft_in22k_in1k": 87.3,
    "convnextv2_nano.fcmae_ft_in22k_in1k_384": 83.366,
    "convnextv2_tiny.fcmae_ft_in22k_in1k_384": 85.098,
    "convnextv2_base.fcmae_ft_in22k_in1k_384": 87.638,
    "convnextv2_large.fcmae_ft_in22k_in1k_384": 88.18,
    "convnextv2_huge.fcmae_ft_in22k_in1k_384": 88.7,
    "convnextv2_huge.fcmae_ft_in22k_in1k_512": 88.9,
    "resnet18.a1_in1k": 71.504,
    "resnet18.a2_in1k": 70.634,
    "resnet34.a1_in1k": 76.42,
    "resnet34.a2_in1k": 75.52,
    "resnet50.a1_in1k": 80.382,
    "resnet50.a2_in1k": 79.828,
    "resnet101.a1_in1k": 81.494,
    "resnet101.a2_in1k": 81.344,
    "resnet152.a1_in1k": 81.998,
    "resnet152.a2_in1k": 81.764,
    "resnet18.a3_in1k": 65.67,
    "resnet34.a3_in1k": 70.58,
    "resnet50.a3_in1k": 75.994,
    "resnet101.a3_in1k": 77.928,
    "resnet152.a3_in1k": 78.896,
    "resnet50.a1h_in1k": 79.264,
    "resnet101.a1h_in1k": 81.95,
    "resnet152.a1h_in1k": 82.818,
    "resnet50.b1k_in1k": 79.564,
    "resnet50.b2k_in1k": 79.388,
    "resnet50.c1_in1k": 79.766,
    "resnet50.c2_in1k": 79.868,
    "resnet50.d_in1k": 79.904,
    "resnet50.ram_in1k": 79.034,
    "resnet50.ra_in1k": 78.82,
    "resnet50.bt_in1k": 78.444,
    "resnet34.bt_in1k": 75.176,
    "resnet34.ra4_e3600_r224_in1k": 77.492,
    "resnet50.am_in1k": 79.004,
    "resnet18.gluon_in1k": 70.844,
    "resnet34.gluon_in1k": 74.574,
    "resnet50.gluon_in1k": 77.58,
    "resnet101.gluon_in1k": 79.306,
    "resnet152.gluon_in1k": 79.712,
    "resnet18.tv_in1k": 69.752,
    "resnet34.tv_in1k": 73.298,
    "resnet50.tv_in1k": 76.156,
    "resnet101.tv_in1k": 77.404,
    "resnet152.tv_in1k": 78.33,
    "resnet50.tv2_in1k": 80.846,
    "resnet101.tv2_in1k": 79.908,
    "resnet152.tv2_in1k": 80.222,
    "resnet18.fb_ssl_yfcc100m_ft_in1k": 72.636,
    "resnet18.fb_swsl_ig1b_ft_in1k": 73.286,
    "resnet50.fb_ssl_yfcc100m_ft_in1k": 79.252,
    "resnet50.fb_swsl_ig1b_ft_in1k": 81.146,
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
    """Every `Weights` of GROUPS, in order."""
    for (family, licence), groups in GROUPS.items():
        for sizes, tags, *fields in groups:
            own = {key: value for part in fields for key, value in part.items()}
            for size, tag in product(sizes.split(), tags.split()):
                yield _row(f"{family}{size}", tag, {"licence": licence, "classes": 1000, **own})


def _row(name, tag, fields):
    full_name = f"{name}.{tag}"
    return Weights(
        name,
        tag,
        repository=f"timm/{full_name}",
        files=TIMM_FILES,
        score=SCORES.get(full_name),
        sha256=DIGESTS.get(full_name),
        **fields,
    )
