"""The documentation: links lead somewhere, and every command line is one that a test runs, or the
table says why none does. Options of commands are ones that exist."""

import re
from pathlib import Path

import pytest
from _pages import PAGES, ROOT, blocks, commands

from cores.config import parse_config

STAGES = "tests/integration/test_cli.py, tests/integration/test_chain.py"
LAUNCHES = "tests/integration/test_processes.py"
HOURS = "not run: it takes a GPU for hours; its parts: "
TOOLS = "not run with every change: scripts/check_elsewhere.sh installs it and tries"
INSTALLS = "not run by a test: it installs packages"
RUN = {
    "stage1_sft.py": STAGES,
    "stage2_rm.py": STAGES,
    "stage3_ppo.py": STAGES,
    "scripts/demo.sh": "not run by a test: .ci/run does",
    "scripts/setup.sh": "not run by a test: .ci/run does, through scripts/test.sh",
    "scripts/test.sh": "not run by a test: .ci/run does",
    "scripts/recipes.py": "tests/integration/test_recipes.py",
    "scripts/plan.py": "tests/unit/test_plan.py",
    "scripts/bench/plan_error.py": "tests/unit/test_plan.py",
    "scripts/merge_adapter.py": "tests/integration/test_lora_chain.py",
    "scripts/export.py": "tests/integration/test_export.py",
    "scripts/push.py": "tests/unit/test_card.py",
    "scripts/comparison.py": "tests/unit/test_comparison.py",
    "scripts/evaluate.py": "tests/integration/test_evaluate.py",
    "scripts/doctor.py": "tests/unit/test_doctor_stages.py",
    "scripts/report.py": "tests/integration/test_report.py",
    "scripts/doctor_trials.py": "not run: an hour; its parts: tests/unit/test_doctor.py",
    "scripts/chat.py": "tests/integration/test_chat.py",
    "scripts/moderate.py": "tests/integration/test_moderation.py",
    "scripts/check_nodes.py": "tests/unit/test_check_nodes.py",
    "scripts/trials/two_nodes.py": "tests/integration/test_two_nodes.py",
    "sbatch": "not run: it needs Slurm; its words: tests/unit/test_check_nodes.py",
    "ssh": "not run: it needs another machine",
    "scripts/check_elsewhere.sh": TOOLS,
    "research/samples/run.py": f"{HOURS}tests/unit/test_samples.py",
    "research/samples/one.py": "tests/unit/test_samples.py",
    "research/samples/page.py": "tests/unit/test_samples.py",
    "scripts/smollm2_from_gguf.py": "not run: it needs a package of 90 MB",
    "research/evidence/run.py": f"{HOURS}tests/integration/test_evidence.py",
    "research/evidence/tables.py": "tests/integration/test_evidence.py",
    "research/experiments/run.py": f"{HOURS}tests/integration/test_experiments_plan.py",
    "research/experiments/tables.py": "tests/unit/test_experiments_tables.py",
    "scripts/bench/ppo_step.py": "tests/integration/test_bench.py",
    "scripts/bench/rollout.py": "tests/integration/test_bench.py",
    "scripts/bench/steady.py": "tests/integration/test_bench_steady.py",
    "scripts/bench/peers/pair.py": "not run: it needs another version of TRL",
    "scripts/bench/gpu.sh": "not run: it needs a GPU",
    "scripts/bench/tables.py": "tests/integration/test_bench.py",
    "tests/faults/trials.py": "tests/faults/test_kills.py",
    "tests/faults/launches.py": "not run with every change: minutes of launches that are killed",
    "accelerate": LAUNCHES,
    "pip": INSTALLS,
    "source": "not run: a word to the shell",
    "lm_eval": TOOLS,
    "vllm": TOOLS,
    "llama.cpp/convert_hf_to_gguf.py": TOOLS,
    "llama-cli": TOOLS,
}
"""What is called: the test that runs it, or why none does."""
FOUND = [(page, words) for page in PAGES for words in commands(page.read_text("utf-8"))]


def called(words: list[str]) -> str:
    """The script of a command, or the program where it is none of ours."""
    if words[0] in ("python", "bash") and len(words) > 1:
        return words[1]
    return words[0]


def test_commands_are_read() -> None:
    """Of fenced and indented blocks; variables, comments and outputs are no commands."""
    page = (
        "text python a.py\n\n    A=1 python a.py --x 1  # why\n    out: 3\n\nb\n    python no.py\n"
    )
    page += "```bash\npip install x && bash b.sh \\\n  --y\n```\n\n    error: no\n"
    page += "    ollama run x\n"
    assert len(list(blocks(page))) == 3
    assert [" ".join(words) for words in commands(page)] == [
        "python a.py --x 1", "pip install x", "bash b.sh --y",
        "ollama run x",
    ]  # fmt: skip
    assert called(["ollama", "run", "x"]) not in RUN  # so a page with it fails below


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_run_or_says_why_not(page: Path) -> None:
    for words in (words for found, words in FOUND if found == page):
        name = called(words)
        assert name in RUN, f"{name}: say in {Path(__file__).name} which test runs it, or why none"
        if words[0] in ("python", "bash") and not name.startswith("llama.cpp"):
            assert (ROOT / name).is_file(), f"{page.name}: there is no {name}"


def test_the_table_holds() -> None:
    """Tests that it names are there."""
    for name, where in RUN.items():
        tests = re.findall(r"tests/[\w/]+\.py", where)
        assert tests or where.startswith("not run"), name
        for test in tests:
            assert (ROOT / test).is_file(), f"{name}: there is no {test}"


@pytest.mark.parametrize(("page", "words"), FOUND, ids=lambda part: getattr(part, "name", ""))
def test_options_exist(page: Path, words: list[str]) -> None:
    """Stages parse theirs; other scripts of ours have them in their text."""
    stage = next((w for w in words if w.startswith("stage")), None)
    given = words[words.index(stage) + 1 :] if stage else words[2:]
    if stage is not None:
        for i, word in enumerate(given):
            if word == "--config" and not (ROOT / given[i + 1]).is_file():
                assert given[i + 1] in ("my.yaml", "c.yaml"), f"{page.name}: no {given[i + 1]}"
                given[i + 1] = "configs/gpt2.yaml"
            elif word == "--config":
                given[i + 1] = str(ROOT / given[i + 1])
        given = [str(ROOT / w) if w == "configs/gpt2.yaml" else w for w in given]
        parse_config(given, stage, "")
    elif words[0] == "python" and (ROOT / words[1]).is_file():
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        for option in (word for word in given if word.startswith("--")):
            assert option in source, f"{page.name}: {words[1]} has no {option}"


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    bare = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", bare).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files are there, and so are the headings that links name."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target} leads nowhere"
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", file.read_text(encoding="utf-8"))
            assert anchor in map(slug, headings), f"{page.name}: {target} names no heading"


def test_invariants_that_tests_cite_are_listed() -> None:
    listed = set(re.findall(r"(?m)^(\d+)\. ", (ROOT / "docs/invariants.md").read_text("utf-8")))
    cited: set[str] = set()
    for test in (ROOT / "tests").rglob("*.py"):
        for numbers in re.findall(r"[Ii]nvariants? ((?:\d+(?:, )?)+)", test.read_text("utf-8")):
            cited |= set(re.findall(r"\d+", numbers))
    assert cited - listed == set()
