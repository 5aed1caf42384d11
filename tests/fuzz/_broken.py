"""Ways to break a file, and what has to hold of whatever is said of it."""

from hypothesis import currently_in_test_context, event
from hypothesis import strategies as st

JUNK = [
    b"\0",
    b"\0\0\0\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b'"',
    b"'",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\n",
    b"\r",
    b"\r\n",
    b"\t",
    b" ",
    b"9" * 5000,
    b"1e400",
    b"NaN",
    b"-Infinity",
    b"null",
    b"true",
    b"\\ud800",
    b"\\u0000",
    b"<|endoftext|>",
    b"[" * 3000,
    b'{"a":' * 2000,
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!python/object:os.system ",
    b"? ",
    b"- ",
    b"---\n",
    b"#",
    b"|\n",
    b"%",
    b"\x1b",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\x07",
    b"2020-01-01",
    b"0x1F",
    b"1:30",
    b"=",
    b"~",
    b"PAR1",
]


@st.composite
def broken(draw: st.DrawFn, good: bytes) -> bytes:
    """`good` with a few pieces cut out, doubled, moved or put in."""
    content = good
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.integers(0, 40)))
        how = draw(st.sampled_from(["cut", "double", "junk", "byte", "truncate", "swap"]))
        if how == "cut":
            content = content[:at] + content[end:]
        elif how == "double":
            content = content[:end] + content[at:end] + content[end:]
        elif how == "junk":
            content = content[:at] + draw(st.sampled_from(JUNK)) + content[at:]
        elif how == "byte":
            content = content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
        elif how == "truncate":
            content = content[:at]
        else:
            content = content[:at] + draw(st.sampled_from(JUNK)) + content[end:]
    return content


def paragraph(text: str, *places: str) -> None:
    """One paragraph of moderate length that names one of `places`."""
    assert "\n" not in text, text
    assert len(text) < 3000, text
    assert any(place in text for place in places), (text, places)
    text.encode("utf-8", "backslashreplace").decode()


def count(kind: str) -> None:
    """Count an example for --hypothesis-show-statistics."""
    if currently_in_test_context():
        event(kind)
