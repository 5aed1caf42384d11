"""The configuration tree. Each field's docstring says its unit and the reason for its default.

Imports nothing heavy: `--help` and argument errors must answer before torch is loaded.
"""

from dataclasses import dataclass, field
from typing import Literal, Optional

from cores.config.data import DataSection
from cores.config.limits import number
from cores.config.ppo import LoraSection, PPOSection
from cores.config.template import TemplateSection

Optimizer = Literal["adamw", "adafactor", "lion", "paged_adamw_8bit"]
Schedule = Literal["linear", "cosine", "restarts", "constant"]


@dataclass(frozen=True)
class ModelSection:
    """The base model that stage 1 starts from."""

    path: str = "gpt2"
    """Local folder in Hugging Face form, or hub id. gpt2: the recipe's smallest model."""
    revision: Optional[str] = None
    """Commit, branch or tag of a hub id in `path`. None: its main branch."""
    attention: Literal["causal", "prefix"] = "causal"
    """prefix: the tokens of the prompt see each other both ways, those of the reply what is before
    them (a prefix language model, as GLM); of the policy in all stages, docs/models.md."""
    from_config: bool = False
    """Begin stage 1 with random weights from the folder's config.json, which then needs none."""
    trainable: list[str] = field(default_factory=list)
    """Names of the weights that stage 1 trains, with * for any text; the rest is frozen. Empty:
    all, or the adapters."""
    pad_token: Optional[str] = None
    """Token of the vocabulary to pad with, one that no text uses. None: the tokenizer's own if it
    is not the end-of-sequence token, else a new token `<|pad|>` is added."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16: compute under bfloat16 autocast with fp32 master weights. fp16: in float16, with losses
    scaled so that gradients neither vanish nor overflow, for GPUs that have no bf16; not with
    DeepSpeed or FSDP2. fp32 runs everywhere."""
    quantization: Literal["none", "bf16", "8bit", "4bit"] = "none"
    """How frozen bases are held, in stages with adapters. bf16, with precision bf16: linear layers
    as autocast rounds them anyway, so half the memory for the same numbers. 8bit, 4bit
    (bitsandbytes; Dettmers et al. 2022, 2023): less still, for time and some accuracy."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time for far less memory."""


@dataclass(frozen=True)
class StepsSection:
    """What stages 1 and 2 have in common."""

    revision: Optional[str] = None
    """Commit, branch or tag of a hub id in `path`. None: its main branch."""
    max_steps: Optional[int] = number(None, above=0)
    """Optimizer steps at most. None: as the epochs give. A run goes on with neither changed:
    warm-up and schedule are shares of the whole."""
    optimizer: Optimizer = "adamw"
    """adamw (Loshchilov and Hutter 2019), adafactor (Shazeer and Stern 2018, at this rate), lion
    (Chen et al. 2023), or adamw with its state paged in 8 bits (needs bitsandbytes)."""
    lr_schedule: Schedule = "cosine"
    """How the rate falls behind the warm-up; restarts: cosine again and again, as
    often as there are epochs, each time as long."""
    lr_floor: float = number(0.0, below=1)
    """Share of the peak at which cosine and restarts end. 0: they fall to nothing."""
    warmup: float = number(0.03)
    """Steps in which the learning rate rises linearly: a share of all below 1, else their number;
    Alpaca's value."""
    weight_decay: float = 0.0
    """Weight decay; none, as in Alpaca."""
    no_decay: list[str] = field(default_factory=list)
    """Names of weights without decay, with * for any text. Empty: biases and norms, as the Trainer
    of transformers chooses them."""
    batch_size: int = number(32, above=0)
    """Rows, pairs or rated replies an optimizer step, over all processes."""
    microbatch_size: int = number(8, above=0)
    """Of them a forward pass on one process; lower it when memory runs out, the result is the
    same."""
    max_grad_norm: float = number(1.0, above=0)
    """Gradients are clipped to this norm; the field's usual 1."""


@dataclass(frozen=True)
class SFTSection(StepsSection):
    """Stage 1: supervised fine-tuning."""

    path: Optional[str] = None
    """An instruct model, folder or hub id, in place of running the stage: stages 2 and 3 start from
    it (docs/models.md). None: they start from what stage 1 wrote."""
    epochs: float = number(3.0, above=0, most=1e6)
    """Passes over the data; 3 as in Coati (2023-04)."""
    learning_rate: float = number(2e-5, above=0, most=1)
    """Peak learning rate; Alpaca's value, safe for 0.1-7B models."""
    group_by_length: bool = False
    """Batches of rows of about one length: less padding, an order that is less random."""
    max_length: int = number(512, above=0)
    """Tokens a row at most; longer rows lose their end, and are counted."""
    loss_on: Literal["assistant", "last", "all"] = "assistant"
    """assistant: every assistant turn (the completion, where there is one turn). last: only the
    last assistant turn. all: every token."""
    packing: bool = False
    """Put several rows side by side into each row of max_length tokens, none seeing another; less
    padding for short rows. batch_size and microbatch_size then count these wide rows. Refused where
    a trial before training shows that the model mixes them."""
    prefix_tokens: int = 0
    """Prefix tuning (Li and Liang 2021; P-Tuning v2, Liu et al. 2021): so many trained keys and
    values in every layer before each row, and nothing else trained. 0: off."""
    lora: LoraSection = field(default_factory=LoraSection)
    """Adapters of this stage."""


@dataclass(frozen=True)
class RewardSection(StepsSection):
    """Stage 2: the reward model."""

    path: Optional[str] = None
    """A one-label reward model, folder or hub id, in place of running the stage, of any tokenizer
    and template; stage 3 calibrates its score at the start. None: what stage 2 wrote."""
    epochs: float = number(1.0, above=0, most=1e6)
    """Passes over the pairs; reward models overfit from the second on (Ouyang et al. 2022)."""
    learning_rate: float = number(9e-6, above=0, most=1)
    """Peak learning rate; Coati's value (2023-09)."""
    kind: Literal["pairwise", "pointwise", "binned"] = "pairwise"
    """What is learned: pairs (Bradley and Terry 1952), a score of each reply (mean squared error),
    or which of `bins` ratings it has (cross-entropy; the score is their expectation)."""
    bins: int = number(5, least=2)
    """Ratings 1 to so many, with kind binned."""
    head_layers: int = number(1, least=1, most=2)
    """1: a linear head. 2: linear, ReLU, linear."""
    freeze_base: bool = False
    """Train the head alone."""
    base: Optional[str] = None
    """Model, folder or hub id, that the reward model starts from in place of stage 1's; of the same
    tokenizer."""
    max_length: int = number(512, above=0)
    """Tokens a side at most; longer sides lose their end, and are counted. Coati's value."""
    center_coef: float = 0.0
    """With kind pairwise: weight of mean((r_chosen + r_rejected)^2), which keeps scores near 0
    (Eisenstein et al. 2023). 0: off, as calibration sets the mean afterwards."""
    calibration_samples: int = number(256, least=2)
    """Replies of the stage-1 model whose scores get mean 0 and standard deviation 1 (Ziegler et al.
    2019, section 2); with `path` in stage 3. 256 gives the mean to about 0.06 deviations."""
    calibration_tokens: Optional[int] = number(None, above=0)
    """New tokens of a calibration reply at most. None: `ppo.max_new_tokens`, as the scale is for
    replies of that length."""
    lora: LoraSection = field(default_factory=LoraSection)
    """Adapters of this stage; the head is always trained in full."""


@dataclass(frozen=True)
class LoggingSection:
    """What a run leaves to look at."""

    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=list)
    """Also log to these, with the names of metrics.jsonl, which is always written. W&B is offline
    unless WANDB_MODE says otherwise, so that a run never waits for a login."""
    project: str = "tristage"
    """Project that W&B and trackio file the run under."""
    samples: bool = True
    """Keep prompts and replies to look at: sample files, trackers, the report, votes of the chat
    page. false: no file of the run and no tracker holds any, nor what may quote one (output of
    reward functions, the words of an error, which are on the screen alone)."""


@dataclass(frozen=True)
class RolloutSection:
    """How replies are sampled, in stage 3 and for stage 2's calibration."""

    engine: Literal["auto", "graph", "hf", "vllm"] = "auto"
    """graph: our own decode step over a cache in place, on CUDA one captured graph a token
    (GPT-2, OPT, GPT-NeoX, Llama, Mistral, Qwen 2 and 3). hf: Hugging Face generate, slow, for
    every architecture. auto: graph where it can, else hf, and a line says why. vllm: vLLM 0.30, an
    environment of its own (docs/models.md), in stage 3 alone, elsewhere as auto: a copy of the
    weights on each process, replies from other random numbers."""
    cache_gb: float = number(4.0, above=0)
    """vllm: GiB of its keys and values on each process; replies that do not fit wait."""


@dataclass(frozen=True)
class CheckpointSection:
    """What an unfinished run keeps to go on from (docs/reliability.md)."""

    every_steps: Optional[int] = number(None, above=0)
    """Steps between checkpoints: optimizer steps in stages 1 and 2, updates in stage 3. None:
    by time alone."""
    every_minutes: Optional[float] = number(15.0, above=0)
    """Minutes between checkpoints: what a killed run loses at most. None: by steps alone."""
    keep: int = number(2, above=0)
    """Checkpoints kept, the newest ones; an older one goes when a newer one is whole."""
    keep_weights: int = 0
    """Stage 3: the policy of every so many updates stays as ppo/weights/step-N. 0: none."""
    stop_after_minutes: Optional[float] = number(None, above=0)
    """Stop so many minutes after the start as a signal would: save, and exit with 75. For machines
    that are taken away at a known time. None: off."""


@dataclass(frozen=True)
class FaultsSection:
    """What a run does about numbers that are none."""

    nonfinite: Literal["stop", "skip"] = "stop"
    """A gradient with NaN or infinity. stop: end the run, its last checkpoint kept. skip: leave
    that optimizer step out and count it; not under DeepSpeed, whose engine takes it unasked."""
    max_skips: int = 3
    """With skip: so many in a row; one more ends the run."""


@dataclass(frozen=True)
class Config:
    """Supervised fine-tuning, reward model and PPO from one file."""

    output_dir: str = "runs/default"
    """Folder of the run; stages write sft/, reward/ and ppo/ in it and find each other there."""
    seed: int = number(0, most=2**32 - 1)
    """Seeds data order, dropout, heads and sampling; numpy takes no larger one."""
    overwrite: bool = False
    """Replace the finished stage once the new one is whole; off, so that nothing trained is lost by
    mistake."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on with an unfinished run of the stage, which needs the same options. never: begin
    anew, and remove it when training begins."""
    model: ModelSection = field(default_factory=ModelSection)
    """Base model."""
    template: TemplateSection = field(default_factory=TemplateSection)
    """Conversation to text."""
    data: DataSection = field(default_factory=DataSection)
    """Data sets."""
    sft: SFTSection = field(default_factory=SFTSection)
    """Stage 1."""
    reward: RewardSection = field(default_factory=RewardSection)
    """Stage 2."""
    ppo: PPOSection = field(default_factory=PPOSection)
    """Stage 3."""
    rollout: RolloutSection = field(default_factory=RolloutSection)
    """Sampling."""
    logging: LoggingSection = field(default_factory=LoggingSection)
    """Logging."""
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    """What an unfinished run keeps."""
    faults: FaultsSection = field(default_factory=FaultsSection)
    """What happens when numbers go bad."""
