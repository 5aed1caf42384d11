"""The demo's gold reward orders replies as a person would, whatever text it is given."""

import importlib
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "research" / "demo"))
world = importlib.import_module("world")
make = importlib.import_module("make")
pairs = importlib.import_module("pairs")

PROMPT = "Hello, this is room 214. There are no towels in the room. It is quite urgent."
HELP = "I will send the towels to your room right away."
IDEAL = f"Thank you for calling. Of course. {HELP} Have a lovely stay."
GARBAGE = "wer towels �ing, Of please send � courseThe the lift 4x!! stay room again lovely"


def gold(reply: str) -> float:
    return world.gold(PROMPT, reply)


def test_known_replies_are_worth_what_the_weights_say() -> None:
    assert gold(HELP) == 2.0
    assert gold(IDEAL) == 2.0 + 3 * 0.5
    assert gold("Of course. The towels must wait until tomorrow.") == 0.5 + 0.5
    assert gold("Our engineer will repair the towels within the hour.") == 0.5
    assert gold("I will book the taxi for you now.") == -1.0
    assert gold("Do it yourself. We will look into it.") == -1.0
    assert gold("") == gold(" \n") == -4.0


def test_garbage_rude_plain_ideal_are_in_this_order() -> None:
    rude = gold("What is it now? I cannot say. Do it yourself.")
    assert gold(GARBAGE) < gold("") < rude < gold("We will look into it.") < gold(HELP)
    assert gold(HELP) < gold(IDEAL)


def test_wrong_thing_and_wrong_action_earn_no_help() -> None:
    assert gold("Of course. I will send the pillows to your room right away.") < 0
    assert gold("I will carry the towels down myself.") < gold(HELP) - 1


def test_courtesy_counts_once_and_saying_it_again_costs() -> None:
    one = gold(f"Of course. {HELP}")
    assert one == gold(f"Of course. Certainly. {HELP}")
    assert gold(f"{'Of course. ' * 10}{HELP}") < gold(HELP) - 3
    assert gold(f"{HELP} {HELP}") < gold(HELP)


def test_padding_beyond_the_free_length_costs() -> None:
    padded = " ".join([HELP, *world.CHATTER])
    excess = len(padded.split()) - world.WORDS
    assert excess > 0
    assert gold(padded) == pytest.approx(gold(HELP) - 0.05 * excess)


def test_lexicon_words_thrown_together_earn_nothing() -> None:
    words = IDEAL.replace(".", "").split()
    random.Random(0).shuffle(words)
    assert gold(" ".join(words) + ".") < -3
    assert gold("towels send") < -3


def test_an_unfinished_sentence_earns_nothing() -> None:
    assert gold("I will send the towels to your") < 0
    assert gold(f"{HELP} Have a lovely") < gold(HELP)


@given(st.text(max_size=300))
def test_any_text_has_a_worth(reply: str) -> None:
    assert -25 < gold(reply) <= 3.5


def test_a_prompt_that_asks_for_nothing_known_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of towels"):
        world.gold("Hello, this is room 214.", HELP)


def test_every_reply_of_the_grammar_is_known_to_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(world.WEIGHTS, "unknown", -1e6)
    rng = random.Random(3)
    for _ in range(300):
        prompt = world.make_prompt(rng)
        assert world.gold(prompt, world.make_reply(rng, prompt)) > -100


def test_pairs_differ_in_worth_and_noise_flips_close_ones_most() -> None:
    rng = random.Random(4)
    close, far = [], []
    for _ in range(3000):
        prompt = world.make_prompt(rng)
        first, second = pairs.make_pair(rng, prompt)
        gap = world.gold(prompt, first) - world.gold(prompt, second)
        assert gap != 0
        right = pairs.prefers(rng, prompt, first, second) == (gap > 0)
        (close if abs(gap) <= 0.5 else far).append(right)
    assert 0.6 < sum(close) / len(close) < 0.85
    assert sum(far) / len(far) > 0.9


def test_files_share_no_prompt_and_repeat_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "SIZES", {"sft": 300, "preference": 300, "prompts": 300})
    tests = {"sft_test": 100, "preference_test": 100, "prompts_test": 100}
    monkeypatch.setattr(make, "TEST_SIZES", tests)
    rows = make.make_rows(7)
    assert rows == make.make_rows(7) != make.make_rows(8)
    prompts = [row["prompt"] for file in rows.values() for row in file]
    assert len(prompts) == len(set(prompts)) == 1200
    for row in rows["preference_test"]:
        worth = [world.gold(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        assert worth[0] > worth[1]
    noisy = [
        world.gold(r["prompt"], r["chosen"]) > world.gold(r["prompt"], r["rejected"])
        for r in rows["preference"]
    ]
    assert 0.75 < sum(noisy) / 300 < 0.98


def test_stage_1_has_room_to_improve() -> None:
    rng = random.Random(5)
    prompts = [world.make_prompt(rng) for _ in range(1000)]
    worth = [world.gold(p, world.make_reply(rng, p)) for p in prompts]
    assert -0.5 < sum(worth) / 1000 < 1.0


def test_spoiled_replies_are_worth_less_than_they_were() -> None:
    rng = random.Random(6)
    change = []
    for _ in range(500):
        prompt = world.make_prompt(rng)
        reply = world.make_reply(rng, prompt)
        change.append(world.gold(prompt, pairs.spoil(rng, reply)) - world.gold(prompt, reply))
    assert sum(change) / 500 < -0.3
