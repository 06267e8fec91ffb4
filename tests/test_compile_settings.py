"""What the small JSON files of a checkpoint become in a bundle, against what transformers makes of the same files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from eyespot import images
from eyespot.bundle import open_bundle
from eyespot.checkpoint import open_checkpoint
from eyespot.compile import Options, compile_model
from eyespot.errors import EyespotError
from eyespot.resolution import InternVL
from eyespot.run.processor import load_processor
from test_processor import noise

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
LISTED = {str(i): {"content": text, "special": True} for text, i in models.token_ids().items()}
TOKENS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # tokenizer_config.json, special_tokens_map.json
    "only in the map": ({}, {"eos_token": END, "bos_token": START, "additional_special_tokens": [PAD]}),
    "as objects": ({}, {"eos_token": {"content": END, "lstrip": False, "rstrip": False, "normalized": False}}),
    "in both": ({"eos_token": PAD, "pad_token": PAD}, {"eos_token": END}),
    "null in the config": ({"eos_token": END, "bos_token": None}, {"bos_token": START}),
    "null in the map": ({"eos_token": END}, {"eos_token": None}),
    "a config with its own list": ({"eos_token": END, "bos_token": None, "added_tokens_decoder": LISTED},
                                   {"eos_token": PAD, "bos_token": START}),
}  # fmt: skip
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("case", TOKENS)
def test_special_tokens_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    settings, older = TOKENS[case]
    models.tiny_llama(tmp_path / "c")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (tmp_path / "c" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "c" / "special_tokens_map.json").write_text(json.dumps(older))
    (tmp_path / "c" / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "c" / "generation_config.json").unlink()
    compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", Options(scheme="f32"))
    bundle = open_bundle(tmp_path / "b", verify=True)
    truth = AutoTokenizer.from_pretrained(tmp_path / "c")
    processor = load_processor(bundle)
    found = {name: token for name, token in processor.variables.items() if name.endswith("_token")}
    assert found == {name: token for name, token in truth.special_tokens_map.items() if name.endswith("_token")}
    assert truth.eos_token_id is None or truth.eos_token_id in bundle.settings.stop_tokens
    messages = [{"role": "user", "content": "a"}]
    rendered = truth.apply_chat_template(messages, tokenize=False)
    assert processor.chat(processor.messages("a")).text == rendered


def test_a_config_without_special_tokens_is_carried_as_it_came(tmp_path: Path) -> None:
    models.tiny_llama(tmp_path / "c")
    for older in (None, {"eos_token": END, "additional_special_tokens": [PAD]}):
        if older is not None:
            (tmp_path / "c" / "special_tokens_map.json").write_text(json.dumps(older))
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", Options(scheme="f32"))
        came = (tmp_path / "c" / "tokenizer_config.json").read_bytes()
        assert (tmp_path / "b" / "tokenizer_config.json").read_bytes() == came


WRITTEN = {  # what transformers writes for InternVL3-1B-hf, at the tiny model's size
    "crop_size": None, "crop_to_patches": False, "data_format": "channels_first", "default_to_square": True,
    "do_center_crop": None, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
    "image_mean": models.MEAN, "image_processor_type": "GotOcr2ImageProcessorFast", "image_std": models.STD,
    "input_data_format": None, "max_patches": 12, "min_patches": 1, "processor_class": "InternVLProcessor",
    "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"height": 56, "width": 56},
}  # fmt: skip
PICTURES: dict[str, dict[str, Any]] = {
    "as it came": {},
    "few tiles": {"max_patches": 4},
    "one tile": {"max_patches": 1},
    "many tiles": {"min_patches": 6, "max_patches": 20},
    "another transform": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 1.5]},
    "bilinear": {"resample": 2},
}


def processed(folder: Path, change: dict[str, Any], nested: bool = False, **config: Any) -> None:
    """A tiny '-hf' checkpoint whose image processor is WRITTEN with `change`, in a file of its own or `nested`."""
    models.tiny_internvl_hf(folder)
    text = json.dumps(WRITTEN | change)
    if nested:
        (folder / "processor_config.json").write_text(f'{{"image_seq_length": 4, "image_processor": {text}}}')
    else:
        (folder / "preprocessor_config.json").write_text(text)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | config))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("case", PICTURES)
def test_pictures_are_cut_as_the_checkpoint_says(case: str, nested: bool, tmp_path: Path) -> None:
    from transformers import InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    processed(tmp_path / "c", PICTURES[case], nested)
    result = compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", Options(scheme="f32", ctx_size=64))
    assert result.warnings == ()
    processor = load_processor(open_bundle(tmp_path / "b"))
    known = {
        name: WRITTEN[name] for name in ("image_mean", "image_std", "max_patches", "min_patches", "resample", "size")
    }
    truth = GotOcr2ImageProcessorPil(**known | PICTURES[case] | InternVLProcessor.images_kwargs)
    for size in ((200, 120), (31, 400), (56, 56)):
        picture = images.load(noise(*size))
        expected = np.stack(truth(picture.image, return_tensors="np")["pixel_values"])
        found = models.pixels(processor, picture, processor.cut(picture))
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-5


def test_a_size_that_makes_the_models_tokens_is_taken(tmp_path: Path) -> None:
    processed(tmp_path / "c", {"size": {"height": 84, "width": 84}}, image_seq_length=9)
    result = compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", Options(scheme="f32", ctx_size=64))
    assert result.warnings == ()
    bundle = open_bundle(tmp_path / "b")
    assert bundle.settings.image is not None
    assert bundle.settings.image.resolution == InternVL(84, 9)
    assert bundle.program.info.tile_size == 84


LEFT: dict[str, tuple[dict[str, Any], str]] = {
    "a size of other tokens": (
        {"size": {"height": 84, "width": 84}},
        "image_processor.size = {'height': 84, 'width': 84} is not done: tiles are 56 pixels a side, "
        "which --image-size can change",
    ),
    "a size that is not square": ({"size": {"shortest_edge": 56}}, "image_processor.size = {'shortest_edge': 56} is"),
    "lanczos": ({"resample": 1}, "image_processor.resample = 1 is not done: pictures are resized bicubic"),
    "a list": ({"resample": [3]}, "image_processor.resample = [3] is not done"),
    "no normalizing": ({"do_normalize": False}, "image_processor.do_normalize = False is not done: True is"),
    "another factor": ({"rescale_factor": 0.5}, "image_processor.rescale_factor = 0.5 is not done"),
    "a huge factor": ({"rescale_factor": 10**400}, "image_processor.rescale_factor = 1000000000000000000"),
    "another processor": (
        {"image_processor_type": "CLIP\x1b[2J"},
        r"image_processor_type 'CLIP\x1b[2J' is not known: pictures are cut as by GotOcr2ImageProcessor",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_pictures_do_not_get_is_told(case: str, tmp_path: Path) -> None:
    change, expected = LEFT[case]
    processed(tmp_path / "c", change)
    (warning,) = compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", Options(ctx_size=64)).warnings
    assert warning.startswith(expected)
    assert len(warning) < 160
    if "size" in change:  # asked for, so there is nothing to tell
        asked = Options(ctx_size=64, image_size=84)
        assert compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", asked).warnings == ()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"max_patches": 0}, "image_processor.max_patches is 0, expected an integer in 1..256"),
        ({"min_patches": 13}, "image_processor.min_patches is 13, expected an integer in 1..12"),
        ({"image_std": [0.2, 0.2, 0]}, "image_processor.image_std is"),
        ({"image_mean": "none"}, "image_processor.image_mean is 'none', expected a list of 3 numbers"),
    ],
)
def test_picture_rules_that_cannot_be_right_are_refused(change: dict[str, Any], fault: str, tmp_path: Path) -> None:
    processed(tmp_path / "c", change)
    with pytest.raises(EyespotError, match=re.escape(fault)):
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b")


def test_the_authors_own_files_keep_their_rule(tmp_path: Path) -> None:
    """InternVLChatModel's preprocessor_config.json is a leftover of CLIP, which its code does not read."""
    models.tiny_internvl(tmp_path / "c")
    (tmp_path / "c" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [9, 9, 9], "max_patches": 3}))
    result = compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", Options(ctx_size=64))
    assert result.warnings == ()
    rule = open_bundle(tmp_path / "b").settings.image
    assert rule is not None
    assert (list(rule.mean), rule.resolution) == (models.MEAN, InternVL(56, 4))
