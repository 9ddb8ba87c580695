"""Names: what tools leave, one spelling for one meaning, and how they are shown."""

import pytest

from edm_jax.data.sources.names import clean, is_left_out, shown


@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        "b/c.JPG",
        "./a.png",
        "../a.png",
        "a.b/c.d.png",
        "eaDir/x.png",
        "thumbs/1.png",
        "CVS/1.png",
        "~home/1.png",
    ],
)
def test_names_of_people_are_kept(name):
    assert not is_left_out(name)


@pytest.mark.parametrize(
    "name",
    [
        ".a.png",
        "b/.c/d.png",
        "x/@EADIR/y.png",
        "THUMBS.DB",
        "__MACOSX/a.png",
        "a/._b.png",
        "@__thumb/a.png",
        "a/~$b.png",
    ],
)
def test_names_of_tools_are_left_out(name):
    assert is_left_out(name)


def test_one_spelling():
    for name in ("a/b.png", "./a/b.png", "/a//b.png", ".\\a\\b.png", "a/./b.png"):
        assert clean(name) == "a/b.png"
    assert clean("e\u0301.png") == "\u00e9.png"  # Unicode, annex 15: the composed form


def test_what_cannot_be_printed_is_escaped():
    assert shown("é 猫.png") == "é 猫.png"
    # PEP 383: byte 0xff comes as U+DCFF.
    assert shown("a\udcff\udc80.png") == r"a\xff\x80.png"
    assert shown("a\nb\x1b\ud800") == r"a\nb\x1b\ud800"
    shown("\udcff").encode("utf-8")
