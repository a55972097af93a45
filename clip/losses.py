"""Contrastive losses: functions of the logits (N, N) between N images (rows) and their N captions (columns)."""

from keras import ops

from clip.batches import check_labels


def clip_loss(logits, labels=None):
    """Return the mean of the cross-entropies image → text and text → image, a scalar.

    Args:
        logits: float32 (N, N), exp(logit_scale) · cosine.
        labels: int (N,), or None if each caption belongs to one image only. Pairs of equal labels are positives of
            each other; each row of targets sums to 1.

    Reference: arXiv:2103.00020, figure 3; soft targets: arXiv:2204.03610, equation 3.
    """
    positives = ops.cast(agreement(logits, labels), logits.dtype)
    targets = positives / ops.sum(positives, axis=-1, keepdims=True)  # symmetric: rows and columns agree
    rows, columns = ops.log_softmax(logits, axis=-1), ops.log_softmax(logits, axis=0)
    image_to_text = -ops.mean(ops.sum(targets * rows, axis=1))
    text_to_image = -ops.mean(ops.sum(targets * columns, axis=0))
    return (image_to_text + text_to_image) / 2


def siglip_loss(logits, labels=None):
    """Return the sigmoid loss of all image–text combinations, summed over captions, averaged over images, a scalar.

    Args:
        logits: float32 (N, N), exp(logit_scale) · cosine + logit_bias.
        labels: int (N,), or None; combinations of equal labels are positives (+1), all others negatives (−1).

    Reference: arXiv:2303.15343, equation 1.
    """
    signs = 2.0 * ops.cast(agreement(logits, labels), logits.dtype) - 1.0
    return -ops.mean(ops.sum(ops.log_sigmoid(signs * logits), axis=-1))


def distillation_loss(logits, teacher_logits):
    """Return the mean of the cross-entropies with a teacher's distributions, image → text and text → image, a scalar.

    Args:
        logits: float32 (N, N), of the student.
        teacher_logits: float32 (N, N), of the same images and captions; each model has its own temperature.

    Reference: arXiv:2307.12732, contrastive relational distillation, without the teacher's entropy, which is constant;
        open_clip's `DistillClipLoss`.
    """
    image_to_text, text_to_image = (
        -ops.mean(ops.sum(ops.softmax(teacher_logits, axis=axis) * ops.log_softmax(logits, axis=axis), axis=axis))
        for axis in (-1, 0)
    )
    return (image_to_text + text_to_image) / 2


def agreement(logits, labels=None):
    """Return which image belongs to which caption: bool (N, N).

    Raises:
        ValueError: labels of another shape than (N,).
    """
    if labels is None:
        labels = ops.arange(ops.shape(logits)[0])
    else:
        check_labels(labels, logits.shape[0])
    return ops.equal(ops.expand_dims(labels, 1), ops.expand_dims(labels, 0))


LOSSES = {"clip": clip_loss, "siglip": siglip_loss}
