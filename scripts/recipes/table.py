"""The systems, each with its recipe, and what is told of them. docs/recipes.md is made of it."""

from dataclasses import dataclass

SFT, ALL = "1", "1, 2, 3"
OURS = "1; 2 and 3 ours"
RUNS = "runs on the original's architecture"
NEAREST = "runs on the nearest class of transformers"
GLM = f"{NEAREST}: GLM, whose positions have one dimension"
NOTHING = "nothing to run"


@dataclass(frozen=True)
class System:
    """One recipe."""

    recipe: str
    """configs/recipes/<recipe>.yaml; empty: there is none."""
    system: str
    """With its repository."""
    architecture: str
    base: str
    """Of scripts/recipes/bases.py; empty: there is nothing to make."""
    stages: str
    """Those that the recipe configures."""
    status: str
    closed: str
    """What of the original is not public."""


SYSTEMS = (
    System(
        "chatyuan", "ChatYuan (clue-ai/ChatYuan)", "T5, encoder and decoder", "t5", OURS, RUNS,
        "its full training set; it has no reward model and no PPO",
    ),
    System(
        "colossalai", "ColossalAI (hpcaitech/ColossalAI)",
        "LLaMA; GPT-2, OPT and BLOOM likewise", "llama", ALL, RUNS, "its prompts of stage 3",
    ),
    System(
        "chatglm", "ChatGLM-6B, P-Tuning v2 (THUDM/ChatGLM-6B)",
        "GLM, attention both ways over the prompt", "glm", SFT, GLM,
        "reward model and PPO; its weights need code of its own",
    ),
    System(
        "chatglm_chat", "ChatGLM-6B, conversations (THUDM/ChatGLM-6B)", "GLM, as above", "glm",
        OURS, GLM, "as above",
    ),
    System(
        "llama", "LLaMA (meta-llama/llama, 2023)", "LLaMA", "llama", SFT,
        f"{RUNS}; the settings are ours", "its training code and sets",
    ),
    System(
        "llama2_chat", "Llama 2 chat (meta-llama/llama)", "LLaMA", "llama", SFT, RUNS,
        "its training code, demonstrations and preferences",
    ),
    System(
        "chatllama", "ChatLLaMA (nebuly-ai/optimate)", "OPT, and a smaller OPT for rewards", "opt",
        ALL, RUNS, "-",
    ),
    System(
        "alpaca", "Stanford Alpaca (tatsu-lab/stanford_alpaca)", "LLaMA", "llama", SFT, RUNS,
        "its weights are differences to LLaMA's",
    ),
    System(
        "alpaca_lora", "alpaca-lora (tloen/alpaca-lora)", "LLaMA in 8 bits, adapters", "llama", SFT,
        RUNS, "-",
    ),
    System(
        "luotuo", "Luotuo, Chinese-alpaca-lora (LC1332/Luotuo-Chinese-LLM)",
        "LLaMA in 8 bits, adapters", "llama", SFT, RUNS, "its training code",
    ),
    System(
        "belle", "BELLE (LianjiaTech/BELLE)", "BLOOM; LLaMA likewise", "bloom", ALL, RUNS,
        "its preferences, as far as we found",
    ),
    System(
        "dolly", "Dolly v2 (databrickslabs/dolly)", "GPT-NeoX", "neox", SFT, RUNS, "-",
    ),
    System(
        "vicuna", "Vicuna (lm-sys/FastChat)", "LLaMA", "llama", SFT, RUNS, "its conversations",
    ),
    System(
        "chinese_vicuna", "Chinese-Vicuna, instructions (Facico/Chinese-Vicuna)",
        "LLaMA in 8 bits, adapters", "llama", SFT, RUNS, "-",
    ),
    System(
        "chinese_vicuna_chat", "Chinese-Vicuna, chats (Facico/Chinese-Vicuna)",
        "LLaMA in 8 bits, adapters", "llama", SFT, RUNS, "-",
    ),
    System(
        "palm_rlhf", "PaLM-rlhf-pytorch (lucidrains/PaLM-rlhf-pytorch)",
        "PaLM over bytes, from nothing", "palm", ALL,
        f"{NEAREST}: Cohere, without xPos",
        "weights, preferences: there are none",
    ),
    System(
        "openchatkit", "OpenChatKit (togethercomputer/OpenChatKit)", "GPT-NeoX", "neox", SFT, RUNS,
        "-",
    ),
    System(
        "openchatkit_moderation", "OpenChatKit's moderation model", "GPT-J", "gptj", SFT, RUNS,
        "its rows are made of two public sets",
    ),
    System(
        "redpajama", "RedPajama (togethercomputer/RedPajama-Data)", "GPT-NeoX", "neox", SFT, RUNS,
        "what the chat models were trained on is not told",
    ),
    System(
        "moss", "MOSS (OpenLMLab/MOSS)", "CodeGen", "moss", OURS, RUNS,
        "its preference model and PPO, announced only",
    ),
    System(
        "llava_stage1", "LLaVA, projector (haotian-liu/LLaVA)", "CLIP, projector, LLaMA", "llava",
        SFT, RUNS, "it has no reward model and no PPO",
    ),
    System(
        "llava_stage2", "LLaVA, instructions (haotian-liu/LLaVA)", "CLIP, projector, LLaMA",
        "llava", OURS, RUNS, "as above",
    ),
    System(
        "llava_v0", "LLaVA, instructions, April 2023 (haotian-liu/LLaVA)",
        "CLIP, projector, LLaMA", "llava", SFT, RUNS, "as above",
    ),
    System(
        "minigpt4_stage1", "MiniGPT-4, captions (Vision-CAIR/MiniGPT-4)",
        "ViT, Q-Former, one linear layer, Vicuna", "blip2", SFT, f"{NEAREST}: BLIP-2 over LLaMA",
        "-",
    ),
    System(
        "minigpt4_stage2", "MiniGPT-4, requests (Vision-CAIR/MiniGPT-4)",
        "ViT, Q-Former, one linear layer, Vicuna", "blip2", SFT, f"{NEAREST}: BLIP-2 over LLaMA",
        "-",
    ),
    System(
        "openflamingo", "OpenFlamingo (mlfoundations/open_flamingo)",
        "ViT, resampler, gated layers in LLaMA", "idefics", SFT, f"{NEAREST}: IDEFICS",
        "a part of its images, which are addresses that may be gone",
    ),
    System(
        "", "GPTrillion (banana-dev/GPTrillion)", "-", "", "-", NOTHING,
        "announced 1 April 2023, no weights, nothing to run",
    ),
)  # fmt: skip
