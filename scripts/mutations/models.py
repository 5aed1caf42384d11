"""Bugs in log-probs, the scalar head, the vocabulary and loading; see rl.py for the form."""

Bug = tuple[str, str, str, str]

BUGS: dict[str, tuple[tuple[str, ...], list[Bug]]] = {
    "cores/models/actor.py": (
        ("tests/unit/test_models_policy.py", "tests/unit/test_logprob_chunks.py",
         "tests/unit/test_min_length.py", "tests/unit/test_rollout*.py"),
        [
            ("temperature-forgotten", "temperature forgotten in log-probs",
             "scaled = scaled / temperature", "scaled = scaled.clone()"),
            ("temperature-times", "multiplied by the temperature",
             "scaled = scaled / temperature", "scaled = scaled * temperature"),
            ("logprob-precision", "log-probs in half precision",
             "scaled = logits.float()", "scaled = logits"),
            ("logits-touched", "stop ids forbidden in the caller's own logits",
             " or early is not None:", ":"),
            ("logit-shift", "each token judged by the logits behind it",
             "states[:, -response_length - 1 : -1]", "states[:, -response_length:]"),
            ("token-shift", "log-probs of the tokens before",
             "chosen = ids[:, -response_length:]", "chosen = ids[:, -response_length - 1 : -1]"),
            ("minimum-length", "stop ids at probability 0 one token too long",
             "columns < self.min_new_tokens", "columns <= self.min_new_tokens"),
            ("minimum-flat", "the minimum length counted over rows, not within each",
             "expand_as(chosen).flatten()",
             "expand_as(chosen).flatten().sort(descending=True)[0]"),
            ("entropy-kept", "the entropy keeps what its gradient would need",
             "set_grad_enabled(entropy_grad)", "set_grad_enabled(True)"),
            ("logits-kept", "the distributions of the last micro-batch are kept",
             "logits = head_logits(", "self.kept = logits = head_logits("),
            ("logits-whole", "the logits of all positions at once",
             "return parts\n", "return 1\n"),
            ("logits-saved", "the logits of every chunk saved for the backward pass",
             "checkpoint(\n                self._chunk, *part, plain, entropy, "
             "use_reentrant=False, preserve_rng_state=False\n            )",
             "self._chunk(*part, plain, entropy)"),
            ("entropy-sign", "sign in the entropy",
             "nats = -(logprobs", "nats = (logprobs"),
        ],
    ),
    "cores/models/body.py": (
        ("tests/unit/test_models_policy.py", "tests/unit/test_ppo_device.py",
         "tests/unit/test_packing.py"),
        [
            ("position-slip", "positions begin at 1",
             "(mask.long().cumsum(dim=-1) - 1)", "(mask.long().cumsum(dim=-1))"),
            ("position-columns", "positions are columns, padding or not",
             'inputs["position_ids"] = position_ids(mask)',
             'inputs["position_ids"] = mask.long().fill_(1).cumsum(-1) - 1'),
            ("attention-all", "padding is attended",
             '"attention_mask": mask.long()', '"attention_mask": mask.long() | 1'),
            ("looks", "transformers looks for packed rows where there are none",
             "find_packed_sequence_indices = lambda position_ids: None",
             "find_packed_sequence_indices = found"),
            ("looks-away", "transformers does not see packed rows any more",
             "        masking_utils.find_packed_sequence_indices = found\n", ""),
        ],
    ),
    "cores/models/head.py": (
        ("tests/unit/test_logprob_chunks.py",),
        [
            ("body-lost", "the body stays replaced after a failure",
             "    finally:\n        del vars(model)[name]", "    finally:\n        pass"),
            ("head-alone", "what stands behind the head left out",
             "return model().logits.squeeze(0)",
             "return model.get_output_embeddings()(hidden)"),
        ],
    ),
    "cores/models/precision.py": (
        ("tests/unit/test_precision.py",),
        [
            ("score-rounded", "the score head rounded to bf16",
             'linear = isinstance(module, (nn.Linear, Conv1D)) and name.split(".")[-1] != '
             "SCALAR_HEAD", "linear = isinstance(module, (nn.Linear, Conv1D))"),
            ("conv1d-whole", "GPT-2's linear layers not held in bf16",
             "(nn.Linear, Conv1D))", "nn.Linear)"),
            ("embeddings-rounded", "embeddings and norms rounded too",
             "    return model\n", "    return model.bfloat16()\n"),
        ],
    ),
    "cores/models/scalar.py": (
        ("tests/unit/test_models_scalar.py", "tests/unit/test_ppo_start.py"),
        [
            ("mean-forgotten", "calibration's mean is not subtracted", " - self.mean", ""),
            ("mean-sign", "calibration's mean is added", " - self.mean", " + self.mean"),
            ("score-length", "score at the row's length, wrong for left padding",
             "(positions * mask).argmax(dim=1)", "mask.long().sum(dim=1) - 1"),
            ("score-before", "score of the token before the last",
             "(positions * mask).argmax(dim=1)", "((positions * mask).argmax(dim=1) - 1).clamp(0)"),
            ("head-precision", "scores in bfloat16 under autocast",
             "hidden.device.type, enabled=False)", "hidden.device.type, enabled=True)"),
        ],
    ),
    "cores/models/vocabulary.py": (
        ("tests/unit/test_models_vocabulary.py", "tests/unit/test_models_policy.py"),
        [
            ("pad-sampled", "pad may be sampled",
             "[tokenizer.pad_token_id, *range(", "[*range("),
            ("unused-sampled", "an id beyond the tokenizer may be sampled",
             "*range(len(tokenizer), vocab_size)", "*range(len(tokenizer) + 1, vocab_size)"),
            ("pad-eos", "pad stays eos",
             "not in (None, tokenizer.eos_token_id)", "is not None"),
            ("new-rows", "new embeddings at the mean of all rows, their own noise included",
             "table[:old].mean(dim=0)", "table.mean(dim=0)"),
        ],
    ),
    "cores/models/lora.py": (
        ("tests/integration/test_lora_families.py",),
        [
            ("lora-alpha", "alpha is the rank, whatever is asked",
             "lora_alpha=section.alpha,", "lora_alpha=section.rank,"),
            ("lora-frozen", "a merged model stays frozen",
             "requires_grad_(True)", "requires_grad_(False)"),
        ],
    ),
    "cores/models/loading.py": (
        ("tests/unit/test_models_policy.py", "tests/unit/test_models_vocabulary.py"),
        [
            ("dropout-kept", "dropout stays on where none is asked for",
             "if not dropout or k.endswith(LAYERDROP)", "if k.endswith(LAYERDROP)"),
            ("dropout-saved", "the dropout taken out for training is lost in the saved config",
             "    model.config.update(kept)\n", ""),
            ("suppress-forgotten", "other tools may sample pad",
             "generation.suppress_tokens = excluded_ids(", "_ = excluded_ids("),
        ],
    ),
    "cores/models/activations.py": (
        ("tests/unit/test_models_activations.py",),
        [
            ("gelu-exact", "the exact GELU in place of GPT-2's",
             '__init__(approximate="tanh")', "__init__()"),
            ("gelu-compiled", "half the slope in the compiled form",
             "slope = 2 * math.sqrt", "slope = math.sqrt"),
        ],
    ),
}  # fmt: skip
"""File: (tests that run first, its bugs)."""
