"""One run of a stage: who may write, what it leaves, how it goes on, and how it becomes final."""

from cores.run.checkpoint import Checkpoint
from cores.run.stage import StageRun
from cores.runtime.stop import Stopped
