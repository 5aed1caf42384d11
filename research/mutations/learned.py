"""Bugs in what a row says is learned, and in shapes of rows; see rl.py for the form."""

Bug = tuple[str, str, str, str]

TURNS = ("tests/unit/test_data_untrained.py", "tests/unit/test_data_meaning.py")
IMAGES = ("tests/unit/test_data_interleaved.py", "tests/unit/test_data_captions.py")

BUGS: dict[str, tuple[tuple[str, ...], list[Bug]]] = {
    "cores/data/roles.py": (
        TURNS,
        [
            ("untrained-roles", "a turn that is not to be learned is",
             '"none" if "untrained" in turn else _trained', "_trained"),
        ],
    ),
    "cores/data/template.py": (
        TURNS,
        [
            ("untrained-chat", "the same under a chat template",
             '"untrained" not in turn', "True"),
        ],
    ),
    "cores/data/values.py": (
        TURNS,
        [
            ("untrained-all", "weight 0 is passed over where all is learned",
             "return self.obeyed or", "return True or"),
            ("untrained-any", "a turn of any weight is not learned",
             "turn[key] in (0, False) and free", "free"),
        ],
    ),
    "cores/data/formats.py": (
        (*TURNS, "tests/unit/test_data_formats.py"),
        [
            ("prompt-begun", "the beginning of a reply in a prompt is lost",
             "if begun and self.column", "if False and self.column"),
        ],
    ),
    "cores/data/transcripts.py": (
        ("tests/unit/test_data_transcripts.py",),
        [
            ("transcript-prefix", "what a template puts before a turn stands there twice",
             "max(begin, mark.end())", "mark.end()"),
            ("transcript-crlf", "transcripts with line ends of Windows are one turn",
             'BLANK = r"(?:\\r?\\n){2}"', 'BLANK = r"\\n\\n"'),
        ],
    ),
    "cores/data/columns.py": (
        ("tests/unit/test_data_columns.py",),
        [
            ("said-in-turn", "all of LIMA's texts are questions",
             'cycle(("user", "assistant"))', 'cycle(("user",))'),
        ],
    ),
    "cores/data/images.py": (
        IMAGES,
        [
            ("image-twice", "two images before one sentence", "and at not in found and", "and"),
            ("most-images", "an image more than asked for",
             "len(found) == self", "len(found) > self"),
            ("clean-words", "clean captions of any length", ".split()[:WORDS]", ".split()"),
        ],
    ),
}  # fmt: skip
