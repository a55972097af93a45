"""Query expressions: terms, weights, quotes, image files, and the vector that they make."""

# ruff: noqa: F811  (arguments have the names of fixtures, which are imported)

import json

import numpy as np
import pytest
from pipeline_case import album, images, model, pipeline, saved  # noqa: F401

from zoo.cli import main
from zoo.embeddings import Index, combine, parse_query
from zoo.embeddings.expression import MAX_TERMS
from zoo.search.build import build_index
from zoo.utils.arrays import unit_rows

pytestmark = [pytest.mark.backend, pytest.mark.once]


@pytest.mark.parametrize(
    "query, expected",
    [
        ("red car", [(1, "red car")]),
        ("red car - truck + 2:night", [(1, "red car"), (-1, "truck"), (2, "night")]),
        ("- truck", [(-1, "truck")]),
        ("a black-and-white +1 photo", [(1, "a black-and-white +1 photo")]),
        ("0.5:cat - 2: dog + -1:fox", [(0.5, "cat"), (-2, "dog"), (-1, "fox")]),
        ("16:9 monitor at 10:30", [(1, "16:9 monitor at 10:30")]),
        ('"Paris - France" + 2:"9 lives"', [(1, "Paris - France"), (2, "9 lives")]),
        ('"2:night"', [(1, "2:night")]),
        ('a sign "keep - out" there', [(1, 'a sign "keep - out" there')]),
        ("note: red\nline two", [(1, "note: red\nline two")]),
    ],
)
def test_terms(query, expected):
    assert [term[:2] for term in parse_query(query)] == expected


@pytest.mark.parametrize(
    "query, message",
    [
        ("", "empty term"),
        ("   ", "empty term"),
        ("cat + ", "empty term"),
        ("cat + + dog", "empty term"),
        ("2: + dog", "empty term"),
        ('"" + dog', "empty term"),
        ("0:cat", "weight 0 in '0:cat'; allowed are numbers up to 1000, except 0"),
        ("5000:cat", "weight 5000"),
        ('cat - "dog', "begins with a quote that is not closed"),
        (" + ".join(["a"] * (MAX_TERMS + 1)), f"has {MAX_TERMS + 1} terms; at most {MAX_TERMS}"),
    ],
)
def test_invalid_expressions_are_refused(query, message):
    with pytest.raises(ValueError, match=message):
        parse_query(query)


def test_terms_may_be_image_files(tmp_path):
    path = tmp_path / "a b.PNG"
    path.touch()
    assert [term.is_image for term in parse_query(f'{path} - "b.png" + night')] == [True, False, False]
    with pytest.raises(FileNotFoundError, match=r"No image at 'none\.jpg'.*in double quotes"):
        parse_query("none.jpg - night")
    assert [term.is_image for term in parse_query(f"{path} - none.jpg", images=False)] == [False, False]


def test_the_vector_is_the_weighted_sum(rng):
    one, two = unit_rows(rng.standard_normal((2, 8)))
    assert combine([2.0], one[None]) is not None and np.array_equal(combine([2.0], one[None]), one)
    np.testing.assert_allclose(combine([-1.0], one[None]), -one, atol=1e-6)
    np.testing.assert_allclose(combine([1, -2], np.stack([one, two])), unit_rows(one - 2 * two), atol=1e-6)
    with pytest.raises(ValueError, match="cancel each other"):
        combine([1, -1], np.stack([one, one]))


def test_results_below_the_minimum_score_are_left_out(rng, tmp_path):
    vectors = unit_rows(rng.standard_normal((50, 8)))
    index = Index.build(vectors, tmp_path / "i")
    ids, scores = index.search(vectors[3], 20)
    for limit in (float(scores[4]), 0.999, 1.5):
        kept = int((scores >= limit).sum())
        found = index.search(vectors[3], 20, min_score=limit)
        assert found[0] == ids[:kept] and found[1].shape == (kept,)
    many = index.search(vectors[:2], 5, min_score=0.999)
    assert many[0] == [["0"], ["1"]] and [len(row) for row in many[1]] == [1, 1]


def test_the_pipeline_and_the_command_search_for_expressions(pipeline, saved, album, images, tmp_path, capsys):
    first, second = pipeline.embed_texts(["a seven", "a car - truck"])
    image = pipeline.embed_images([images[4]])[0]
    path = album / "right" / "4.png"
    np.testing.assert_array_equal(pipeline.embed_query("a seven"), first)
    found = pipeline.embed_query(f'2:a seven - "a car - truck" + {path}')
    np.testing.assert_allclose(found, unit_rows(2 * first - second + image), atol=1e-5)
    np.testing.assert_allclose(pipeline.embed_query(path), image, atol=1e-5)
    np.testing.assert_array_equal(pipeline.embed_query(str(path), images=False), pipeline.embed_texts([str(path)])[0])
    out = str(tmp_path / "i")
    build_index(str(album), model=str(saved), output=out)

    def search(query, *options):
        return main(["search", out, query, "--cache", str(tmp_path / "t.sqlite"), "--json", *options])

    assert search(f"5:{path} - a seven", "-k", "1") == 0
    (match,) = json.loads(capsys.readouterr().out)
    assert match["id"] == "right/4.png"
    assert search(str(path), "--min-score", "0.9999") == 0
    assert [match["id"] for match in json.loads(capsys.readouterr().out)] == ["right/4.png"]
    assert search(str(path), "--min-score", "2") == 0 and json.loads(capsys.readouterr().out) == []
    assert search("a seven - a seven") == 2 and "cancel each other" in capsys.readouterr().err
    assert search("nosuch.png") == 2 and "No image at 'nosuch.png'" in capsys.readouterr().err
