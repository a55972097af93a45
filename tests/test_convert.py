"""Rule tables against files: every key once, every variable once, both directions, and failures that change nothing."""

import re
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip
import convnext
import zoo
from zoo import cli
from zoo import weights as convert
from zoo.bench import parity
from zoo.weights import engine, load_weights

pytestmark = [pytest.mark.backend, pytest.mark.once]

V1 = convnext.Variant((1, 2), (8, 16))
RESNET = convnext.ResNetVariant((1, 2), (8, 16), stem_dim=8)
BASIC = convnext.ResNetVariant((1, 2), (8, 16), stem_dim=8, block="basic")
TEXT = clip.Text(width=16, heads=2, layers=2, vocabulary_size=60)
VIT_PAIR = clip.Pair(8, 32, clip.ViT(16, 2, 16, head_width=8), TEXT)

CLASSIFIERS = {
    "v1": lambda **options: convnext.create_convnext_v1(V1, 5, (32, 32, 3), **options),
    "v2": lambda **options: convnext.create_convnext_v2(V1, 5, (32, 32, 3), **options),
    "bottleneck": lambda **options: convnext.create_resnet(RESNET, 5, (32, 32, 3), **options),
    "basic": lambda **options: convnext.create_resnet(BASIC, 5, (32, 32, 3), **options),
}


def vit_pair(bias=None):
    return clip.create_clip(VIT_PAIR, init_logit_bias=bias)


def convnext_pair(projection="linear"):
    trunk = convnext.create_convnext_v2(V1, input_shape=(32, 32, 3), include_top=False, pooling="avg")
    layer = {"linear": "head_proj", "mlp": "head_mlp_fc1"}[projection]

    x = keras.layers.Dense(8, use_bias=projection == "mlp", name=layer)(trunk.output)
    if projection == "mlp":
        x = keras.layers.Dense(8, use_bias=False, name="head_mlp_fc2")(x)
    return clip.CLIP(keras.Model(trunk.input, x), clip.create_text_tower(TEXT, 8))


def resnet_pair():
    return clip.create_clip(clip.Pair(8, 32, clip.ResNet((1, 1, 2, 1), 4), TEXT))


def format_named(name):
    return next(source for source in convert.FORMATS if source.name == name)


def fill(model, seed=1):
    """Gives every variable values of its own."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))
    return model


def values(model):
    import keras

    return [keras.ops.convert_to_numpy(variable.value) for variable in model.weights]


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def write(path, tensors):
    save_file({key: np.ascontiguousarray(value).reshape(value.shape) for key, value in tensors.items()}, path)
    return path


# Both directions


MADE_FOR = [
    ("timm ConvNeXt", CLASSIFIERS["v1"]),
    ("timm ConvNeXt with conv_mlp", CLASSIFIERS["v2"]),
    ("timm ConvNeXt of features_only", lambda: CLASSIFIERS["v1"](include_top=False)),
    ("timm ConvNeXt of features_only with conv_mlp", lambda: CLASSIFIERS["v2"](include_top=False)),
    ("timm or torchvision ResNet", CLASSIFIERS["bottleneck"]),
    ("timm or torchvision ResNet", CLASSIFIERS["basic"]),
    ("facebookresearch ConvNeXt", CLASSIFIERS["v1"]),
    ("facebookresearch ConvNeXt", CLASSIFIERS["v2"]),
    ("facebookresearch FCMAE with sparse layers", lambda: CLASSIFIERS["v2"](include_top=False)),
    ("torchvision ConvNeXt", CLASSIFIERS["v1"]),
    ("transformers ConvNeXt", CLASSIFIERS["v1"]),
    ("transformers ConvNeXt-V2", CLASSIFIERS["v2"]),
    ("transformers ConvNeXt or ConvNeXt-V2", CLASSIFIERS["v1"]),
    ("transformers ResNet", CLASSIFIERS["bottleneck"]),
    ("transformers ResNet", CLASSIFIERS["basic"]),
    ("transformers CLIP", vit_pair),
    ("open_clip with a ViT", lambda: vit_pair(bias=-10.0)),
    ("open_clip's custom-text layout with a ViT", lambda: vit_pair(bias=-10.0)),
    ("open_clip's custom-text layout with a ResNet", resnet_pair),
    ("open_clip's custom-text layout with a ConvNeXt", lambda: convnext_pair("mlp")),
    ("open_clip's custom-text layout with a ConvNeXt with conv_mlp", convnext_pair),
    ("open_clip with a ConvNeXt", lambda: convnext_pair("mlp")),
    ("open_clip with a ConvNeXt with conv_mlp", convnext_pair),
    ("open_clip with a ResNet", resnet_pair),
    ("open_clip's image tower, a ResNet", lambda: resnet_pair().image_encoder),
    ("timm's ResNet with an attention pool", lambda: resnet_pair().image_encoder),
    ("open_clip's image tower, a ViT", lambda: vit_pair().image_encoder),
    ("open_clip's image tower, a ConvNeXt", lambda: convnext_pair().image_encoder),
    ("open_clip's image tower, a ConvNeXt with conv_mlp", lambda: convnext_pair().image_encoder),
    ("open_clip's text tower", lambda: vit_pair().text_encoder),
]


def test_every_format_is_tried_below():
    from test_convert_mobileclip import MADE_FOR as OF_MOBILECLIP

    tried = {name for name, _ in (*MADE_FOR, *OF_MOBILECLIP)}
    assert {source.name for source in convert.FORMATS} == tried


@pytest.mark.parametrize(("name", "create"), MADE_FOR)
def test_what_is_exported_loads_again_and_is_recognised(tmp_path, name, create):
    source = fill(create())
    tensors = convert.export_tensors(source, format_named(name))
    assert len(tensors) >= len(source.weights)
    target = create()
    report = load_weights(target, write(tmp_path / "m.safetensors", tensors))
    assert (report.format, report.loaded, report.ignored) == (name, len(target.weights), {})
    assert_equal(values(target), values(source))


ORACLES = [
    "timm-convnext_atto",
    "timm-convnextv2_atto",
    "timm-convnext_epsilon_1e-5",
    "timm-resnet18",
    "facebook-convnext_base-narrow",
    "facebook-convnextv2_base-narrow",
    "facebook-convnextv2_pico_fcmae-narrow",
    "facebook-convnextv2_pico_fcmae_sparse-narrow",
    "torchvision-convnext_small-narrow",
    "torchvision-resnet50-narrow",
    "transformers-convnextv2_tiny-narrow",
    "transformers-resnet50-narrow",
    "transformers-ViT-small-32",
    "open_clip-convnext_v2_atto",
    "open_clip-convnext_tiny_mlp",
]


@pytest.mark.parametrize("name", ORACLES)
def test_a_reference_file_comes_back_bit_for_bit(oracle_dir, name):
    import json

    folder = oracle_dir / name
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    model = parity.load_case(folder, case)
    original = load_file(folder / "model.safetensors")
    source = engine.detect(original, convert.FORMATS)
    returned = convert.export_tensors(model, source)
    report = load_weights(model, folder / "model.safetensors")
    assert {key for key in original if key not in returned} == set(report.ignored)
    for key, value in returned.items():
        np.testing.assert_array_equal(value, original[key], err_msg=key)


# Key lists written down by hand, from the authors' own checkpoints

FACEBOOK_V2 = """
downsample_layers.0.0.weight downsample_layers.0.0.bias downsample_layers.0.1.weight downsample_layers.0.1.bias
downsample_layers.1.0.weight downsample_layers.1.0.bias downsample_layers.1.1.weight downsample_layers.1.1.bias
stages.0.0.dwconv.weight stages.0.0.dwconv.bias stages.0.0.norm.weight stages.0.0.norm.bias
stages.0.0.pwconv1.weight stages.0.0.pwconv1.bias stages.0.0.grn.gamma stages.0.0.grn.beta
stages.0.0.pwconv2.weight stages.0.0.pwconv2.bias
stages.1.0.dwconv.weight stages.1.0.dwconv.bias stages.1.0.norm.weight stages.1.0.norm.bias
stages.1.0.pwconv1.weight stages.1.0.pwconv1.bias stages.1.0.grn.gamma stages.1.0.grn.beta
stages.1.0.pwconv2.weight stages.1.0.pwconv2.bias
stages.1.1.dwconv.weight stages.1.1.dwconv.bias stages.1.1.norm.weight stages.1.1.norm.bias
stages.1.1.pwconv1.weight stages.1.1.pwconv1.bias stages.1.1.grn.gamma stages.1.1.grn.beta
stages.1.1.pwconv2.weight stages.1.1.pwconv2.bias norm.weight norm.bias head.weight head.bias
"""
OPENAI_BLOCK = """
{0}.ln_1.weight {0}.ln_1.bias {0}.attn.in_proj_weight {0}.attn.in_proj_bias {0}.attn.out_proj.weight
{0}.attn.out_proj.bias {0}.ln_2.weight {0}.ln_2.bias {0}.mlp.c_fc.weight {0}.mlp.c_fc.bias {0}.mlp.c_proj.weight
{0}.mlp.c_proj.bias
"""
OPENAI_VIT = (
    "positional_embedding text_projection logit_scale token_embedding.weight ln_final.weight ln_final.bias "
    "visual.class_embedding visual.positional_embedding visual.proj visual.conv1.weight visual.ln_pre.weight "
    "visual.ln_pre.bias visual.ln_post.weight visual.ln_post.bias"
) + "".join(OPENAI_BLOCK.format(f"{tower}transformer.resblocks.{i}") for tower in ("", "visual.") for i in (0, 1))


@pytest.mark.parametrize(
    ("name", "create", "keys"),
    [
        ("facebookresearch ConvNeXt", CLASSIFIERS["v2"], FACEBOOK_V2),
        ("open_clip with a ViT", vit_pair, OPENAI_VIT),
    ],
)
def test_exported_keys_are_the_authors(name, create, keys):
    tensors = convert.export_tensors(create(), format_named(name))
    assert sorted(tensors) == sorted(keys.split())


def test_layouts_are_the_authors():
    tensors = convert.export_tensors(CLASSIFIERS["v2"](), format_named("facebookresearch ConvNeXt"))
    assert tensors["downsample_layers.0.0.weight"].shape == (8, 3, 4, 4)
    assert tensors["stages.0.0.dwconv.weight"].shape == (8, 1, 7, 7)
    assert tensors["stages.0.0.pwconv1.weight"].shape == (32, 8)
    assert tensors["stages.0.0.grn.gamma"].shape == (1, 1, 1, 32)
    tensors = convert.export_tensors(vit_pair(), format_named("open_clip with a ViT"))
    assert tensors["transformer.resblocks.0.attn.in_proj_weight"].shape == (48, 16)
    assert tensors["visual.proj"].shape == (16, 8)


def test_numbers_openai_stores_beside_the_weights_are_ignored_by_name(tmp_path):
    tensors = convert.export_tensors(fill(vit_pair()), format_named("open_clip with a ViT"))
    tensors |= {"input_resolution": np.int64(224), "context_length": np.int64(77), "vocab_size": np.int64(49408)}
    report = load_weights(vit_pair(), write(tmp_path / "m.safetensors", tensors))
    assert set(report.ignored) == {"input_resolution", "context_length", "vocab_size"}


def test_a_resnets_counters_are_ignored_by_name(tmp_path):
    tensors = convert.export_tensors(CLASSIFIERS["basic"](), format_named("timm or torchvision ResNet"))
    tensors["bn1.num_batches_tracked"] = np.int64(9)
    report = load_weights(CLASSIFIERS["basic"](), write(tmp_path / "m.safetensors", tensors))
    assert list(report.ignored) == ["bn1.num_batches_tracked"]
    assert "counter" in str(report)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("head.pre_logits.fc.weight", "a hidden layer before the classifier"),
        ("norm_pre.weight", "its last norm before the pooling"),
        ("stem.2.weight", "a stem of several convolutions"),
    ],
)
def test_variants_of_timms_that_are_no_rows_are_refused_by_name(tmp_path, key, what):
    tensors = convert.export_tensors(CLASSIFIERS["v1"](), format_named("timm ConvNeXt"))
    model = fill(CLASSIFIERS["v1"](), seed=2)
    before = values(model)
    path = write(tmp_path / "m.safetensors", tensors | {key: np.zeros(3, np.float32)})
    for strict in (True, False):
        with pytest.raises(ValueError, match=rf"timm ConvNeXt and has {what} \({re.escape(key)}\)"):
            load_weights(model, path, strict=strict)
    assert_equal(values(model), before)


def test_a_classifier_of_all_of_imagenet_22k(tmp_path):
    row = convnext.Variant((1, 1), (4, 8))
    create = lambda: convnext.create_convnext_v1(row, 21841, (32, 32, 3))  # noqa: E731
    tensors = convert.export_tensors(fill(create()), format_named("timm ConvNeXt"))
    source = engine.detect(tensors, convert.FORMATS)
    assert convert.classes(tensors, source) == 21841
    assert load_weights(create(), write(tmp_path / "m.safetensors", tensors)).loaded == len(tensors)


# Parts of models and parts of files


def pair_file(folder, model):
    name = "open_clip with a ViT" if model.image_encoder.layers[1].name == "conv1" else "open_clip with a ConvNeXt"
    return write(folder / "pair.safetensors", convert.export_tensors(model, format_named(name)))


@pytest.mark.parametrize("tower", ["image_encoder", "text_encoder"])
def test_one_tower_takes_its_own_from_a_pairs_file(tmp_path, tower):
    source, target = fill(vit_pair()), vit_pair()
    report = load_weights(getattr(target, tower), pair_file(tmp_path, source))
    assert_equal(values(getattr(target, tower)), values(getattr(source, tower)))
    other = "text" if tower == "image_encoder" else "image"
    assert f"Ignored ({other} tower, which this model does not have)" in str(report)
    assert report.loaded + len(report.ignored) == len(source.weights)


def test_a_classifiers_trunk_takes_a_pairs_image_tower(tmp_path):
    source = fill(convnext_pair())
    trunk = CLASSIFIERS["v2"](include_top=False, pooling="avg")
    report = load_weights(trunk, pair_file(tmp_path, source))
    assert_equal(values(trunk), values(source.image_encoder)[:-1])
    assert report.ignored["visual.head.proj.weight"] == "head, which this model does not have"


@pytest.mark.parametrize("pooling", [None, "avg"])
def test_a_trunk_leaves_the_classifier_of_a_file_aside(tmp_path, pooling):
    source = fill(CLASSIFIERS["v1"]())
    path = write(tmp_path / "m.safetensors", convert.export_tensors(source, format_named("timm ConvNeXt")))
    report = load_weights(CLASSIFIERS["v1"](include_top=False, pooling=pooling), path)
    assert {key.rpartition(".")[0] for key in report.ignored} == {"head.fc"} | ({"head.norm"} if not pooling else set())


def test_a_classifier_file_fills_an_image_tower_only_when_asked(tmp_path):
    source = fill(CLASSIFIERS["v2"]())
    path = write(tmp_path / "m.safetensors", convert.export_tensors(source, format_named("timm ConvNeXt")))
    pair = convnext_pair()
    before = values(pair)
    with pytest.raises(ValueError, match="head_proj/kernel"):
        load_weights(pair.image_encoder, path)
    assert_equal(values(pair), before)
    report = load_weights(pair.image_encoder, path, strict=False)
    assert report.missing == ("head_proj/kernel (no rule)",)
    assert_equal(values(pair.image_encoder)[:-1], values(source)[:-2])


def test_the_weights_of_a_bias_that_the_model_lacks_are_left_over(tmp_path):
    path = pair_file(tmp_path, vit_pair(bias=-10.0))
    with pytest.raises(ValueError, match=r"Unexpected \(1\): logit_bias"):
        load_weights(vit_pair(), path)
    assert load_weights(vit_pair(), path, strict=False).unexpected == ("logit_bias",)


def test_the_assumed_activation_is_noted(tmp_path, oracle_dir):
    from zoo import create_model

    model = create_model("clip/convnext_v2_atto", init_logit_bias=0.0, stem_stride=4)
    report = load_weights(model, oracle_dir / "open_clip-convnext_v2_atto" / "model.safetensors")
    assert "the model's, gelu, is assumed" in str(report)


# What does not fit


def damage(tensors):
    """Three things wrong at once."""
    tensors["stem.0.weight"] = np.zeros((9, 3, 4, 4), np.float32)
    del tensors["stages.1.blocks.1.gamma"]
    tensors["stages.1.blocks.2.gamma"] = np.zeros(16, np.float32)
    return tensors


def test_a_failure_lists_everything_and_changes_nothing(tmp_path):
    tensors = damage(convert.export_tensors(fill(CLASSIFIERS["v1"]()), format_named("timm ConvNeXt")))
    model = fill(CLASSIFIERS["v1"](), seed=2)
    before = values(model)
    with pytest.raises(ValueError) as caught:
        load_weights(model, write(tmp_path / "m.safetensors", tensors))
    message = str(caught.value)
    assert "stem.0.weight: shape (9, 3, 4, 4), stem_conv/kernel needs (8, 3, 4, 4)" in message
    assert "Missing (1): stages.1.blocks.1.gamma (for stages_1_blocks_1_gamma/gamma)" in message
    assert "Unexpected (1): stages.1.blocks.2.gamma" in message
    assert "format of timm ConvNeXt" in message
    assert_equal(values(model), before)


def test_a_wrong_shape_is_refused_even_when_not_strict(tmp_path):
    tensors = damage(convert.export_tensors(CLASSIFIERS["v1"](), format_named("timm ConvNeXt")))
    model = fill(CLASSIFIERS["v1"](), seed=2)
    before = values(model)
    with pytest.raises(ValueError, match=r"stem\.0\.weight: shape"):
        load_weights(model, write(tmp_path / "m.safetensors", tensors), strict=False)
    assert_equal(values(model), before)


def test_missing_and_left_over_are_reported_when_not_strict(tmp_path):
    tensors = damage(convert.export_tensors(fill(CLASSIFIERS["v1"]()), format_named("timm ConvNeXt")))
    tensors["stem.0.weight"] = np.zeros((8, 3, 4, 4), np.float32)
    del tensors["stem.1.bias"]
    report = load_weights(CLASSIFIERS["v1"](), write(tmp_path / "m.safetensors", tensors), strict=False)
    assert len(report.missing) == 2
    assert report.unexpected == ("stages.1.blocks.2.gamma",)
    assert "Missing from the file" in str(report)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float32([np.nan] + [0] * 7), r"1 of 8 values are NaN or infinite"),
        (np.float32([np.inf] * 8), r"8 of 8 values"),
        (np.int64([1] * 8), r"dtype int64"),
        (np.float32([[1] * 8]), r"shape \(1, 8\)"),
    ],
)
def test_values_that_no_weight_has(tmp_path, value, message):
    tensors = convert.export_tensors(CLASSIFIERS["v1"](), format_named("timm ConvNeXt"))
    tensors["stem.0.bias"] = value
    model = fill(CLASSIFIERS["v1"]())
    before = values(model)
    with pytest.raises(ValueError, match=rf"stem\.0\.bias: {message}"):
        load_weights(model, write(tmp_path / "m.safetensors", tensors))
    assert_equal(values(model), before)


def test_the_wrong_family_is_refused(tmp_path):
    tensors = convert.export_tensors(CLASSIFIERS["v1"](), format_named("timm ConvNeXt"))
    with pytest.raises(ValueError, match=r"timm ConvNeXt and does not fit this model(.|\n)*conv1/kernel \(no rule\)"):
        load_weights(CLASSIFIERS["basic"](), write(tmp_path / "m.safetensors", tensors))


def test_unknown_keys_name_the_known_formats(tmp_path):
    path = write(tmp_path / "m.safetensors", {"encoder.x": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match=r"encoder\.x.*timm ConvNeXt"):
        load_weights(CLASSIFIERS["v1"](), path)


def test_layers_of_the_users_own_have_no_rule(tmp_path):
    import keras

    trunk = CLASSIFIERS["v1"](include_top=False, pooling="avg")
    model = keras.Model(trunk.input, keras.layers.Dense(2, name="mine")(trunk.output))
    tensors = convert.export_tensors(fill(CLASSIFIERS["v1"]()), format_named("timm ConvNeXt"))
    path = write(tmp_path / "m.safetensors", tensors)
    with pytest.raises(ValueError, match=r"mine/kernel \(no rule\)"):
        load_weights(model, path)
    assert len(load_weights(model, path, strict=False).missing) == 2


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_load_exactly(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch_file

    tensors = convert.export_tensors(fill(CLASSIFIERS["v1"]()), format_named("timm ConvNeXt"))
    halves = {key: value.astype(dtype) for key, value in tensors.items()}
    as_torch = {
        key: torch.from_numpy(value.copy()).to(getattr(torch, np.dtype(dtype).name)) for key, value in tensors.items()
    }
    save_torch_file(as_torch, tmp_path / "m.safetensors")
    model = CLASSIFIERS["v1"]()
    load_weights(model, tmp_path / "m.safetensors")
    returned = convert.export_tensors(model, format_named("timm ConvNeXt"))
    for key, value in halves.items():
        np.testing.assert_array_equal(returned[key], value.astype(np.float32))


@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_other_containers_load_the_same(tmp_path, suffix):
    source, target = fill(CLASSIFIERS["v1"]()), CLASSIFIERS["v1"]()
    tensors = convert.export_tensors(source, format_named("timm ConvNeXt"))
    path = Path(tmp_path / f"m{suffix}")
    if suffix == ".npz":
        np.savez(path, **tensors)
    else:
        torch = pytest.importorskip("torch")
        torch.save({"state_dict": {k: torch.from_numpy(v.copy()) for k, v in tensors.items()}}, path)
    load_weights(target, path)
    assert_equal(values(target), values(source))


def test_two_rules_for_one_key_are_a_tables_fault():
    table = engine.Format("twice", {}, {"image": (("{*}", "{*}"), ("{*}", "{*}"))})
    with pytest.raises(ValueError, match="Two rules of twice claim the same"):
        engine.match_slots(CLASSIFIERS["v1"](), table)


def test_averaged_weights_are_reported_and_may_be_refused_at_every_door(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    options = {"num_classes": 3, "input_shape": (32, 32, 3), "stem_stride": 4}
    raw = zoo.create_model("convnextv2_atto", **options)
    zoo.export_weights(raw, tmp_path / "raw.safetensors", format="timm")
    state = {key: torch.tensor(value) for key, value in load_file(tmp_path / "raw.safetensors").items()}
    path = tmp_path / "both.pth"
    torch.save({"state_dict": state, "state_dict_ema": {key: value + 1 for key, value in state.items()}}, path)

    def bias(model):
        return float(keras.ops.convert_to_numpy(model.get_layer("head_fc").bias)[0])

    report = zoo.load_weights(raw, path)
    assert bias(raw) == 1.0 and "the averaged ones, 'state_dict_ema', are taken, not 'state_dict'" in str(report)
    assert "the raw ones" in str(zoo.load_weights(raw, path, ema=False)) and bias(raw) == 0.0
    with pytest.warns(UserWarning, match="averaged ones, 'state_dict_ema'"):
        assert bias(zoo.create_model("convnextv2_atto", weights=path, **options)) == 1.0
    with pytest.warns(UserWarning, match="raw ones, 'state_dict'"):
        assert bias(zoo.create_model("convnextv2_atto", weights=path, ema=False, **options)) == 0.0
    for given, expected in (([], 1.0), (["--no-ema"], 0.0)):
        out = tmp_path / "out.safetensors"
        assert cli.main(["convert", str(path), str(out), "--arch", "convnextv2_atto", *given]) == 0
        assert "holds raw and averaged weights" in capsys.readouterr().err
        assert bias(zoo.load(out).model) == expected


@pytest.mark.parametrize("format", ["open_clip", "ours"])
def test_a_pair_with_a_bias_takes_weights_without_one(tmp_path, format):
    plain, biased = vit_pair(), vit_pair(bias=-10.0)
    plain.logit_scale.logit_scale.assign(3.0)
    if format == "ours":
        zoo.save(plain, tmp_path / "w.safetensors")
    else:
        zoo.export_weights(plain, tmp_path / "w.safetensors", format=format)
    report = load_weights(biased, tmp_path / "w.safetensors")
    assert "The file has no logit bias; the model's, -10, is kept." in report.notes
    scale, bias = (float(keras.ops.convert_to_numpy(v)) for v in biased.logit_scale.weights)
    assert (scale, bias) == (3.0, -10.0)


PREFIXED = {
    "model.": ("timm ConvNeXt", CLASSIFIERS["v1"]),
    "net.module.": ("timm or torchvision ResNet", CLASSIFIERS["bottleneck"]),
    "_orig_mod.student.backbone.": ("facebookresearch ConvNeXt", CLASSIFIERS["v2"]),
    "lit_clip.": ("open_clip with a ViT", vit_pair),
    "clip.": ("transformers CLIP", vit_pair),
}


@pytest.mark.parametrize("prefix", PREFIXED)
def test_a_prefix_of_every_key_is_removed_and_reported(tmp_path, prefix):
    name, create = PREFIXED[prefix]
    model = fill(create())
    expected = values(model)
    tensors = {prefix + key: value for key, value in convert.export_tensors(model, format_named(name)).items()}
    report = load_weights(fill(model, 2), write(tmp_path / "w.safetensors", tensors))
    assert_equal(values(model), expected)
    assert f"The prefix {prefix.removeprefix('_orig_mod.')!r} of all keys was removed." in report.notes
    tensors["other.weight"] = np.zeros(1, np.float32)  # not a prefix of all keys
    with pytest.raises(ValueError, match="match no known format"):
        load_weights(model, write(tmp_path / "w.safetensors", tensors))


@pytest.mark.parametrize("prefix", ["", "text."])
def test_a_scale_of_shape_1_and_mask_buffers(tmp_path, prefix):
    model = fill(vit_pair(bias=-10.0))
    expected = values(model)
    layout = "open_clip's custom-text layout" if prefix else "open_clip"
    tensors = convert.export_tensors(model, format_named(f"{layout} with a ViT"))
    tensors |= {key: tensors[key].reshape(1) for key in ("logit_scale", "logit_bias")}
    tensors[f"{prefix}attn_mask"] = np.zeros((77, 77), np.float32)
    report = load_weights(fill(model, 2), write(tmp_path / "w.safetensors", tensors))
    assert_equal(values(model), expected)
    assert set(report.ignored) == {f"{prefix}attn_mask"}


STEMS = {
    "timm ConvNeXt": (convnext.create_convnext_v1, V1),
    "transformers ConvNeXt-V2": (convnext.create_convnext_v2, V1),
    "timm or torchvision ResNet": (convnext.create_resnet, BASIC),
}


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", STEMS)
def test_the_stem_takes_other_channels_from_rgb(tmp_path, name, channels):
    """As timm's in_chans: one channel sums the kernels, n channels repeat them times 3/n."""
    create, row = STEMS[name]
    rgb, model = fill(create(row, 5, (32, 32, 3))), create(row, 5, (32, 32, channels))
    zoo.save(rgb, tmp_path / "own.safetensors")
    write(tmp_path / "theirs.safetensors", convert.export_tensors(rgb, format_named(name)))
    kernel, *others = values(rgb)
    repeated = np.concatenate([kernel, kernel], 2)[:, :, :channels] * 3 / channels
    expected = kernel.sum(2, keepdims=True) if channels == 1 else repeated
    for file in ("own.safetensors", "theirs.safetensors"):
        (note,) = (note for note in load_weights(fill(model, 2), tmp_path / file).notes if "channels became" in note)
        assert f"the file's 3 channels became the model's {channels}" in note
        np.testing.assert_allclose(values(model)[0], expected, rtol=1e-6)
        assert_equal(values(model)[1:], others)


@pytest.mark.parametrize("name", STEMS)
def test_a_stem_from_other_channels_than_rgb_is_refused(tmp_path, name):
    create, row = STEMS[name]
    zoo.save(create(row, 5, (32, 32, 4)), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="shape"):
        load_weights(create(row, 5, (32, 32, 3)), tmp_path / "w.safetensors")
