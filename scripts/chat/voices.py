"""The finished models of a run, and what they say to a conversation, token by token."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

import torch
from torch import Tensor

from cores.config import Config
from cores.config.data import OneSource
from cores.data import SplitReport, readable
from cores.data.formats import Reader
from cores.data.rows import RowMaker
from cores.data.sources import Row
from cores.data.values import Turn
from cores.draws import uniforms
from cores.errors import UserError
from cores.models import ScalarModel, load_policy
from cores.models.bases import load_base
from cores.models.loading import load_config, max_length
from cores.rewards.texts import text_reward
from cores.rollout import Rollout, RolloutEngine, build_engine
from cores.runtime.elsewhere import pinned
from cores.runtime.launch import Launch
from cores.runtime.parents import SCRIPTS, elsewhere, load_parents, policy_tokenizer
from scripts.evaluation.gates import Gate
from scripts.evaluation.runs import RAW, in_units

COLDEST = 1e-6
"""Stands in for temperature 0: the likeliest token is drawn."""
EVERY = 0.03
"""Seconds between two looks at a growing reply."""
UNBOUNDED = 2**17
"""Positions of a model that does not say how many it has."""


@dataclass(frozen=True)
class Controls:
    """How a reply is sampled."""

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int

    def changed(self, given: dict[str, Any]) -> "Controls":
        """With the values of `given` that are not null; UserError for one that cannot be."""
        limits = {"temperature": 5, "top_p": 1, "max_new_tokens": UNBOUNDED, "seed": 2**32 - 1}
        found: dict[str, Any] = {}
        for name, most in limits.items():
            value, whole = given.get(name), name in ("max_new_tokens", "seed")
            if value is None:
                continue
            kind = int if whole else (int, float)
            least = 1 if name == "max_new_tokens" else 0
            good = isinstance(value, kind) and not isinstance(value, bool)
            if not good or not least <= value <= most or (name == "top_p" and not value):
                what = "a whole number" if whole else "a number"
                raise UserError(f"{name}: {value!r} must be {what} from {least} to {most}.")
            found[name] = value
        return replace(self, **found)


@dataclass(frozen=True)
class Reply:
    """What one stage said."""

    stage: str
    text: str
    tokens: int
    ended: bool
    """Whether it stopped by itself."""
    score: float | None
    """The reward model's, if there is one."""
    first: float
    """Seconds from the question to the first token."""


Said = tuple[str, str | Reply | Exception]
"""A stage, and its reply so far, the whole of it, or why there is none."""


@dataclass(frozen=True)
class _Asked:
    """A question, and where what is said to it goes."""

    row: dict[str, Any]
    controls: Controls
    stop: Event
    apart: bool
    said: SimpleQueue[Said] = field(default_factory=SimpleQueue)


class Voices:
    """The policies of a run that are finished, with the reward model if it is."""

    raw = False
    """Whether scores are in other units than stage 3's."""

    def __init__(self, config: Config, launch: Launch, gate: Gate | None = None) -> None:
        """UserError where no stage is finished, or one does not fit."""
        self.launch, self.gate = launch, gate
        root = Path(config.output_dir).expanduser()
        names = [s for s in SCRIPTS if (root / s / "stage.json").exists() or elsewhere(config, s)]
        if not {"sft", "ppo"} & set(names):
            raise UserError(
                f"{root}: no finished stage there that can talk. Run stage1_sft.py with the same "
                "--config and --output_dir first."
            )
        parents = load_parents(config, ["sft", *(n for n in names if n != "sft")])
        base = load_config(parents["sft"].folder)
        if base.is_encoder_decoder:
            raise UserError("chat.py: talks to models that have a decoder alone, and this has two.")
        self.tokenizer: Any = policy_tokenizer(config, parents["sft"])
        positions = [max_length(load_config(p.folder)) or UNBOUNDED for p in parents.values()]
        self.positions = min(positions)
        ppo = replace(config.ppo, max_prompt_length=self.positions, critic_init=None)
        self.config = config = replace(config, ppo=ppo)
        self.default = Controls(ppo.temperature, 1.0, ppo.max_new_tokens, config.seed)
        self.engines: dict[str, RolloutEngine] = {}
        """By stage, base first."""
        if not parents["sft"].elsewhere:
            self._base(config)
        for name in ("sft", "ppo"):
            if name in parents:
                model = load_policy(parents[name].folder, False, tokenizer=self.tokenizer)
                self._add(name, model)
        self.reward, self.texts, self.judging = None, None, Lock()
        if "reward" in parents:
            self.texts = text_reward(config, self.tokenizer, parents, [])
            reads = self.texts.tokenizer if self.texts else self.tokenizer
            judge, self.raw = in_units(parents, reads)
            self.reward = ScalarModel(judge).eval().to(launch.device)
            if self.raw:
                launch.say(f"note: {RAW}")
        source = OneSource()
        reader = Reader(config, source, ["prompt"], "the conversation", "ppo", "data.prompts")
        self.maker = RowMaker(config, self.tokenizer, source, reader)
        self.reader = reader

    def _base(self, config: Config) -> None:
        fresh = config.seed if config.model.from_config else None
        try:
            model = load_base(pinned(config).model.path, self.tokenizer, fresh=fresh)
        except UserError as error:
            self.launch.say(f"note: without the base: {error}")
            return
        self._add("base", model)

    def _add(self, name: str, model: Any) -> None:
        model = model.requires_grad_(False).eval().to(self.launch.device)
        most, launch = self.default.max_new_tokens, self.launch
        self.engines[name] = build_engine(self.config, model, self.tokenizer, most, launch)

    def row(self, turns: list[Turn], controls: Controls) -> dict[str, Any]:
        """The prompt as stage 3 would read it; UserError for one that cannot be answered."""
        self._check(turns[-1]["content"])
        asked = Row("the conversation", {"prompt": turns})
        report = SplitReport("the conversation", {}, "prompt")
        made = list(self.maker.rows([self.reader.read(asked)], report))
        if not made:
            raise UserError(f"This cannot be asked: {next(iter(report.dropped), 'it is empty')}.")
        room = self.positions - len(made[0]["input_ids"])
        if room < controls.max_new_tokens:
            raise UserError(
                f"The conversation has {len(made[0]['input_ids'])} tokens, and the models have "
                f"{self.positions} positions: {max(0, room)} are left for a reply. Begin a new "
                "conversation, or lower the new tokens."
            )
        return made[0]

    def _check(self, text: str) -> None:
        if self.gate is not None and (why := self.gate(text)) is not None:
            raise UserError(f"The gate does not let this pass: {why}")

    def answer(
        self, turns: list[Turn], controls: Controls, stop: Event, apart: bool = False
    ) -> Iterator[Said]:
        """What every stage says to `turns`, as it comes, all at once; each ends with a `Reply`.
        `stop` ends it. UserError as `row`.

        The same random numbers decide the tokens of all, so that what differs is the policies'
        doing; `apart`: each stage has its own, as policies that are close would often say the same.
        """
        asked = _Asked(self.row(turns, controls), controls, stop, apart)
        threads = [
            Thread(target=self._speak, args=(name, asked), daemon=True) for name in self.engines
        ]
        for thread in threads:
            thread.start()
        left = len(threads)
        try:
            while left:
                one = asked.said.get()
                left -= not isinstance(one[1], str)
                yield one
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _speak(self, name: str, asked: _Asked) -> None:
        try:
            asked.said.put((name, self._reply(name, asked)))
        except Exception as error:  # whatever it is, the others go on, and it is shown
            asked.said.put((name, error))

    def _reply(self, name: str, asked: _Asked) -> Reply:
        controls, row = asked.controls, asked.row
        engine, start = self.engines[name], time.monotonic()
        now = replace(
            engine.sampling,
            temperature=controls.temperature or COLDEST,
            top_p=controls.top_p,
            max_new_tokens=controls.max_new_tokens,
            min_new_tokens=min(engine.sampling.min_new_tokens, controls.max_new_tokens - 1),
        )
        engine.sampling = now
        ids: list[int] = []
        first = shown = 0.0

        def listen(tokens: Tensor) -> bool:
            nonlocal first, shown
            ids.append(int(tokens[0]))
            passed = time.monotonic() - start
            first = first or passed
            ends = ids[-1] in now.stop_ids
            due = passed - shown >= EVERY or len(ids) == 1
            if due and not ends and self.gate is None:
                shown = passed
                asked.said.put((name, readable(self.tokenizer, ids, skip_special_tokens=True)))
            return ends or asked.stop.is_set()

        purpose = f"chat, {name}" if asked.apart else "chat"
        uniform = uniforms(1, controls.max_new_tokens, controls.seed, purpose)
        rollout = engine.generate([row["input_ids"]], uniform, listen)
        reply = rollout.row(0)[len(row["input_ids"]) :]
        text = readable(self.tokenizer, reply, skip_special_tokens=True)
        text = text.replace("\0", "\ufffd")  # which no row of a file may hold
        self._check(text)
        ended = bool(rollout.ended[0])
        return Reply(name, text, len(reply), ended, self._score(rollout, row), first)

    @torch.no_grad()
    def _score(self, rollout: Rollout, row: dict[str, Any]) -> float | None:
        if self.reward is None:
            return None
        with self.judging:
            ids = rollout.row(0) if self.texts is None else self.texts(rollout, [row])[0]
        read = torch.tensor([ids], device=self.launch.device)
        with self.judging, self.launch.autocast():
            return round(self.reward.scores(read, torch.ones_like(read).bool()).item(), 4)
