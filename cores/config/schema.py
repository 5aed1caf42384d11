"""The configuration tree. Each field's docstring says its unit and the reason for its default.

Imports nothing heavy: `--help` and argument errors must answer before torch is loaded.
"""

from dataclasses import dataclass, field
from typing import Literal, Optional

from cores.config.sources import DataSection


@dataclass(frozen=True)
class RoleTemplate:
    """What stands around one turn."""

    prefix: str = ""
    """Text before the turn's content."""
    suffix: str = ""
    """Text after the turn's content. An assistant turn's suffix is followed by the stop token."""


@dataclass(frozen=True)
class TemplateSection:
    """How a conversation becomes text."""

    kind: Literal["chat", "roles", "none"] = "chat"
    """chat: the tokenizer's own chat template. roles: the three fields below. none: prompt and
    reply verbatim. Chat by default: today's models carry a template and do worse without it."""
    system: RoleTemplate = field(default_factory=RoleTemplate)
    """Around a system turn, with kind roles."""
    user: RoleTemplate = field(default_factory=RoleTemplate)
    """Around a user turn, with kind roles."""
    assistant: RoleTemplate = field(default_factory=RoleTemplate)
    """Around an assistant turn, with kind roles; its prefix ends the prompt of stage 3."""
    system_prompt: Optional[str] = None
    """System turn put before conversations that have none. None: nothing is put."""
    separator: str = "\n"
    """Between `instruction` and `input` of a row that has both; a line break, as is usual."""


@dataclass(frozen=True)
class ModelSection:
    """The base model that stage 1 starts from."""

    path: str = "gpt2"
    """Local folder in Hugging Face form, or hub id. gpt2: the recipe's smallest model."""
    pad_token: Optional[str] = None
    """Token of the vocabulary to pad with, one that no text uses. None: the tokenizer's own if it
    is not the end-of-sequence token, else a new token `<|pad|>` is added."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: compute under bfloat16 autocast with fp32 master weights. fp32 runs everywhere."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Hold frozen bases in 8 or 4 bits (bitsandbytes; Dettmers et al. 2022, 2023), for stages with
    adapters. None by default: it saves memory and costs time and some accuracy."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time for far less memory."""


@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters (Hu et al. 2021) instead of full fine-tuning."""

    rank: int = 0
    """Rank of the adapters. 0: train all weights."""
    alpha: float = 16.0
    """Adapters are scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout before the adapters, 0 to 1; stage 3 needs 0 (old and new log-probs must agree)."""
    target_modules: Optional[list[str]] = None
    """Names of the layers adapted. None: every linear layer but the head."""
    merge: bool = True
    """Write the merged model too, so that the folder loads like any other. Off: the adapter alone,
    in peft's form, which saves disk and needs its base wherever it is used."""


@dataclass(frozen=True)
class SFTSection:
    """Stage 1: supervised fine-tuning."""

    epochs: float = 3.0
    """Passes over the data; 3 as in Coati (2023-04)."""
    max_steps: Optional[int] = None
    """Optimizer steps at most. None: as the epochs give."""
    learning_rate: float = 2e-5
    """Peak learning rate of AdamW; Alpaca's value, safe for 0.1-7B models."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the learning rate rises linearly; Alpaca's value."""
    weight_decay: float = 0.0
    """AdamW weight decay; none, as in Alpaca."""
    batch_size: int = 32
    """Rows an optimizer step, over all processes."""
    microbatch_size: int = 8
    """Rows a forward pass on one process; lower it when memory runs out, the result is the same."""
    max_length: int = 512
    """Tokens a row at most; longer rows lose their end, and are counted."""
    loss_on: Literal["assistant", "last", "all"] = "assistant"
    """assistant: every assistant turn (the completion, where there is one turn). last: only the
    last assistant turn. all: every token."""
    packing: bool = False
    """Put several rows side by side into each row of max_length tokens, none seeing another; less
    padding for short rows. batch_size and microbatch_size then count these wide rows. Refused where
    a trial before training shows that the model mixes them."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; the field's usual 1."""
    lora: LoraSection = field(default_factory=LoraSection)
    """Adapters of this stage."""


@dataclass(frozen=True)
class RewardSection:
    """Stage 2: the reward model."""

    epochs: float = 1.0
    """Passes over the pairs; reward models overfit from the second on (Ouyang et al. 2022)."""
    max_steps: Optional[int] = None
    """Optimizer steps at most. None: as the epochs give."""
    learning_rate: float = 9e-6
    """Peak learning rate of AdamW; Coati's value (2023-09), cosine decay."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the learning rate rises linearly."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    batch_size: int = 32
    """Pairs an optimizer step, over all processes."""
    microbatch_size: int = 8
    """Pairs a forward pass on one process."""
    max_length: int = 512
    """Tokens a side at most; longer sides lose their end, and are counted. Coati's value."""
    center_coef: float = 0.0
    """Weight of mean((r_chosen + r_rejected)^2), which keeps scores near 0 (Eisenstein et al.
    2023). 0: off, as calibration sets the mean afterwards."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    calibration_samples: int = 256
    """Replies of the stage-1 model whose scores get mean 0 and standard deviation 1 (Ziegler
    et al. 2019, section 2). 256 gives the mean to about 0.06 standard deviations."""
    calibration_tokens: Optional[int] = None
    """New tokens of a calibration reply at most. None: `ppo.max_new_tokens`, as the scale is for
    replies of that length."""
    lora: LoraSection = field(default_factory=LoraSection)
    """Adapters of this stage; the head is always trained in full."""


@dataclass(frozen=True)
class PPOSection:
    """Stage 3: proximal policy optimization (Schulman et al. 2017)."""

    updates: int = 200
    """Rounds of rollout, scoring and optimization."""
    batch_size: int = 128
    """Prompts a rollout, over all processes; one reply each."""
    minibatch_size: int = 32
    """Replies an optimizer step, over all processes; divides batch_size."""
    microbatch_size: int = 8
    """Replies a forward pass on one process; changes memory, not results."""
    epochs: int = 4
    """Passes over a rollout; 4 as in the original PPO and TRL."""
    max_prompt_length: int = 256
    """Tokens; longer prompts are dropped and counted."""
    max_new_tokens: int = 128
    """Tokens of a reply at most, the end-of-sequence token included."""
    temperature: float = 1.0
    """Of sampling and of every log-prob. 1: the policy itself is sampled."""
    stop_token_ids: list[int] = field(default_factory=list)
    """Ids that end a reply besides the end-of-sequence token."""
    actor_learning_rate: float = 1e-6
    """Peak learning rate of the actor; OpenRLHF's and verl's value for 1-7B models; small
    ones take more."""
    critic_learning_rate: float = 9e-6
    """Peak learning rate of the critic; OpenRLHF's value."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up: constant, or falling towards 0, linearly or as a cosine."""
    warmup_ratio: float = 0.03
    """Share of the optimizer steps in which both learning rates rise linearly."""
    adam_beta2: float = 0.95
    """Second-moment decay of both AdamW; OpenRLHF's value, quick to follow a moving objective."""
    adam_eps: float = 1e-5
    """AdamW epsilon; 1e-5 as in PPO implementations, 1e-8 takes larger first steps."""
    weight_decay: float = 0.0
    """AdamW weight decay of both."""
    max_grad_norm: float = 1.0
    """Actor and critic gradients are each clipped to this norm."""
    kl_coef: float = 0.05
    """Price of one nat of KL from the reference in units of calibrated score; TRL's value."""
    kl_kind: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL a token (Schulman 2020); k1 is unbiased as a reward."""
    gamma: float = 1.0
    """Discount a token; 1, since replies are finite."""
    lam: float = 0.95
    """GAE lambda (Schulman et al. 2016)."""
    clip: float = 0.2
    """Probability ratios are clipped to 1 - clip .. 1 + clip."""
    value_clip: float = 0.2
    """Values move at most this far from the rollout's in one update's loss, in units of score."""
    whiten_advantages: bool = True
    """Advantages to mean 0, variance 1 over the whole rollout."""
    missing_eos_penalty: float = 1.0
    """Taken from the score of a reply that never stopped, in calibrated score units."""
    reward_clip: float = 5.0
    """Scores are clipped to plus or minus this; DeepSpeed-Chat's and Coati V2's value. 0: no
    clipping."""
    eval_prompts: int = 128
    """Held-out prompts on which score and KL are measured before and after. 0: no evaluation."""
    sample_every: int = 10
    """Updates between the sample replies written to samples.jsonl. 0: none."""
    lora: LoraSection = field(default_factory=LoraSection)
    """Adapters of actor and critic; the reference is then the actor with its adapter off."""


@dataclass(frozen=True)
class LoggingSection:
    """What a run leaves to look at."""

    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=list)
    """Also log to these, with the names of metrics.jsonl, which is always written. W&B is offline
    unless WANDB_MODE says otherwise, so that a run never waits for a login."""
    project: str = "tristage"
    """Project that W&B and trackio file the run under."""


@dataclass(frozen=True)
class Config:
    """Supervised fine-tuning, reward model and PPO from one file."""

    output_dir: str = "runs/default"
    """Folder of the run; stages write sft/, reward/ and ppo/ in it and find each other there."""
    seed: int = 0
    """Seeds data order, dropout, heads and sampling."""
    overwrite: bool = False
    """Replace the stage's folder if it exists; off, so that nothing trained is lost by mistake."""
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
    logging: LoggingSection = field(default_factory=LoggingSection)
    """Logging."""
