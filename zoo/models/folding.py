"""Exact folding: a built model becomes a faster one with the same inputs and outputs, by float64 NumPy algebra.

LayerScale and BatchNorm are folded into the product before them, the affine part of a LayerNorm and GRN's offset into
the products after them, the branches of a multi-branch convolution into one convolution; dropout is removed. A token is
selected before the last layers that act on each token separately. Outputs differ by rounding only, and equal weights
give equal results on every backend.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import keras
import numpy as np
from keras import ops

from clip import CLIP
from convnext.keras_internals import graph_of, is_functional

# Class of a layer → prefix of the kernel and bias of the product at its end (OUT) or its beginning (IN).
BRANCHES = ("MobileOneConv2D", "RepLargeKernelConv2D", "RepMixer", "RepConditionalPosEnc")  # each equals a convolution
_LINEAR = {"Dense": "", "Conv2D": "", "DepthwiseConv2D": ""}
_LINEAR_OUT = {**_LINEAR, "SelfAttention": "out_proj.", **dict.fromkeys(BRANCHES, "reparam_conv.")}
_LINEAR_IN = {**_LINEAR, "SelfAttention": "in_proj."}
_BIAS_OPTIONS = {"": "use_bias", "in_proj.": "in_bias"}  # option that says whether the product has a bias
_ALONE = ("Dense", "Add", "LayerScale", "Activation", "Dropout")  # act on each token of (B, L, W) separately
_OUTPUT = "output"  # among a layer's users, where its result is an output of the model


def fold(model: keras.Model) -> keras.Model:
    """Return a faster model with the same inputs, outputs and names, for inference.

    It has its own weights, runs on every backend and is saved with `model.save("….keras")`. It is not meant for
    training: regularisation and normalisation layers are gone. Nested models are folded separately; a CLIP becomes a
    CLIP of folded towers.

    Args:
        model: a built functional `keras.Model`.

    Raises:
        ValueError: the model is not functional.
    """
    return fold_with_affine(model, None)[0]


def fold_with_affine(model, affine):
    """Return (`fold(model)`, whether `affine` was folded in too).

    Args:
        affine: None, or (factor, shift), (C,) each: the folded model takes images x in place of factor · x + shift.
            Possible only for a first convolution without padding: padded zeros would be scaled and shifted too.
    """
    if hasattr(model, "image_encoder") and hasattr(model, "text_encoder"):
        return _fold_pair(model, affine)
    check_functional(model)
    net = _Net(model)
    absorbed = affine is not None and _absorb_input(net, affine)
    for layer in list(net.users):
        rule = FOLDS.get(type(layer).__name__)
        if rule and net.is_called_once(layer):
            rule(net, layer)
    return net.build(), absorbed or any(net.absorbed)


def check_functional(model):
    """ValueError unless `model` is a functional model."""
    if not is_functional(model):
        raise ValueError(f"{type(model).__name__} {getattr(model, 'name', model)!r} is not a functional keras.Model.")


def _fold_pair(model, affine):
    """A CLIP of folded towers with the same logit scale."""
    image_tower, absorbed = fold_with_affine(model.image_encoder, affine)
    text_tower, _ = fold_with_affine(model.text_encoder, None)
    options = {"init_logit_scale": model.init_logit_scale, "init_logit_bias": model.init_logit_bias}
    pair = CLIP(image_tower, text_tower, name=model.name, **options)
    pair.logit_scale.set_weights(model.logit_scale.get_weights())
    return pair, absorbed


@dataclass
class _Draft:
    """A layer of the folded model before it is created: config, and the weights that differ.

    Weights are named by the attributes that lead to them, "kernel" or "in_proj.kernel", and are float64.
    """

    layer: keras.Layer
    config: dict
    weights: dict = field(default_factory=dict)

    def __getitem__(self, name):
        if name not in self.weights:
            self.weights[name] = to_numpy(operator.attrgetter(name)(self.layer))
        return self.weights[name]

    @property
    def kind(self):
        return type(self.layer).__name__

    @property
    def is_depthwise(self):
        return self.kind == "DepthwiseConv2D" or (self.kind in BRANCHES and self.config["filters"] is None)

    def bias(self, prefix, size):
        """Bias of a product, created with zeros where it has none."""
        option = _BIAS_OPTIONS.get(prefix)
        if option and not self.config[option]:
            self.weights[f"{prefix}bias"] = np.zeros(size)
            self.config[option] = True
        return self[f"{prefix}bias"]

    def scale_output(self, factor, shift=0.0):
        """Replace the product by factor · product + shift, (C,) each."""
        prefix = _LINEAR_OUT[self.kind]
        kernel, bias = self[f"{prefix}kernel"], self.bias(prefix, factor.size)
        per_output = factor.reshape(kernel.shape[2:]) if self.is_depthwise else factor
        self.weights |= {f"{prefix}kernel": kernel * per_output, f"{prefix}bias": bias * factor + shift}

    def scale_input(self, factor, shift):
        """Let the product take x in place of factor · x + shift, (C,) each."""
        prefix = _LINEAR_IN[self.kind]
        kernel = self[f"{prefix}kernel"]
        summed = (0, 1) if self.is_depthwise else tuple(range(kernel.ndim - 1))
        constant = (kernel * shift[:, None]).sum(axis=summed).reshape(-1)
        bias = self.bias(prefix, constant.size)
        self.weights |= {f"{prefix}kernel": kernel * factor[:, None], f"{prefix}bias": bias + constant}

    def make(self):
        """Create the layer without weights; it is built when it is called."""
        zeros = {key: "zeros" for key in self.config if key.endswith("_initializer")}
        return type(self.layer).from_config({**self.config, **zeros})

    def fill(self, made):
        """Set a built layer's weights: those that differ, and the others unchanged."""
        if not self.weights and len(made.weights) == len(self.layer.weights):
            made.set_weights(self.layer.get_weights())
            return
        kept = {_attribute(self.layer, variable): variable for variable in self.layer.weights}
        for variable in made.weights:
            name = _attribute(made, variable)
            value = self.weights[name] if name in self.weights else to_numpy(kept[name])
            variable.assign(value.astype("float32"))


def _attribute(layer, variable):
    """Attribute path from a layer to its variable: "gamma", "in_proj.kernel"."""
    return variable.path.split(f"{layer.name}/", 1)[-1].replace("/", ".")


class _Net:
    """A model's layers, the users of each, and the drafts of the folded layers.

    Attributes:
        users: layer → the layers that read it, and OUTPUT, in order.
        sources: layer → the layers that it reads.
    """

    def __init__(self, model):
        self.model = model
        self.graph = graph_of(model)
        self.sources: dict = {}
        self.users: dict = {layer: [] for layer in model.layers}
        self.times_called: dict = {}
        self.drafts: dict = {}
        self.skipped: set = set()
        self.nested: dict = {}  # nested model → affine to fold into it, or None
        self.absorbed: list = []
        self.early: dict = {}  # layer → the _EarlyToken to insert before it
        for call in self.graph.calls:
            self._connect(call)
        for tensor in self.graph.outputs:
            self.users[self.graph.source(tensor)].append(_OUTPUT)

    def _connect(self, call):
        operation = call.operation
        self.users.setdefault(operation, [])
        self.times_called[operation] = self.times_called.get(operation, 0) + 1
        for tensor in call.inputs:
            source = self.graph.source(tensor)
            self.sources.setdefault(operation, []).append(source)
            self.users.setdefault(source, []).append(operation)

    def is_called_once(self, layer):
        return self.times_called.get(layer) == 1

    def draft(self, layer):
        if layer not in self.drafts:
            self.drafts[layer] = _Draft(layer, layer.get_config())
        return self.drafts[layer]

    def skip(self, layer):
        """Remove a layer: its users read its input."""
        (source,) = self.sources[layer]
        self.skipped.add(layer)
        at = self.users[source].index(layer)
        self.users[source][at : at + 1] = self.users[layer]
        for user in self.users[layer]:
            if user is not _OUTPUT:
                self.sources[user] = [source if other is layer else other for other in self.sources[user]]

    def product_before(self, layer):
        """The layer whose product is read, unchanged, by this layer alone; None if there is none."""
        (source,) = self.sources[layer]
        fits = type(source).__name__ in _LINEAR_OUT and self.is_called_once(source) and self.users[source] == [layer]
        return source if fits and self.draft(source).config.get("activation") in (None, "linear") else None

    def products_after(self, layer):
        """The users of this layer if each begins with a product without padding; else ()."""
        users = list(self._readers(layer))
        return users if users and all(self._takes_affine(user) for user in users) else ()

    def _readers(self, layer):
        """The users of this layer, through reshapes that keep the channel axis."""
        for user in self.users[layer]:
            if type(user).__name__ == "Reshape" and user.input.shape[-1] == user.output.shape[-1]:
                yield from self._readers(user)
            else:
                yield user

    def _takes_affine(self, user):
        if user is _OUTPUT or type(user).__name__ not in _LINEAR_IN or not self.is_called_once(user):
            return False
        config = self.draft(user).config
        return config.get("padding", "valid") == "valid" and config.get("groups", 1) == 1

    def build(self):
        """Build the folded model."""
        made, old = {}, {}
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), self.model.input
        )

        def clone(layer):
            if layer not in made:
                made[layer] = self._make(layer)
                old[made[layer]] = layer
            return made[layer]

        def call(layer, *args, **kwargs):
            if layer is None:
                return args[0]
            if token := self.early.get(old[layer]):
                args = token.of(args, keras.tree.flatten(inputs))
            return layer(*args, **kwargs)

        model = keras.models.clone_model(self.model, inputs, clone_function=clone, call_function=call)
        for layer, new in made.items():
            if isinstance(layer, keras.Layer) and new is not None and layer not in self.nested:
                self.draft(layer).fill(new)
        return model

    def _make(self, layer):
        if layer in self.skipped:
            return None
        if isinstance(layer, keras.Model):
            new, absorbed = fold_with_affine(layer, self.nested.setdefault(layer, None))
            self.absorbed.append(absorbed)
            return new
        return self.draft(layer).make() if isinstance(layer, keras.Layer) else layer


@dataclass
class _EarlyToken:
    """A SelectToken moved before layers that it followed.

    Attributes:
        layer: the SelectToken.
        place: place of the ids it looks into among the model's inputs; None where it takes the first token.
    """

    layer: keras.Layer
    place: int | None
    taken: dict = field(default_factory=dict)

    def of(self, args, inputs):
        """A layer's arguments, with each (B, L, W) replaced by the selected token, (B, W)."""
        return keras.tree.map_structure(lambda x: self._take(x, inputs) if len(x.shape) == len("BLW") else x, args)

    def _take(self, x, inputs):
        if x not in self.taken:
            layer = type(self.layer).from_config(self.layer.get_config())
            self.taken[x] = layer(x) if self.place is None else layer(x, inputs[self.place])
        return self.taken[x]


def _absorb_input(net, affine):
    """Whether the users of the images folded the affine in; for a nested model it is known when it is built."""
    (images,) = (net.graph.source(tensor) for tensor in net.graph.inputs if len(tensor.shape) == 4)
    readers = net.users[images]
    if len(readers) == 1 and isinstance(readers[0], keras.Model):
        net.nested[readers[0]] = affine
        return False
    for reader in net.products_after(images):
        net.draft(reader).scale_input(*affine)
    return bool(net.products_after(images))


def _fold_scale(net, layer):
    """LayerScale: gamma into the product before it."""
    if before := net.product_before(layer):
        net.draft(before).scale_output(to_numpy(layer.gamma))
        net.skip(layer)


def _fold_batch_norm(net, layer):
    """BatchNorm of inference, gamma (x − mean) / √(variance + epsilon) + beta: into the product before or after it."""
    before, after = net.product_before(layer), net.products_after(layer)
    if not _is_last_axis(layer) or not (before or after):
        return
    factor, shift = batch_norm_affine(layer)
    if before:
        net.draft(before).scale_output(factor, shift)
    else:
        for user in after:
            net.draft(user).scale_input(factor, shift)
    net.skip(layer)


def batch_norm_affine(layer):
    """(factor, shift), (C,) each, float64, of a BatchNormalization in inference."""
    deviation = np.sqrt(to_numpy(layer.moving_variance) + layer.epsilon)
    factor = (to_numpy(layer.gamma) if layer.scale else 1.0) / deviation
    shift = (to_numpy(layer.beta) if layer.center else 0.0) - to_numpy(layer.moving_mean) * factor
    return factor, shift


def _fold_norm(net, layer):
    """LayerNorm: gain and offset into the products after it."""
    users = net.products_after(layer)
    if not users or not _is_last_axis(layer) or getattr(layer, "rms_scaling", False):
        return
    size = layer.input.shape[-1]
    gamma = to_numpy(layer.gamma) if layer.scale else np.ones(size)
    beta = to_numpy(layer.beta) if layer.center else np.zeros(size)
    for user in users:
        net.draft(user).scale_input(gamma, beta)
    net.draft(layer).config.update(scale=False, center=False)


def _is_last_axis(layer):
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    rank = len(layer.input.shape)
    return [axis % rank for axis in axes] == [rank - 1]


def _fold_grn(net, layer):
    """GRN: offset into the products after it."""
    beta = to_numpy(layer.beta)
    for user in net.products_after(layer):
        net.draft(user).scale_input(np.ones_like(beta), beta)
        net.draft(layer).weights["beta"] = np.zeros_like(beta)


def _fold_branches(net, layer):
    """Multi-branch convolution: the one convolution that it equals."""
    kernel, bias = layer.folded()
    draft = net.draft(layer)
    draft.config["reparameterized"] = True
    draft.weights |= {"reparam_conv.kernel": kernel, "reparam_conv.bias": bias}


def _select_token_early(net, layer):
    """SelectToken: before the layers whose results at other tokens are unused."""
    after: set = set()
    for other in reversed(list(net.users)):
        users = net.users[other]
        if users and after.issuperset(set(users) - {layer}) and net.is_called_once(other) and _sees_tokens_alone(other):
            after.add(other)
    for other in net.users:  # select from a sum over all tokens rather than from its terms
        if len(net.sources.get(other, ())) > 1 and after.isdisjoint(net.sources[other]):
            after.discard(other)
    read = {source for other in after for source in net.sources[other]} - after
    places = [_place_of_input(net.graph, source) for source in net.sources[layer][1:]]
    if len(read) == 1 and None not in places:
        net.early |= dict.fromkeys(after, _EarlyToken(layer, *places or [None]))
        net.skipped.add(layer)


def _sees_tokens_alone(layer):
    name = type(layer).__name__
    return name in _ALONE or (name == "LayerNormalization" and layer.axis in (-1, [-1]))


def _place_of_input(graph, layer):
    """Index of a layer among the model's inputs, or None."""
    return next((i for i, tensor in enumerate(graph.inputs) if graph.source(tensor) is layer), None)


# Class of a layer → rule. A rule gets the net and a layer that is called once.
FOLDS: dict[str, Callable] = {
    **dict.fromkeys(("Dropout", "SpatialDropout2D", "GaussianNoise"), _Net.skip),  # without effect in inference
    "LayerScale": _fold_scale,
    "BatchNormalization": _fold_batch_norm,
    "LayerNormalization": _fold_norm,
    "GRN": _fold_grn,
    "SelectToken": _select_token_early,
    **dict.fromkeys(BRANCHES, _fold_branches),
}


def to_numpy(variable):
    """A weight as float64, whatever its dtype. NumPy casts: JAX would compile a cast for each shape."""
    return ops.convert_to_numpy(variable).astype(np.float64)
