"""All three stages in one launch, as a job script on a cluster would run them.

_chain_worker.py ARGUMENTS OF THE STAGES
"""

import stage1_sft
import stage2_rm
import stage3_ppo
from cores.runtime.cli import guarded


def main(argv: list[str]) -> None:
    for stage in (stage1_sft, stage2_rm, stage3_ppo):
        stage.main(argv)


if __name__ == "__main__":
    guarded(main)
