"""Talk to a run: base, SFT and PPO side by side, with the reward model's score, and vote.

    python scripts/chat.py --config c.yaml [--port 7860] [--terminal] [--SECTION.KEY VALUE ...]

Answers are streamed by the engine that stage 3 samples with. The page is for the browser of this
machine alone; from elsewhere go through `ssh -L 7860:localhost:7860 HOST`. A choice is appended to
<output_dir>/votes.jsonl, which stage 2 reads: --data.preference.path <output_dir>/votes.jsonl.

  --port N             of the page; 0: any that is free. 7860 by default.
  --terminal           no page: questions and answers here.
  --blind              answers without names and scores, in any order, until there is a vote.
  --temperature X --top_p X --max_new_tokens N --seed N
                       how replies are sampled at first: as in stage 3 where not given.
  --gate FOLDER        a moderation model (docs/chat.md) that questions and answers must pass, or
                       FILE.py:FUNCTION, function(text): None, or why it may not pass.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.config import parse_config
from cores.errors import UserError
from cores.runtime.cli import guarded


def options(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Ours, and what is the configuration's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--port", type=int, default=7860)
    for name in ("--terminal", "--blind"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("--gate")
    for name, kind in (("temperature", float), ("top_p", float), ("max_new_tokens", int)):
        parser.add_argument(f"--{name}", type=kind)
    if "-h" in argv or "--help" in argv:
        print(__doc__.strip())
        raise SystemExit(0)
    try:
        found, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UserError(f"{error}. `chat.py --help` says what there is.") from None
    if not 0 <= found.port <= 65535:
        raise UserError(f"--port: {found.port} must be from 0 to 65535.")
    return found, rest


def main(argv: list[str]) -> None:
    """Load what is finished, and answer until Ctrl-C."""
    given, rest = options(argv)
    config = parse_config(rest, "chat.py", "Talk to a run.")

    from cores.runtime.launch import launch
    from scripts.chat.server import Server
    from scripts.chat.terminal import talk
    from scripts.chat.voices import Voices
    from scripts.chat.votes import FILE
    from scripts.evaluation.gates import gate_of

    here = launch(config)
    if here.world > 1:
        raise UserError("chat.py runs as one process; start it with python alone.")
    voices = Voices(config, here, gate_of(given.gate))
    controls = voices.default.changed(vars(given))
    file, keep = Path(config.output_dir).expanduser() / FILE, config.logging.samples
    if given.terminal:
        return talk(voices, controls, given.blind, file, keep)
    try:
        server = Server(voices, controls, file, keep, given.port, given.blind)
    except OSError as error:
        raise UserError(
            f"--port {given.port}: {error.strerror}. Another chat may run; give another --port."
        ) from None
    print(
        f"{', '.join(voices.engines)} answer at http://localhost:{server.server_port}", flush=True
    )
    print("Ctrl-C ends it.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


if __name__ == "__main__":
    guarded(main)
