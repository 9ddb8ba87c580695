"""The 20 lines of docs/own_network.md learn what they say."""

from tests.support.paths import ROOT


def test_the_example_learns(capsys):
    text = (ROOT / "docs/own_network.md").read_text()
    (code,) = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    exec(code, {})
    distance = float(capsys.readouterr().out.rsplit(maxsplit=1)[1])
    # Undertrained networks leave 0.1 and more; the spread of the data is 0.5.
    assert distance < 0.05
