"""Bugs in models of other shapes: encoder-decoders, prefix attention, parts that are trained; see
rl.py for the form."""

from research.mutations.ppo import Bug

BUGS: dict[str, tuple[tuple[str, ...], list[Bug]]] = {
    "cores/models/rows.py": (
        ("tests/unit/test_models_sided.py", "tests/unit/test_models_scalar.py"),
        [
            ("reply-column", "what is known behind each token, not before it",
             "columns[:, -width - 1 : -1]", "columns[:, -width:]"),
            ("decoder-column", "a decoder's states one column too early",
             "(0, 0, length - states.shape[1], 0)", "(0, 0, length - states.shape[1] - 1, 1)"),
            ("score-column", "a score read in the last column, padding or not",
             "else last_attended(values, rows.mask)", "else values[:, -1]"),
            ("score-length", "score at the row's length, wrong for left padding",
             "(positions * mask).argmax(dim=1)", "mask.long().sum(dim=1) - 1"),
            ("score-before", "score of the token before the last",
             "(positions * mask).argmax(dim=1)", "((positions * mask).argmax(dim=1) - 1).clamp(0)"),
        ],
    ),
    "cores/rollout/hf.py": (
        ("tests/unit/test_models_sided.py",),
        [
            ("decoder-prompt", "a decoder's reply cut where a prompt would end",
             "1 if decodes else prompt_ids.shape[1]", "prompt_ids.shape[1]"),
        ],
    ),
    "cores/data/sides.py": (
        ("tests/unit/test_data_sides.py",),
        [
            ("sides-closing", "an encoder's text without its end",
             "encoder.ids[:room] + closing", "encoder.ids[:room]"),
            ("sides-together", "the reply as a continuation of what the encoder reads",
             "segments[:at])", "segments[: at + 1])"),
            ("sides-trained", "earlier replies trained, which the last one's prompt shows",
             "part.train and i >= last_reply(row)", "part.train"),
            ("sides-last", "every reply a row where the last alone is asked for",
             "(ends[-1:] if last else ends)", "ends"),
            ("joined-closing", "a prompt of stages 2 and 3 without its end",
             "ids = sides[at].ids + closing", "ids = sides[at].ids"),
            ("joined-length", "the reply begins within the prompt",
             "prompt_length=len(ids)", "prompt_length=len(ids) - 1"),
            ("joined-asked", "a question of stage 3 loses what stands behind earlier replies",
             "last_reply(segments) if replied else len(segments)", "last_reply(segments)"),
        ],
    ),
    "cores/training/sft.py": (
        ("tests/integration/test_encoder_decoder.py", "tests/integration/test_shapes.py"),
        [
            ("start-token", "a decoder that reads what it is to write",
             '[start_id or 0, *row["labels"][:-1]]', 'row["labels"]'),
            ("sides-mean", "an encoder-decoder's own loss, a mean over the micro-batch",
             "if weights or not shifted:", "if weights:"),
            ("sides-held-out", "held-out labels of an encoder-decoder shifted",
             "labels, shifted)\n        counts", "labels, True)\n        counts"),
        ],
    ),
    "cores/models/heads.py": (
        ("tests/unit/test_models_sided.py", "tests/unit/test_models_families.py",
         "tests/unit/test_models_scalar.py"),
        [
            ("judge-last", "an encoder-decoder judged before its last token",
             "last = decoder_attention_mask.sum(dim=1) - 1",
             "last = (decoder_attention_mask.sum(dim=1) - 2).clamp(min=0)"),
            ("built-prefix", "a body under another name than in the language model",
             '"base_model_prefix": causal.base_model_prefix', '"base_model_prefix": "body"'),
            ("built-state", "a built class for bodies with a state that padding enters",
             ' or getattr(causal, "_is_stateful", False)', ""),
            ("built-parts", "a built class for bodies that read images too",
             "not sees and family.sub_configs", "False"),
            ("built-mask", "a built class for bodies that take no mask",
             ' or not {"attention_mask", "position_ids"} <= takes', ""),
            ("built-name", "a built class with the name of another family's",
             ", *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()", ","),
            ("built-weights", "a body into which the policy's weights do not go",
             "return ours == theirs", "return True"),
            ("built-layers", "a built class without its second layer",
             "two_layered(found) if two and found is not None else found", "found"),
        ],
    ),
    "cores/models/attention.py": (
        ("tests/unit/test_models_attention.py",),
        [
            ("prefix-virtual", "trained prefixes counted as tokens of the prompt",
             "lengths + virtual)", "lengths)"),
            ("prefix-twice", "tokens behind the prompt read as one",
             "        plain.forward = forward\n        # Where", "        # Where"),
            ("prefix-leak", "a reply that sees what is behind it passes the trial",
             ".abs().max().item() <= least", ".abs().max().item() >= 0"),
        ],
    ),
    "cores/models/body.py": (
        ("tests/unit/test_models_sided.py", "tests/unit/test_models_attention.py"),
        [
            ("decoder-start", "a decoder that reads the token it is to write",
             "torch.cat([start, replies(rows.ids, rows.width)], dim=1)",
             "torch.cat([replies(rows.ids, rows.width), start], dim=1)"),
            ("encoder-padding", "a decoder that reads padding of its prompt",
             "encoder_attention_mask=seen", "encoder_attention_mask=None"),
            ("prefix-columns", "prompts counted in columns, padding with them",
             "mask.long().cumsum(dim=1) <= first",
             "torch.ones_like(mask.long()).cumsum(dim=1) <= first"),
            ("prefix-eager", "masks of eager attention added as 0 and 1",
             'if config._attn_implementation != "eager":', "if True:"),
        ],
    ),
    "cores/models/tuning.py": (
        ("tests/integration/test_shapes.py",),
        [
            ("trainable-all", "all weights trained",
             "weight.requires_grad_(name in trained)",
             "weight.requires_grad_(True)"),
        ],
    ),
    "cores/models/vocabulary.py": (
        ("tests/unit/test_models_tokens.py",),
        [
            ("tokens-spare", "new tokens in spare rows keep what lay there",
             "first = old if known is None else min(known, old)", "first = old"),
            ("tokens-end", "config.json names the old end",
             "text.eos_token_id = tokenizer.eos_token_id", "pass"),
            ("tokens-text", "added tokens are ordinary text",
             "special_tokens=True", "special_tokens=False"),
        ],
    ),
    "cores/models/loading.py": (
        ("tests/integration/test_shapes.py", "tests/unit/test_models_tokens.py"),
        [
            ("fresh-seed", "random weights of whatever the generator holds",
             'reading(path, "model"), seeded(seed, "weights")', 'reading(path, "model")'),
            ("merge-known", "an adapter merged into other rows than it was trained on",
             "load_tokenizer(folder), len(load_tokenizer(base))", "load_tokenizer(folder)"),
        ],
    ),
}  # fmt: skip
"""File: (tests that run first, its bugs)."""
