"""Second judges of replies: another reward model, a Python function, a model behind an endpoint.

--judge FOLDER            a reward model, of any tokenizer and template (a folder or hub id)
--judge FILE.py:NAME      a function, called as those of `ppo.rewards`
--judge http://HOST/v1    an OpenAI-compatible server, asked with both orders of the replies
"""

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cores.errors import UserError
from cores.evaluate import Evaluation
from cores.models import ScalarModel, load_scalar
from cores.rewards.call import RewardFunctions, reply_text
from cores.rewards.load import RewardFunction
from cores.rewards.texts import text_reward
from cores.rollout import stop_ids
from cores.runtime.parents import load_parents
from cores.training.calibration import score_rows
from scripts.evaluation.comparisons import both_orders
from scripts.evaluation.endpoint import Endpoint, PassingError
from scripts.evaluation.runs import Judged, Row, held
from scripts.evaluation.stats import wins

Outcomes = list[float | None]

FUNCTION = re.compile(r".*\.py:\w+")
ANSWER = re.compile(r"\[\[([ABC])\]\]")
SIDES = {"A": 1, "B": -1, "C": 0}
WORKERS = 8
"""Questions on their way to an endpoint at a time."""
UNREAD = 0.5
"""Share of answers without a verdict, or that did not come, above which the judge has failed."""
WAITS = (1.0, 4.0, 16.0)
"""Seconds before a question is asked again that a server could not answer just then."""
LOST = 3 * WORKERS
"""Questions without an answer, with none between them, behind which no more are asked."""
QUESTION = """\
Below are a conversation and two replies to its last message, A and B. Which reply is better: more \
helpful, more correct, more polite? Neither the order in which they stand nor their length is a \
reason. End your answer with [[A]] or [[B]], or with [[C]] if neither is better.

[The conversation]
{prompt}

[Reply A]
{first}

[Reply B]
{second}"""


@dataclass(frozen=True)
class Sampled:
    """One reply of a policy to each prompt."""

    evaluation: Evaluation
    texts: list[str]
    """As reward functions get them."""
    stopped: list[bool]
    """Whether a stop token, which the text leaves out, ended the reply."""

    @classmethod
    def of(cls, judged: Judged, found: Evaluation) -> "Sampled":
        """What was sampled, as text."""
        tokenizer: Any = judged.tokenizer
        stops = stop_ids(judged.config.ppo, tokenizer)
        each = zip(found.replies, found.ended, strict=True)
        said = [reply_text(ids, ended, tokenizer, stops) for ids, ended in each]
        return cls(found, [text for text, _ in said], [stopped for _, stopped in said])


class Judge(Protocol):
    """Says which of two replies is better; those that give each reply a number tell it too."""

    def scores(self, rows: Sequence[Row], sampled: Sampled) -> list[float] | None:
        """A number for each reply; None for judges that only compare."""
        ...

    def outcomes(self, rows: Sequence[Row], first: Sampled, second: Sampled) -> Outcomes:
        """Of each prompt 1 where the first reply wins, 0.5 for a tie, 0 else; None where it was not
        judged."""
        ...


class JudgeError(UserError):
    """A judge that has failed, while what else was found of the run stands."""


class Scores(ABC):
    """Of a judge that gives each reply a number: the larger wins."""

    @abstractmethod
    def scores(self, rows: Sequence[Row], sampled: Sampled) -> list[float]:
        """A number for each reply."""

    def outcomes(self, rows: Sequence[Row], first: Sampled, second: Sampled) -> Outcomes:
        """See `Judge`."""
        return list(wins(self.scores(rows, first), self.scores(rows, second)))


class RewardModelJudge(Scores):
    """A reward model that no stage of this run need have written."""

    def __init__(self, judged: Judged, path: str, rows: Sequence[Row]) -> None:
        self.judged = judged
        config = judged.config
        # In a run of its own: the reward model of this one is not meant.
        self.config = replace(
            config,
            output_dir=os.path.join(config.output_dir, "judge"),
            reward=replace(config.reward, path=path, revision=None),
            ppo=replace(config.ppo, critic_init=None),
        )
        policy: Any = judged.tokenizer
        try:
            parent = load_parents(self.config, ["reward"], hashed=False)["reward"]
            parents = {"sft": judged.stages["sft"], "reward": parent}
            self.reader = text_reward(self.config, policy, parents, rows)
            tokenizer = policy if self.reader is None else self.reader.tokenizer
            model: Any = load_scalar(parent.folder, tokenizer=tokenizer)
        except UserError as error:
            raise UserError(str(error).replace("reward.path", "--judge")) from None
        self.model = ScalarModel(held(model, judged.launch))

    def scores(self, rows: Sequence[Row], sampled: Sampled) -> list[float]:
        """Its own score, whatever its scale."""
        ids = sampled.evaluation.rows
        if self.reader is not None:
            each = zip(rows, sampled.texts, sampled.stopped, strict=True)
            ids = self.reader.read([self.reader.text(*one) for one in each])
        size = self.config.ppo.microbatch_size
        about = [{"prompt_length": len(row["input_ids"])} for row in rows]
        return score_rows(self.model, ids, size, self.judged.launch, about)


class FunctionJudge(Scores):
    """A function of the user's."""

    def __init__(self, judged: Judged, source: str, function: RewardFunction) -> None:
        ppo = replace(judged.config.ppo, rewards={source: 1.0})
        assert judged.tokenizer is not None, "there is no policy without stage 1"
        self.called = RewardFunctions(ppo, judged.tokenizer, {source: function})

    def scores(self, rows: Sequence[Row], sampled: Sampled) -> list[float]:
        """What it returns."""
        try:
            return self.called.ask(sampled.texts, list(rows))[:, 0].tolist()
        except UserError as error:
            raise UserError(str(error).replace("ppo.rewards", "--judge")) from None


class EndpointJudge:
    """A language model behind an OpenAI-compatible server, at temperature 0."""

    def __init__(self, url: str, model: str | None) -> None:
        self.server = Endpoint(url)
        self.lost: list[str] = []
        """Why each question got no answer: those since the last one that did."""
        self.model = model or self.server.first_model()

    def scores(self, rows: Sequence[Row], sampled: Sampled) -> None:
        """None: it only compares."""

    def outcomes(self, rows: Sequence[Row], first: Sampled, second: Sampled) -> Outcomes:
        """See `Judge`: asked twice, with the replies exchanged, and a tie where the answers differ.

        An answer without a verdict is one for neither. A prompt is not judged where one of the two
        did not come. JudgeError if either is so of most.
        """
        print(f"--judge {self.server.url}: {2 * len(rows)} questions to {self.model}", flush=True)
        pairs = list(zip(map(conversation, rows), first.texts, second.texts, strict=True))
        questions = [asked for p, a, b in pairs for asked in ((p, a, b), (p, b, a))]
        with ThreadPoolExecutor(WORKERS) as pool:
            said = list(pool.map(lambda q: self._asked(*q), questions))
        answers = [answer for answer in said if isinstance(answer, str)]
        lost = [why for why in said if isinstance(why, JudgeError)]
        both = zip(said[::2], said[1::2], strict=True)
        unjudged = sum(isinstance(a, JudgeError) or isinstance(b, JudgeError) for a, b in both)
        if lost and unjudged >= UNREAD * len(rows):
            raise JudgeError(
                f"{len(lost)} of {len(said)} questions got no answer. The first: {lost[0]}"
            )
        unread = [answer for answer in answers if not ANSWER.search(answer)]
        if len(unread) > UNREAD * len(answers):
            raise JudgeError(
                f"--judge {self.server.url}: {len(unread)} of {len(answers)} answers hold none of "
                f"[[A]], [[B]], [[C]], such as {unread[0][:200]!r}; give a model that follows "
                "instructions (--judge-model)."
            )
        if lost:
            print(f"{len(lost)} of {len(said)} questions got no answer. The first: {lost[0]}")
        read = [
            SIDES[(ANSWER.findall(answer) or ["C"])[-1]] if isinstance(answer, str) else None
            for answer in said
        ]
        return both_orders(read[::2], read[1::2])

    def _asked(self, prompt: str, first: str, second: str) -> str | JudgeError:
        """The answer, or why there is none; asked again a few times where that may pass."""
        question = QUESTION.format(prompt=prompt, first=first, second=second)
        for wait in (*WAITS, None):
            if len(lost := list(self.lost)) >= LOST:  # another thread may clear it meanwhile
                return JudgeError(lost[0])
            try:
                answer = self.server.answer(self.model, question)
                self.lost.clear()
                return answer
            except PassingError as error:
                why = str(error)
            except UserError as error:
                why, wait = str(error), None
            if wait is None:
                break
            time.sleep(wait)
        self.lost.append(told := f"the prompt {prompt[:200]!r}: {why}")
        return JudgeError(told)


def conversation(row: Row) -> str:
    """A prompt as a judge reads it, without the template's marks."""
    turns = row["turns"]
    if len(turns) == 1:
        return str(row["prompt"] if turns[0]["role"] == "text" else turns[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def judge_of(
    judged: Judged,
    given: str,
    model: str | None,
    functions: dict[str, RewardFunction],
    rows: Sequence[Row],
) -> Judge:
    """The judge that `--judge` names; `functions`: those that were loaded, by source."""
    if given.startswith(("http://", "https://")):
        return EndpointJudge(given, model)
    if given in functions:
        return FunctionJudge(judged, given, functions[given])
    return RewardModelJudge(judged, given, rows)


def is_function(given: str | None) -> bool:
    """Whether `--judge` names a function."""
    return given is not None and FUNCTION.fullmatch(given) is not None
