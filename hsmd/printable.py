"""Text from elsewhere, made fit for a terminal or a log: nothing in it can pass for something else."""


def clean(text: str) -> str:
    """The text with what can't be printed (line ends, escapes, lone surrogates) spelled out."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
