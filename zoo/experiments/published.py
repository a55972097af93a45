"""Zero-shot accuracies published for pretrained weights, for comparison with ours.

Source: open_clip's `docs/openclip_results.csv` (DataComp's 38 data sets, MIT). Correct implementations differ by about
0.3 points on CIFAR-10 and 2 points on MNIST.
"""

# weights                                               CIFAR-10  MNIST  (percent)
PUBLISHED = {
    "RN50.openai":                                          (71.57, 57.55),
    "RN101.openai":                                         (80.78, 52.54),
    "RN50x4.openai":                                        (79.43, 49.03),
    "RN50x16.openai":                                       (81.34, 67.98),
    "RN50x64.openai":                                       (85.10, 85.83),
    "ViT-B-32.openai":                                      (89.83, 48.39),
    "ViT-B-16.openai":                                      (90.77, 51.35),
    "ViT-L-14.openai":                                      (95.59, 76.34),
    "ViT-L-14-336.openai":                                  (94.93, 79.16),
    "convnext_base.laion400m_s13b_b51k":                    (88.99, 61.14),
    "convnext_base_w.laion2b_s13b_b82k":                    (93.83, 54.35),
    "convnext_base_w.laion2b_s13b_b82k_augreg":             (95.61, 64.41),
    "convnext_base_w.laion_aesthetic_s13b_b82k":            (83.05, 67.39),
    "convnext_base_w_320.laion_aesthetic_s13b_b82k":        (86.13, 66.47),
    "convnext_base_w_320.laion_aesthetic_s13b_b82k_augreg": (88.23, 72.19),
    "convnext_large_d.laion2b_s26b_b102k_augreg":           (96.55, 80.63),
    "convnext_large_d_320.laion2b_s29b_b131k_ft":           (96.47, 76.95),
    "convnext_large_d_320.laion2b_s29b_b131k_ft_soup":      (96.59, 74.34),
    "convnext_xxlarge.laion2b_s34b_b82k_augreg":            (98.16, 86.87),
    "convnext_xxlarge.laion2b_s34b_b82k_augreg_rewind":     (98.23, 79.30),
    "convnext_xxlarge.laion2b_s34b_b82k_augreg_soup":       (98.22, 82.77),
}  # fmt: skip
DATA = ("cifar10", "mnist")


def published_accuracy(name: str, data: str) -> float | None:
    """Return the published accuracy in [0, 1] of a pair's weights on a data set; None if there is none."""
    row = PUBLISHED.get(name.removeprefix("clip/"))
    return row[DATA.index(data)] / 100 if row and data in DATA else None
