"""Tokenisation, cleaning included: captions of common words, each with a number that few others have."""

import itertools
import random
from collections.abc import Callable

from zoo.bench.cases import Case

WORDS = """
    a the of in on with and two three small large old new red blue green dark bright wooden stone street house garden
    river mountain beach dog cat horse bird child woman man bicycle car train boat table chair window door flower tree
    cloud sunset winter summer standing sitting running holding looking photograph painting drawing close-up view,
    portrait, landscape. isn't background; (detail) #12 1920s 3d
"""
OTHERS = "café naïve Zürich 東京 мост façade — “quoted” … 😀 &amp; ½ schloß ñandú Ελλάδα"
LOTS = 8  # of captions, drawn beforehand
SHORTEST, LONGEST = 6, 24  # words of a caption; web captions have about a dozen


def create_call(tokenize: Callable, case: Case) -> Callable:
    """The work of a tokenizer: as many captions as the batch size, to ids (B, 77)."""
    rng, is_mixed = random.Random(0), case.part != "captions"
    lots = itertools.cycle([draw_captions(rng, case.batch_size, is_mixed) for _ in range(LOTS)])
    return lambda: tokenize(next(lots))


def draw_captions(rng: random.Random, count: int, is_mixed: bool) -> list[str]:
    """Captions of common words; of a mixed lot, every other one has a word that is not ASCII."""
    captions, words_there_are, others = [], WORDS.split(), OTHERS.split()
    for number in range(count):
        words = rng.choices(words_there_are, k=rng.randint(SHORTEST, LONGEST))
        if is_mixed and number % 2:
            words.insert(rng.randrange(len(words)), rng.choice(others))
        captions.append(f"{' '.join(words).capitalize()} {rng.randrange(10**6)}")
    return captions
