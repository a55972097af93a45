"""CLIP's tokenizer: text → int32 ids, byte-pair encoding over a vocabulary of 49,408.

References: arXiv:2103.00020, section 2.4; byte-pair encoding: arXiv:1508.07909.
The ids equal those of open_clip 3.3. It is faster because merging runs in the `tokenizers` package, each
whitespace-separated chunk is merged once and cached, and ftfy runs only on text it could change.
The merges in `assets/` are OpenAI's (MIT, see `assets/README.md`).
"""

import functools
import gzip
import html
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import regex
from tokenizers.models import BPE

MERGES_FILE = Path(__file__).parent / "assets" / "bpe_simple_vocab_16e6.txt.gz"
NUM_MERGES = 48_894
SOT_TEXT, EOT_TEXT = "<start_of_text>", "<end_of_text>"
WORD_END = "</w>"
CONTEXT_LENGTH = 77

# On lowercase text IGNORECASE still matters for U+017F (folds to s) and U+0345 (folds to a letter).
WORD = regex.compile(
    rf"{SOT_TEXT}|{EOT_TEXT}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+",
    regex.IGNORECASE,
)
CACHED_CHUNKS = 2**16
LONGEST_CACHED_CHUNK = 32  # characters; bounds the cache's memory


class Tokenizer:
    """Encodes text to CLIP's ids and back; `tokenize` adds the special ids and the padding.

    Threads and forked processes may share one: only a cache changes after construction, and merging starts no
    thread pool.
    """

    vocab_size = 49_408
    sot = 49_406
    eot = 49_407

    def __init__(self):
        letters = _byte_letters()
        merges = _read_merges(MERGES_FILE)
        tokens = [*_tokens(letters, merges), SOT_TEXT, EOT_TEXT]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        self._bpe = BPE(vocabulary, merges, end_of_word_suffix=WORD_END)
        self._special = {SOT_TEXT: self.sot, EOT_TEXT: self.eot}
        self._letter_of_byte = {byte: letter for letter, byte in letters.items()}
        self._spellings = [_spelling(token, letters) for token in tokens]
        self._cached_chunk = functools.lru_cache(maxsize=CACHED_CHUNKS)(self._encode_chunk)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, of any number, without start and end ids.

        A literal `<start_of_text>` or `<end_of_text>` in the text becomes the special id, as in open_clip.
        """
        ids: list[int] = []
        for chunk in _clean(text).split():
            encode_chunk = self._cached_chunk if len(chunk) <= LONGEST_CACHED_CHUNK else self._encode_chunk
            ids += encode_chunk(chunk)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the lowercase text of a row of ids, from after the start id to the first end id.

        Args:
            ids: ints or int array (L,), with or without the special ids. Without an end id all are decoded.
        """
        ids = [operator.index(i) for i in ids]
        wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise ValueError(f"id {wrong} is outside the vocabulary; allowed are 0 to {self.vocab_size - 1}")
        text_ids = ids[: ids.index(self.eot)] if self.eot in ids else ids
        text_ids = text_ids[1:] if text_ids[:1] == [self.sot] else text_ids
        return b"".join(self._spellings[i] for i in text_ids).decode("utf-8", errors="replace").rstrip(" ")

    @staticmethod
    def tables() -> tuple[dict[str, int], list[str]]:
        """Return ({token: id}, merges "first second"), as OpenAI's vocab.json and merges.txt and KerasHub have them."""
        merges = _read_merges(MERGES_FILE)
        tokens = [*_tokens(_byte_letters(), merges), "<|startoftext|>", "<|endoftext|>"]
        return {token: i for i, token in enumerate(tokens)}, [f"{first} {second}" for first, second in merges]

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        """Return the ids of one chunk. WORD neither matches whitespace nor looks around, so chunks are independent."""
        return tuple(itertools.chain.from_iterable(map(self._encode_word, WORD.findall(chunk))))

    def _encode_word(self, word: str) -> list[int]:
        if word in self._special:
            return [self._special[word]]
        letters = word.encode("utf-8").decode("latin-1").translate(self._letter_of_byte)
        return [token.id for token in self._bpe.tokenize(letters)]

    def __reduce__(self):
        return default_tokenizer, ()


@functools.cache
def default_tokenizer() -> Tokenizer:
    """Return the shared Tokenizer, built at first use. Racing threads may build two, which give the same ids."""
    return Tokenizer()


def tokenize(texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False) -> np.ndarray:
    """Return rows of start id, ids of the text, end id, zeros.

    Args:
        texts: one string or a sequence of B strings.
        context_length: L, the length of a row, at least 2.
        truncate: True keeps the first L - 1 ids and the end id of a text that needs more than L; False raises.

    Returns:
        int32 (B, L); B is 1 for a single string.

    Raises:
        ValueError: a text with more than L ids.
    """
    texts = _as_list(texts)
    length = _checked_length(context_length)
    encode, sot, eot = default_tokenizer().encode, Tokenizer.sot, Tokenizer.eot
    rows = [[sot, *encode(text), eot] for text in texts]
    for i, row in enumerate(rows):
        if len(row) > length:
            if not truncate:
                raise ValueError(
                    f"text {i}, starting {texts[i][:40]!r}, has {len(row)} tokens with its start and end; "
                    f"at most context_length={length} are allowed: shorten it, or cut it with truncate=True"
                )
            rows[i] = [*row[: length - 1], eot]
    return _padded(rows, length)


def as_tokenize(tokenizer: Any = None, context_length: int | None = None) -> Callable[[list[str]], np.ndarray]:
    """Return the function from N texts to int32 (N, L) that a `tokenizer=` argument stands for.

    Args:
        tokenizer: None for `tokenize`; a function of that kind; or a tokenizer of KerasHub, such as
            `keras_hub.models.CLIPTokenizer`, whose ids are put between its start and end ids and padded.
        context_length: L for a tokenizer of KerasHub; None for 77.
    """
    if tokenizer is None:
        return tokenize
    is_hub = all(hasattr(tokenizer, name) for name in ("tokenize", "detokenize", "start_token_id", "end_token_id"))
    return _HubTokenize(tokenizer, context_length or CONTEXT_LENGTH) if is_hub else tokenizer


class _HubTokenize:
    """Rows of ids by a tokenizer of KerasHub, which may have no start id: see `as_tokenize`. Longer texts are cut."""

    def __init__(self, tokenizer: Any, context_length: int):
        self.tokenizer = tokenizer
        self.length = _checked_length(context_length)

    def __repr__(self) -> str:
        return f"{type(self.tokenizer).__name__}({self.tokenizer.vocabulary_size()}, {self.length})"

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        ends = [self.tokenizer.end_token_id]
        starts = [] if self.tokenizer.start_token_id is None else [self.tokenizer.start_token_id]
        inside = self.length - len(starts) - len(ends)
        ids = [np.asarray(self.tokenizer.tokenize(text)).reshape(-1).tolist()[:inside] for text in _as_list(texts)]
        pad = ends[0] if getattr(self.tokenizer, "pad_with_end_token", False) else self.tokenizer.pad_token_id or 0
        return _padded([[*starts, *row, *ends] for row in ids], self.length, pad)


def _padded(rows: list[list[int]], length: int, pad: int = 0) -> np.ndarray:
    """Rows of at most `length` ids → int32 (B, L), padded."""
    ends = np.fromiter(map(len, rows), np.int32, len(rows))
    ids = np.full((len(rows), length), pad, np.int32)
    ids[np.arange(length) < ends[:, None]] = np.fromiter(itertools.chain.from_iterable(rows), np.int32)
    return ids


def _clean(text: str) -> str:
    """Return repaired, unescaped, lowercase text; whitespace is left to `split`, which drops all of it."""
    # ftfy and html.unescape do not change printable ASCII without "&". In ftfy 6.3: unescape_html needs "&";
    # fix_encoding returns ASCII unchanged; fix_c1_controls, fix_latin_ligatures, fix_character_width,
    # uncurl_quotes, fix_surrogates and NFC only change code points above 127; fix_line_breaks,
    # remove_terminal_escapes and remove_control_chars need a control character, which is not printable.
    # Whitespace at either end may be a control character (a line end); `split` drops it in any case.
    if not (text.isascii() and text.strip().isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return text.lower()


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """Return the pairs that CLIP merges, in order; the file has a header line and more pairs than CLIP uses."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        pairs = (line.split() for line in itertools.islice(lines, 1, NUM_MERGES + 1))
        return [(first, second) for first, second in pairs]


def _tokens(letters: Iterable[str], merges: Iterable[tuple[str, str]]) -> list[str]:
    """Return the vocabulary in order, without the start and end of a text."""
    return [*letters, *(letter + WORD_END for letter in letters), *map("".join, merges)]


def _byte_letters() -> dict[str, int]:
    """Return {printable character: byte} in the order of the vocabulary.

    Printable Latin-1 bytes stand for themselves; the other 68 use code points from 256.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _spelling(token: str, letters: dict[str, int]) -> bytes:
    """Return the UTF-8 bytes of a token, with a space if it ends a word."""
    stem = token.removesuffix(WORD_END)
    return bytes(letters[letter] for letter in stem) + (b" " if stem != token else b"")


def _as_list(texts: str | Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, Iterable):
        raise TypeError(f"texts is {type(texts).__name__}; allowed are a str or a sequence of str")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] is {type(text).__name__}; allowed are a str or a sequence of str")
    return texts


def _checked_length(context_length: int) -> int:
    try:
        length = operator.index(context_length)
    except TypeError:
        raise TypeError(f"context_length is {type(context_length).__name__}; allowed is an int") from None
    if length < 2:
        raise ValueError(f"context_length={length} must be at least 2, for the start and end ids")
    return length
