"""Will it fit, and how long does a step take? Answers before anything runs; needs no GPU.

    python scripts/plan.py --config c.yaml --gpus N --gpu-memory GB [--nodes M]
        [--stage sft|reward|ppo] [--gpu NAME] [--prompt-tokens P] [--reply-tokens R]
        [--json OUT] [--launch FILE] [--section.key value ...]

N: GPUs a host. Of models only their config.json is read. Rows are taken to be as long as the
configuration lets them be, unless --prompt-tokens says how long the longest prompt is, or
--reply-tokens how long replies are on average. Prints memory a GPU by role and phase, seconds a
step by part, other ways, and the accelerate file (to FILE with --launch). OUT: peak_gb and seconds
of each stage, with what they consist of. Exit status 0 with a plan that fits, 1 without.
docs/scaling.md says what is measured and what is computed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.config import Config, check_run, parse_config
from cores.errors import UserError
from cores.forecast import shapes_of
from cores.memory import Case, Layout
from cores.runtime.cli import guarded
from cores.shapes import Texts
from scripts.plan.layouts import Plan, best_of, largest, ways
from scripts.plan.text import SCRIPTS, launch_file, report
from scripts.plan.times import CARDS, card_of


class Options(argparse.ArgumentParser):
    """Whose mistakes are a paragraph like those of the configuration."""

    def error(self, message: str) -> Any:
        raise UserError(f"command line: {message}. `python scripts/plan.py --help` lists options.")


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own, and the words of the configuration; UserError for numbers that cannot be."""
    parser = Options(description=__doc__, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--gpus", type=int, required=True, help="of a host")
    parser.add_argument("--gpu-memory", type=float, required=True, help="GB (10^9 bytes) of one")
    parser.add_argument("--nodes", type=int, default=1, help="hosts")
    parser.add_argument("--stage", choices=tuple(SCRIPTS), help="default: all that there are")
    parser.add_argument("--gpu", help=f"whose rates to take: {', '.join(c.name for c in CARDS)}")
    parser.add_argument("--prompt-tokens", type=int, help="of the longest prompt")
    parser.add_argument("--reply-tokens", type=float, help="of a reply, on average")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--launch", type=Path, help="accelerate file to write")
    args, words = parser.parse_known_args(argv)
    for name in ("gpus", "gpu_memory", "nodes", "prompt_tokens", "reply_tokens"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1e6:
            raise UserError(
                f"command line: --{name.replace('_', '-')} is {value:g}; give a number above 0, "
                "such as --gpus 8 --gpu-memory 80 for one host of eight 80 GB GPUs."
            )
    if args.gpu and args.gpu.lower() not in (card.name.lower() for card in CARDS):
        known = ", ".join(card.name for card in CARDS)
        raise UserError(f"command line: --gpu {args.gpu} is not known; there are {known}.")
    return args, words


def check_shares(config: Config, stage: str, world: int) -> None:
    """UserError if the stage's batches do not divide over the processes, as the stage says it."""
    section = getattr(config, stage)
    sizes = {"batch_size": section.batch_size}
    if stage == "ppo":
        sizes["batch_size"] //= section.samples_per_prompt
        sizes["minibatch_size"] = section.minibatch_size
    for key, size in sizes.items():
        if size % world:
            per = " / ppo.samples_per_prompt" * (size != getattr(section, key))
            raise UserError(
                f"{stage}.{key}{per}: {size} rows do not divide over {world} processes; choose a "
                f"multiple of {world}."
            )
    own = section.batch_size // world
    if stage != "ppo" and own % min(section.microbatch_size, own):
        raise UserError(
            f"{stage}.microbatch_size: {section.microbatch_size} does not divide the {own} rows of "
            f"a process ({stage}.batch_size {section.batch_size} over {world}); choose a divisor."
        )


def stages_of(config: Config) -> list[str]:
    """Those that the configuration runs."""
    found = [name for name in ("sft", "reward") if getattr(config, name).path is None]
    if "model" not in config.ppo.rewards:
        found = [name for name in found if name != "reward"]
    return [*found, "ppo"]


def figures(chosen: Plan, given: Plan) -> dict[str, Any]:
    """What OUT holds of a stage."""
    phase, size = chosen.peak
    return {
        "peak_gb": size / 1e9,
        "peak_phase": phase,
        "seconds": chosen.total,
        "fits": chosen.fits,
        "launch": chosen.name,
        "options": chosen.options,
        "parts": chosen.seconds,
        "memory_gb": {
            name: [[each.role, each.what, each.bytes / 1e9] for each in held]
            for name, held in chosen.phases.items()
        },
        "as_configured": {"peak_gb": given.peak[1] / 1e9, "seconds": given.total},
    }


def main(argv: list[str]) -> None:
    """Command line."""
    args, words = arguments(argv)
    config = parse_config(words, "scripts/plan.py", "Plan a run.")
    if args.stage in ("sft", "reward"):
        check_run(config, args.stage)
    world = args.gpus * args.nodes
    card = card_of(args.gpu_memory, args.gpu)
    layout = Layout(world, card=args.gpu_memory * 1e9)
    ppo, found, chosen = config.ppo, {}, None
    texts = Texts(
        args.prompt_tokens or ppo.max_prompt_length,
        ppo.max_new_tokens,
        min(args.reply_tokens or ppo.max_new_tokens, ppo.max_new_tokens),
    )
    said = "replies as long as they may be" if not texts.stops else f"mean {texts.mean:g} tokens"
    fits = True
    for stage in [args.stage] if args.stage else stages_of(config):
        check_shares(config, stage, world)
        policy, judge = shapes_of(config, stage)
        case = Case(config, policy, judge, layout, texts)
        forms = ways(stage, case, card, args.nodes)
        chosen = best_of(forms)
        fits &= chosen is not None
        micro = largest(chosen, card, args.nodes) if chosen else 0
        rows = (
            f"rows of {getattr(config, stage).max_length}"
            if stage != "ppo"
            else (f"prompts of {texts.prompt}, {said}")
        )
        print(report(stage, forms, chosen, card, micro, rows), end="\n\n")
        found[stage] = figures(chosen or forms[0], forms[0])
    if chosen is not None:
        text = launch_file(chosen, args.nodes)
        if args.launch is None:
            print(f"launch file of {chosen.stage}:\n{text}")
        else:
            args.launch.write_text(text, encoding="utf-8")
            print(f"wrote {args.launch}")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {args.json}")
    sys.exit(0 if fits else 1)


if __name__ == "__main__":
    guarded(main)
