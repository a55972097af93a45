"""The tokenizer gives open_clip's ids, refuses invalid input, and leaves the process unchanged."""

import concurrent.futures
import copy
import hashlib
import html
import itertools
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import ftfy
import numpy as np
import pytest
from helpers import declare_torchvision_operators

from clip import tokenizer as module
from clip.tokenizer import MERGES_FILE, NUM_MERGES, Tokenizer, default_tokenizer, tokenize

ROOT = Path(__file__).resolve().parent.parent
MERGES_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"

GOLDEN = {
    "hello world": [3306, 1002],
    "": [],
    " \t\n ": [],
    "A photo of 2 cats.": [320, 1125, 539, 273, 3989, 269],
    "it's": [585, 568],
    "IT'S we'll don't": [585, 568, 649, 1342, 847, 713],
    "1234": [272, 273, 274, 275],
    "café": [15304],
    "cafe\u0301": [15304],
    "&amp;amp; &lt;b&gt;": [261, 283, 321, 285],
    "schÃ¶n": [844, 7255, 333],
    "\u201cquoted\u201d": [257, 27706, 257],
    "ＷＩＤＥ": [3184],
    "🐶": [10631],
    "<start_of_text>x<END_OF_TEXT>": [49406, 343, 49407],
    "bell\x07 \x1b[31mred": [3718, 736],
}

ALPHABETS = {
    "letters": "abcdefghijklmnopqrstuvwxyz" * 3 + "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "ascii": "".join(map(chr, range(0x20, 0x7F))),
    "latin": "".join(map(chr, range(0xA0, 0x250))),
    "greek and cyrillic": "".join(map(chr, [*range(0x370, 0x530), 0x3A3, 0x3A3])),
    "hebrew, arabic, indic, thai": "".join(map(chr, range(0x590, 0xE60))),
    "georgian to khmer": "".join(map(chr, range(0x10A0, 0x1800))),
    "extended latin and greek": "".join(map(chr, range(0x1E00, 0x2000))),
    "punctuation to symbols": "".join(map(chr, range(0x2000, 0x2800))),
    "chinese and kana": "".join(map(chr, [*range(0x3000, 0x3100), *range(0x4E00, 0x4F00)])),
    "hangul": "".join(map(chr, [*range(0x1100, 0x1200), *range(0xAC00, 0xAD00)])),
    "forms and widths": "".join(map(chr, range(0xF900, 0xFFFE))),
    "combining": "aeiounAEIOU\u0300\u0301\u0302\u0303\u0307\u0308\u0327\u0345\u0130\u017f\u212a\u00df",
    "emoji": "".join(map(chr, [*range(0x1F300, 0x1F650), 0x200D, 0xFE0F, *range(0x1F1E6, 0x1F200)])),
    "mathematical": "".join(map(chr, range(0x1D400, 0x1D7FF))),
    "whitespace": " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000\u200b\ufeffab",
    "control": "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)])) + "abc[0;31m",
    "anything": None,  # any code point, surrogates too
}
PIECES = (
    *("'s", "'T", "'re", "'VE", "'m", "'ll", "'d", "\u2019s", "'ſ", "s'", "don't", "CAN'T"),
    *("&amp;", "&amp;amp;", "&lt;", "&GT", "&eacute;", "&EACUTE;", "&#39;", "&#x1F436;", "&#xD800;", "&nope;"),
    *("<start_of_text>", "<end_of_text>", "<START_of_text>", "<ſtart_of_text>", "<end_of_text", "</w>", "<br/>"),
    *("3.14", "1,000", "x2y", "½", "²", "Ⅻ", "٣", "😀", "👩\u200d👧", "🇫🇷", "#tag", "@name", "a_b", "--", "..."),
    *("\x1b[1mbold\x1b[0m", "\r\n", "\ud83d\udc36", "\ud800", "ﬁ", "Ǆ", "ŉ", "Ａ", "ﾀ", "ΟΔΟΣ", "Σ", "İ", "ẞ"),
)


@pytest.fixture(scope="module")
def open_clip():
    """open_clip, an oracle. Under CPU-only torch its torchvision imports once two operator schemas exist."""
    pytest.importorskip("torch")
    declare_torchvision_operators()
    return pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def theirs(open_clip):
    return open_clip.tokenizer.SimpleTokenizer()


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return default_tokenizer()


def random_texts(rng, count: int) -> list[str]:
    """Mixtures of alphabets, awkward pieces, and text decoded with the wrong codec."""
    alphabets = [letters for letters in ALPHABETS.values() if letters]

    def word() -> str:
        kind = rng.integers(8)
        size = int(rng.integers(1, 9))
        if kind == 0:
            return str(rng.choice(PIECES))
        if kind == 1:
            return "".join(map(chr, rng.integers(0x110000, size=size)))
        letters = alphabets[0] if kind < 4 else alphabets[rng.integers(len(alphabets))]
        return "".join(letters[i] for i in rng.integers(len(letters), size=size))

    def text() -> str:
        words = [word() for _ in range(rng.integers(1, 9))]
        joined = "".join(w + s for w, s in zip(words, rng.choice(["", " ", " ", "  "], len(words)), strict=True))
        if rng.integers(6) == 0:
            wrong = str(rng.choice(["latin-1", "cp1252", "cp1251", "macroman", "cp437"]))
            joined = joined.encode("utf-8", errors="replace").decode(wrong, errors="replace")
        return joined

    return [text() for _ in range(count)]


def test_merges_and_vocabulary_have_their_sizes():
    assert hashlib.sha256(MERGES_FILE.read_bytes()).hexdigest() == MERGES_SHA256
    assert MERGES_SHA256 in MERGES_FILE.with_name("README.md").read_text(encoding="utf-8")
    merges = module._read_merges(MERGES_FILE)
    assert len(merges) == NUM_MERGES == 48_894
    assert len(default_tokenizer()._spellings) == Tokenizer.vocab_size == 49_408


def test_merge_order_of_equal_ranks_does_not_matter():
    """Each token is made by one merge, of tokens that stand before it.

    So a new pair ranks below the merge that made it, and merging all occurrences of a pair at once (OpenAI)
    or one at a time (`tokenizers`) cannot differ.
    """
    letters = module._byte_letters()
    known = {*letters, *(letter + module.WORD_END for letter in letters)}
    for pair in module._read_merges(MERGES_FILE):
        assert set(pair) <= known
        assert "".join(pair) not in known
        known.add("".join(pair))


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_ids(ours, text):
    assert ours.encode(text) == GOLDEN[text]


def test_tokenize_pads_with_zero_to_int32():
    ids = tokenize("hello world")
    assert ids.shape == (1, 77) and ids.dtype == np.int32
    assert ids[0, :4].tolist() == [49406, 3306, 1002, 49407] and not ids[0, 4:].any()
    both = tokenize(("hello world", ""), context_length=4)
    assert both.tolist() == [[49406, 3306, 1002, 49407], [49406, 49407, 0, 0]]
    assert np.array_equal(tokenize(np.array(["hello world", ""]), 4), both)


@pytest.mark.parametrize("empty", [[], (), np.array([], str)])
def test_no_texts_give_no_rows(empty):
    assert tokenize(empty).shape == (0, 77) and tokenize(empty).dtype == np.int32


def test_too_long_a_text_is_refused_or_cut():
    text = "dog " * 100
    with pytest.raises(ValueError, match=r"text 1, starting 'dog dog .* has 102 tokens .*=77 .*truncate=True"):
        tokenize(["cat", text])
    ids = tokenize(["cat", text], truncate=True)
    assert ids[0, :4].tolist() == [49406, 2368, 49407, 0]
    assert ids[1].tolist() == [49406, *[1929] * 75, 49407]
    assert tokenize("dog dog", context_length=2, truncate=True).tolist() == [[49406, 49407]]
    assert tokenize("dog " * 75)[0, -2:].tolist() == [1929, 49407]  # exactly full


@pytest.mark.parametrize("length", [1, 0, -77])
def test_context_length_needs_room_for_both_ends(length):
    with pytest.raises(ValueError, match=rf"context_length={length} .* at least 2"):
        tokenize("dog", context_length=length)


@pytest.mark.parametrize(
    "texts, name", [(None, "NoneType"), (3, "int"), (b"dog", "bytes"), (["dog", b"dog"], r"texts\[1\] is bytes")]
)
def test_other_types_than_text_are_refused(texts, name):
    with pytest.raises(TypeError, match=f"{name}.*sequence of str"):
        tokenize(texts)


def test_context_length_is_an_int():
    with pytest.raises(TypeError, match="context_length is float"):
        tokenize("dog", context_length=77.0)


@pytest.mark.parametrize("text", ["a photo of a dog , isn ' t it ?", "naïve 🐶 日本語", "<br/> </w>", ""])
def test_decode_returns_the_cleaned_text(ours, text):
    assert ours.decode(tokenize(text)[0]).replace(" ", "") == text.replace(" ", "")
    assert ours.decode(ours.encode(text)) == ours.decode(tokenize(text)[0])


def test_decode_stops_at_the_first_end_and_names_a_wrong_id(ours):
    assert ours.decode([49406, 3306, 49407, 1002, 49407]) == "hello"
    assert ours.decode([127]) == "\ufffd"  # half a character
    with pytest.raises(ValueError, match="id 49408 .* 0 to 49407"):
        ours.decode([3306, 49408])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_a_copy_is_the_shared_tokenizer(ours, copied):
    assert copied(ours) is ours


def test_ftfy_is_skipped_only_where_it_changes_nothing(rng, monkeypatch):
    printable = [chr(i) for i in range(0x20, 0x7F) if chr(i) != "&"]
    texts = ["".join(pair) for pair in itertools.product(printable, repeat=2)]
    texts += ["".join(rng.choice(printable, rng.integers(1, 60))) for _ in range(3000)]
    texts += [text + end for text in texts[-300:] for end in ("\n", "\r\n", "\t", "\x0c", "\x1f")]
    for text in texts:
        assert html.unescape(ftfy.fix_text(text)).split() == text.split()
    touched = []
    monkeypatch.setattr(ftfy, "fix_text", lambda text: touched.append(text) or text)
    for text in texts:
        module._clean(text)
    assert not touched
    others = ["a\x0bb", "a\nb", "a\x7fb", "a & b", "café", "\x1b[0m", "a\u2028"]
    for text in others:
        module._clean(text)
    assert touched == others


def test_long_words_are_not_quadratic(ours):
    start = time.perf_counter()
    assert len(ours.encode("abcdefgh" * 25_000)) > 25_000
    assert time.perf_counter() - start < 10  # quadratic merging needs hours


def test_threads_agree_from_a_cold_start(rng):
    texts = random_texts(rng, 400)
    expected = tokenize(texts, truncate=True)
    default_tokenizer.cache_clear()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for ids in pool.map(lambda _: tokenize(texts, truncate=True), range(16)):
            assert np.array_equal(ids, expected)


def test_import_and_fork_are_quiet_and_need_no_framework():
    code = """
import os, sys
from clip.tokenizer import tokenize
expected = tokenize(["a dog", "naïve 🐶"] * 500).tolist()
child = os.fork() if hasattr(os, "fork") else 0
assert tokenize(["a dog", "naïve 🐶"] * 500).tolist() == expected
if child:
    assert os.waitpid(child, 0)[1] == 0
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    loaded = {"keras", "torch", "tensorflow", "jax", "huggingface_hub", "requests"} & set(sys.modules)
    assert not loaded, loaded
"""
    command = [sys.executable, "-W", "error", "-c", code]
    environment = {
        name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"
    }  # oracles set it
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_lowering_before_splitting_is_open_clips_order():
    """They collapse whitespace, then lower. A final sigma looks at its neighbours; whitespace ends a word."""
    spaces = [chr(i) for i in range(0x110000) if chr(i).isspace()]
    for space in spaces:
        text = f"ΑΣ{space}Α{space}ΣΑΣ"
        assert text.lower().split() == " ".join(text.split()).lower().split()
    assert all(space.lower() == space for space in spaces)
    assert not any(c.lower() != c and any(map(str.isspace, c.lower())) for c in map(chr, range(0x110000)))


# --- with open_clip ---


@pytest.mark.slow
def test_words_are_split_as_by_open_clip_at_every_code_point(theirs):
    for start in range(0, 0x110000, 256):
        text = "".join(f"a{c}b {c}'{c}1{c}?{c}{c}'s<{c} " for c in map(chr, range(start, start + 256)))
        assert module.WORD.findall(text) == theirs.pat.findall(text), hex(start)


@pytest.mark.slow
def test_ids_are_open_clips_for_every_character_of_the_basic_plane(ours, theirs):
    for start in range(0, 0x10000, 16):
        text = "".join(f"a{c}b {c} " for c in map(chr, range(start, start + 16)))
        assert ours.encode(text) == theirs.encode(text), hex(start)


def test_ids_are_open_clips_for_each_alphabet_and_piece(ours, theirs, rng):
    texts = [*PIECES, *(f"a{p}b {p}{p} c" for p in PIECES), *GOLDEN]
    for letters in filter(None, ALPHABETS.values()):
        texts += ["".join(rng.choice(list(letters), rng.integers(1, 30))) for _ in range(100)]
    for text in texts:
        assert ours.encode(text) == theirs.encode(text), ascii(text)


@pytest.mark.slow
def test_ids_are_open_clips_for_many_random_texts(ours, theirs, rng):
    for text in random_texts(rng, 20_000):
        assert ours.encode(text) == theirs.encode(text), ascii(text)


@pytest.mark.parametrize("length", [2, 16, 77])
def test_rows_are_open_clips(open_clip, rng, length):
    texts = [*random_texts(rng, 500), "", "dog " * 200, "x" * 3000]
    expected = open_clip.get_tokenizer("ViT-B-32")(texts, context_length=length).numpy()
    assert np.array_equal(tokenize(texts, context_length=length, truncate=True), expected)


def test_decoding_is_open_clips(ours, theirs, rng):
    for text in random_texts(rng, 500):
        ids = [i for i in ours.encode(text) if i < Tokenizer.sot]
        assert ours.decode(ids) == theirs.decode(ids).rstrip(" ")
