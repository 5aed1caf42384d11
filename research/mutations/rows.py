"""Bugs in how files become rows and rows become turns; see rl.py for the form."""

Bug = tuple[str, str, str, str]

BUGS: dict[str, tuple[tuple[str, ...], list[Bug]]] = {
    "cores/data/columns.py": (
        ("tests/unit/test_data_columns.py",),
        [
            ("input-lost", "a prompt with an input is none of format instruction",
             'if "prompt" in wanted else "instruction" in own', "if False else False"),
            ("overwritten", "a column takes the place of another of its new name",
             "if target in own:", "if False:"),
            ("twice-named", "a column of two names gets the last",
             "if column in names:", "if False:"),
            ("without-effect", "names that a stage does not read are passed over",
             "if target in unread:", "if False:"),
            ("unequal-lists", "questions without a reply are lost",
             "if len(asked) != len(replies):", "if False:"),
            ("lone-text", "a text alone among lists is no row",
             "[value] if isinstance(value, str) else value", "value"),
            ("lists-own-row", "what a row's neighbours hold is forgotten",
             "[_shaped(row, next(iter(lists), None)) for row in renamed]",
             "[_shaped(row, _parallel(row)) for row in renamed]"),
            ("speakers-swapped", "replies are the user's",
             'roles = ("user", "assistant")', 'roles = ("assistant", "user")'),
            ("rounds-by-text", "turn 10 before turn 2",
             "range(1, len(rounds) + 1)]", 'sorted(map(str, range(1, len(rounds) + 1)))]'),
            ("rounds-told", "more rounds told than there are",
             " or str(told) != str(len(names))", ""),
            ("parts-unknown", "parts of a round that nobody knows are lost",
             "unknown := sorted(parts.keys() - MOSS.keys())", "unknown := []"),
            ("no-reply", "a round without its reply is a round",
             'if content or role in ("user", "assistant"):', "if content:"),
            ("tools-thought", "results of tools are the assistant's",
             '"Tool Responses": "tool"', '"Tool Responses": "assistant"'),
        ],
    ),
    "cores/data/values.py": (
        (
            "tests/unit/test_data_formats.py", "tests/unit/test_data_turns.py",
            "tests/unit/test_data_meaning.py",
        ),
        [
            ("prompter", "OASST's prompter is unknown", '"human", "prompter"', '"human"'),
            ("ipython", "what an interpreter says is the user's",
             '("tool", "function", "observation", "ipython"), "tool"',
             '("tool", "function", "observation", "ipython"), "user"'),
            ("parts-joined", "parts of a text joined by line breaks",
             'return "".join(texts)', 'return "\\n".join(texts)'),
            ("parts-lost", "parts that are no text are left out",
             'if kind != "text" or "text" not in part:', "if not isinstance(part, dict):"),
        ],
    ),
    "cores/data/formats.py": (
        (
            "tests/unit/test_data_formats.py", "tests/unit/test_data_turns.py",
            "tests/unit/test_data_meaning.py",
        ),
        [
            ("text-label", "labelled texts refused",
             'self.plain and name == "label"', "False"),
            ("text-tree", "messages of a tree are texts",
             'self.plain and name == "label"', "self.plain"),
            ("pair-unread", "turns of a pair are told not to be read",
             "if name not in PAIR]", "]"),
        ],
    ),
    "cores/data/files.py": (
        ("tests/unit/test_data_files.py", "tests/unit/test_data_sources.py"),
        [
            ("lines-as-one", "of lines named .json the first alone",
             "if text[end:].strip():", "if False:"),
            ("first-list", "of several lists in an object the first", "if more or", "if"),
            ("turns-as-rows", "the turns of one row are rows", "name in TURNS:", "False:"),
            ("tabs", "tab-separated values are comma-separated", 'mark="\\t"', 'mark=","'),
            ("cut-short", "a packed file that is cut short is a traceback",
             "if error.errno or path", "if True or path"),
            ("unpacked", "zstd is read as gzip", '".zst": "zstd"', '".zst": "gzip"'),
        ],
    ),
    "cores/data/folders.py": (
        ("tests/unit/test_data_folders.py", "tests/unit/test_data_files.py"),
        [
            ("splits-mixed", "held-out files are trained on", "if len(found) < 2 or", "if True or"),
            ("unnamed-mixed", "files of no split beside held-out ones are lost",
             "    if None in found:", "    if False:"),
            ("first-held-out", "of several held-out splits the first",
             "if len(others) > 1 and wanted is None:", "if False:"),
            ("folders-mixed", "data sets of several folders are one",
             "if len(folders) > 1 and", "if False and"),
            ("two-words", "a name of two splits is of one",
             "if len(told) == 1 else None", "if told else None"),
            ("beside", "what stands beside data is read as data",
             "not ASIDE.fullmatch(file.name.lower())", "True"),
        ],
    ),
    "cores/data/sources.py": (
        ("tests/unit/test_data_folders.py", "tests/unit/test_data_sources.py"),
        [
            ("tested-on-training", "a test_path with splits is judged on its training rows",
             'split or held_out_split(section.test_path, f"{key}.test_path") or section.split',
             "split or section.split"),
            ("saved-split", "a saved set without splits is its own test set",
             'if _is_saved(path) and split != "train":', "if False:"),
        ],
    ),
}  # fmt: skip
"""File: (tests that run first, its bugs)."""
