"""Stage 3's part of the configuration, and which of its options each estimator reads."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Optional

from cores.config.limits import number


@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters (Hu et al. 2021) instead of full fine-tuning."""

    rank: int = number(0, most=16384)
    """Rank of the adapters. 0: train all weights."""
    alpha: float = number(16.0, above=0)
    """Adapters are scaled by alpha / rank."""
    dropout: float = number(0.0, below=1)
    """Dropout before the adapters, 0 to 1; stage 3 needs 0 (old and new log-probs must agree)."""
    target_modules: Optional[list[str]] = None
    """Names of the layers adapted. None: every linear layer but the head."""
    merge: bool = True
    """Write the merged model too, so that the folder loads like any other. Off: the adapter alone,
    in peft's form, which saves disk and needs its base wherever it is used."""
    share_base: Literal["auto", "true", "false"] = "auto"
    """Stage 3: actor, reference, critic and reward model over one frozen base in memory, each with
    adapters of its own, which takes that stage 2 trained an adapter on stage 1's model. auto: where
    it can be, and a line says what is shared; else reward model and critic share theirs where they
    can. true: or an error. false: critic and reward model have a base each."""


@dataclass(frozen=True)
class AdamSection:
    """AdamW of one trained role (Loshchilov & Hutter 2019)."""

    beta1: float = number(0.9, below=1)
    """First-moment decay."""
    beta2: float = number(0.95, below=1)
    """Second-moment decay; OpenRLHF's value, quick to follow a moving objective."""
    eps: float = number(1e-8, above=0)
    """1e-8, torch's. The 1e-5 of PPO on games brakes where gradients are small: with it a model of
    135M parameters needed 14 updates in place of 10, 22 in place of 19, on one seed each
    (docs/defaults.md)."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""


@dataclass(frozen=True)
class CoatiSection:
    """Defects of the 2023 original, for `estimator: coati` alone; all on is that recipe."""

    reversed_kl: bool = True
    """The penalty's log-ratio is log reference - log policy with the two exchanged (ColossalAI
    issue 3696)."""
    mean_over_positions: bool = True
    """Score and value are means over the tokens of a row but its last, the prompt's included (issue
    3950; the original's took in padding). Off: the score of the last token, the value before the
    first."""
    r_minus_v: bool = True
    """Every token's advantage is reward - value, one number a reply (issue 4491). Off: GAE."""
    same_prompts: bool = True
    """Every update reads the first batch of prompts (issue 3759)."""


@dataclass(frozen=True)
class PPOSection:
    """Stage 3: proximal policy optimization (Schulman et al. 2017)."""

    updates: int = number(200, above=0)
    """Rounds of rollout, scoring and optimization. An unfinished run may be given more if it began
    with a constant lr_schedule and a warmup of 0, or of so many steps: else these are shares of the
    whole."""
    batch_size: int = number(128, above=0)
    """Replies a rollout, over all processes."""
    samples_per_prompt: int = number(1, above=0)
    """Replies to each prompt of a rollout; divides batch_size. grpo and rloo need 2 or more:
    they compare the replies to one prompt."""
    minibatch_size: int = number(32, above=0)
    """Replies an optimizer step, over all processes; divides batch_size."""
    microbatch_size: int = number(8, above=0)
    """Replies a forward pass on one process; changes memory, not results. Where no role's
    architecture reads padding (docs/models.md): as many as have the tokens of so many of the
    longest, max_prompt_length + max_new_tokens each."""
    microbatch_tokens: Optional[int] = number(None, above=0)
    """In place of microbatch_size: tokens of a forward pass of the update. Short replies then go
    many at a time; ptx rows still by microbatch_size. None: microbatch_size replies. Scoring,
    which keeps nothing for a backward pass, takes four times as much of either. Padding counts
    where it is read, in captured passes as multiples of 32; where it is not, they may have an
    eighth more, so that shapes come again."""
    passes: Literal["auto", "eager", "captured", "compiled"] = "auto"
    """How micro-batches go forward and back; no number changes beyond rounding. auto: as CUDA
    graphs, one launch in place of thousands, for models of up to 500 million parameters on a
    GPU, where they can be captured and a pass is small (parameters times tokens up to 3e12); eager
    elsewhere. A shape of micro-batch is captured when it comes the third time, the first 64 of
    them; they keep the memory of their activations. captured: so for all models, or an error: not
    with DeepSpeed or FSDP2, checkpointed layers, quantised bases or ptx rows, and for the
    architectures of `rollout.engine: graph` alone; of a large model, whose rollouts then keep
    their buffers too, this is faster than eager and takes more memory. compiled: as auto, with
    layers by torch.compile, fewer and fused kernels; the first update takes longer, less so where
    torch finds what it compiled before."""
    epochs: int = number(4, above=0)
    """Passes over a rollout; 4 as in the original PPO and TRL."""
    max_prompt_length: int = number(256, above=0)
    """Tokens; longer prompts are dropped and counted."""
    max_new_tokens: int = number(128, above=0)
    """Tokens of a reply at most, the end-of-sequence token included."""
    min_new_tokens: int = 0
    """Tokens before a reply may stop; stop ids have probability 0 there, in every log-prob."""
    temperature: float = number(1.0, above=0, most=1000)
    """Of sampling and of every log-prob. 1: the policy itself is sampled."""
    stop_token_ids: list[int] = field(default_factory=list)
    """Ids that end a reply besides the end-of-sequence token."""
    stop_strings: list[str] = field(default_factory=list)
    """Texts that end a reply at the token that completes them, for bases that were not taught
    to stop. Neither a text that begins in the prompt nor one within min_new_tokens counts."""
    rewards: dict[str, float] = field(default_factory=lambda: {"model": 1.0})
    """Sources of the score and their weights: `model` is stage 2's reward model,
    `file.py:function` calls function(prompts, responses, rows) -> list of float. Each is logged
    apart, with weight 0 only that. Without `model` stage 2 is not needed."""
    reward_timeout: Optional[float] = number(600.0, above=0)
    """Seconds a function of `rewards` may take for a rollout, and its file to be imported. None: no
    limit."""
    estimator: Literal["gae", "coati", "grpo", "rloo", "reinforce_pp"] = "gae"
    """Advantages. gae: of a critic's values (Schulman et al. 2016). grpo: score less the
    prompt's mean, over its deviation (Shao et al. 2024). rloo: score less the mean of the
    prompt's other replies (Ahmadian et al. 2024). reinforce_pp: the return itself (Hu 2025).
    coati: the 2023 original's, to compare with. Only gae and coati have a critic."""
    group_std: bool = True
    """grpo: divide by the standard deviation of the prompt's scores. Off: Dr. GRPO (Liu et al.
    2025), which does not favour prompts whose replies score alike."""
    coati: CoatiSection = field(default_factory=CoatiSection)
    """Only with `estimator: coati`."""
    actor_learning_rate: float = number(1e-6, above=0, most=1)
    """Peak learning rate of the actor; OpenRLHF's and verl's value for 1-7B models. Smaller ones
    take more: 2e-5 at 135M parameters, 3e-4 under a million (docs/defaults.md)."""
    critic_learning_rate: float = number(9e-6, above=0, most=1)
    """Peak learning rate of the critic; OpenRLHF's value."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up: constant, or falling towards 0, linearly or as a cosine."""
    warmup: float = number(0.03)
    """Optimizer steps in which both learning rates rise linearly: a share of all below 1, else
    their number. Without it the first steps are longer and worth less: with 135M parameters the
    gain at a KL of 2 was lower by 0.14, on each of three seeds (docs/defaults.md)."""
    actor_adam: AdamSection = field(default_factory=AdamSection)
    """The actor's optimizer."""
    critic_adam: AdamSection = field(default_factory=AdamSection)
    """The critic's optimizer."""
    max_grad_norm: float = number(1.0, above=0)
    """Actor and critic gradients are each clipped to this norm."""
    critic_init: Optional[Literal["reward", "zero"]] = None
    """The critic starts as the reward model (Ouyang et al. 2022), or as the stage-1 model with
    a head of zeros (Ziegler et al. 2019), which `rewards` without `model` needs. None: reward,
    but zero where `reward.path` has another tokenizer or template."""
    critic_warmup: int = 0
    """First updates that train the critic alone; for a critic that starts from zero."""
    kl_coef: float = 0.05
    """Price of one nat of KL from the reference in units of calibrated score; TRL's value. With
    kl_target the value it starts from."""
    kl_kind: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL a token (Schulman 2020); k1 is unbiased as a reward, k2 and k3 serve
    as a loss."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL is paid: in each token's reward, or as a term of the policy loss (grpo's
    way, with k3)."""
    kl_target: Optional[float] = number(None, above=0)
    """Nats a reply that kl_coef is steered towards (Ziegler et al. 2019, section 2.2). None:
    kl_coef is fixed."""
    kl_horizon: float = number(10000, above=0)
    """Replies over which the steering acts; smaller is faster."""
    gamma: float = number(1.0, most=1)
    """Discount a token; 1, since replies are finite."""
    lam: float = number(0.95, most=1)
    """GAE lambda (Schulman et al. 2016)."""
    clip: float = number(0.2, above=0, below=1)
    """Probability ratios are clipped to 1 - clip .. 1 + clip."""
    clip_high: Optional[float] = number(None, above=0)
    """Upper clip, 1 + clip_high, where it differs: DAPO's 0.28 leaves rare tokens room to grow
    (Yu et al. 2025). None: as clip."""
    dual_clip: Optional[float] = number(None, above=1)
    """Where the advantage is negative the loss stops growing at this ratio; 3 in Ye et al.
    2020. For replies that have become far more likely since the rollout. None: off."""
    value_clip: float = number(0.2, above=0)
    """Values move at most this far from the rollout's in one update's loss, in units of
    score."""
    entropy_coef: float = 0.0
    """Weight of the mean entropy a token, which is added to the objective; against early
    collapse. It takes a full softmax in the backward pass."""
    early_stop_kl: Optional[float] = number(None, above=0)
    """An update ends after the minibatch whose KL from the rollout's policy (k3, nats a token)
    exceeds this; 0.02 is usual (Spinning Up's target_kl is .01 times 1.5). None: off."""
    ptx_coef: float = 0.0
    """Weight of the stage-1 loss on `data.sft` beside the policy's (Ouyang et al. 2022),
    against forgetting; DeepSpeed-Chat's is 27.8. 0: off."""
    ptx_mix: Literal["added", "convex"] = "added"
    """added: policy + ptx_coef * sft. convex: (1 - ptx_coef) * policy + ptx_coef * sft, the
    2023 original's, with 0.9."""
    loss_mean: Literal["tokens", "sequences"] = "tokens"
    """Losses are means over the minibatch's tokens, or over replies of each reply's mean
    (grpo's length term: a token of a long reply counts less)."""
    whiten_advantages: Optional[bool] = None
    """Advantages to mean 0, variance 1 over the whole rollout. None: with gae and
    reinforce_pp."""
    missing_eos_penalty: float = 1.0
    """Taken from the score of a reply that never stopped, in calibrated score units."""
    length_penalty: float = 0.0
    """Taken from the score for each token of the reply, in score units."""
    reward_clip: float = 5.0
    """Scores are clipped to plus or minus this; DeepSpeed-Chat's and Coati V2's value. 0: no
    clipping."""
    rollout_correction: Literal["none", "truncate", "mask"] = "none"
    """Importance weights trainer / rollout probability of each token in the policy loss, for an
    engine that samples from slightly other log-probs: cut at the cap, or 0 outside 1 / cap ..
    cap (Yao et al. 2025)."""
    rollout_cap: float = number(2.0, above=1)
    """Cap of those weights."""
    old_logprobs: Literal["auto", "recompute"] = "auto"
    """What ratios compare with. auto: the log-probs that the engine sampled with, if on the run's
    first rollout (with adapters the first one behind a step of theirs), and again on every tenth
    behind it, they are the trainer's within a tolerance (fp32: 1e-5 nats a token, at most 1e-4;
    bf16: 0.01, at most 0.5), which saves a forward pass an update; without rollout_correction.
    recompute: the trainer's, teacher-forced, always."""
    eval_prompts: int = 128
    """Held-out prompts on which score and KL are measured before and after. 0: no
    evaluation."""
    eval_every: int = 0
    """Updates between evaluations on the held-out prompts, besides before and after; each is a row
    of evaluations.jsonl. 0: none in between."""
    keep_best: Optional[float] = number(None, above=0)
    """With eval_every: the policy with the best held-out score among those whose KL is at most this
    (nats a reply) stays as ppo/weights/best. None: none is kept."""
    sample_every: int = 10
    """Updates between the sample replies written to samples.jsonl. 0: none."""
    lora: LoraSection = field(default_factory=LoraSection)
    """Adapters of actor and critic; the reference is then the actor with its adapter off."""

    @cached_property
    def pass_tokens(self) -> int:
        """Tokens of a forward pass of the update at most, if rows have no padding."""
        longest = self.max_prompt_length + self.max_new_tokens
        return self.microbatch_tokens or self.microbatch_size * longest


CRITIC = {"critic_learning_rate", "critic_adam", "critic_init", "critic_warmup", "value_clip"}
"""Options of stage 3 that only a critic gives an effect."""


@dataclass(frozen=True)
class Estimator:
    """One of `ppo.estimator`."""

    reads: frozenset[str]
    """Those of OPTIONS that it uses."""
    critic: bool = False
    """It needs values."""
    grouped: bool = False
    """It compares the replies to one prompt, so it needs 2 or more of each."""
    whitens: bool = False
    """Its advantages get mean 0 and variance 1 unless told otherwise."""


ESTIMATORS = {
    "gae": Estimator(frozenset({*CRITIC, "gamma", "lam", "kl_kind"}), critic=True, whitens=True),
    # Its KL is always k3; without ppo.coati.r_minus_v it reads GAE's options too.
    "coati": Estimator(frozenset({*CRITIC, "coati"}), critic=True),
    "grpo": Estimator(frozenset({"group_std", "kl_kind"}), grouped=True),
    "rloo": Estimator(frozenset({"kl_kind"}), grouped=True),
    "reinforce_pp": Estimator(frozenset({"gamma", "kl_kind"}), whitens=True),
}
OPTIONS = sorted({name for facts in ESTIMATORS.values() for name in facts.reads})
"""Options that some estimator does not read."""
WITH_CRITIC = tuple(name for name, facts in ESTIMATORS.items() if facts.critic)
