"""Rows in each system's own form, and what is read and learned of them by the original's rule.

The rows are ours. The rules are written out here anew, so that a recipe cannot agree with itself.
"""

from dataclasses import dataclass, field
from typing import Any

Segments = list[tuple[str, bool]]
"""(text, whether it is learned), neighbours unlike."""

PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n"
)
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
)
VICUNA = (
    "A chat between a curious {0} and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the {0}'s questions. "
)
CHAT = (
    "The following is a conversation between an AI assistant called Assistant and a human user "
    "called User. The assistant is intelligent, knowledgeable and polite to answer questions of "
    "user.\n\n"
)
LABELS = (
    "Possible labels:\n1. casual\n2. needs caution\n3. needs intervention\n4. possibly needs "
    "caution\n5. probably needs caution"
)
META = "You are MOSS.\n- Calculator: enabled. API: Calculate(expression)\n"
TASKS = [
    ("Say what bakes bread.", "", "An oven."),
    ("Put it in the past.", "The ferry leaves at nine.", "The ferry left at nine."),
    ("给花起个名字。", "", "晨露"),
    ("翻译成英文。", "桥很长。", "The bridge is long."),
]
CHATS = [
    [("Who keeps the key?", "The porter."), ("Since when?", "Since May.")],
    [("图书馆几点关门？", "九点。")],
]


@dataclass(frozen=True)
class Case:
    """A recipe's file and what becomes of it."""

    rows: Any
    """As the file holds them."""
    expected: list[Segments]
    """Of each row that is made, whatever their order."""
    file: str = "rows.jsonl"
    options: tuple[str, ...] = ()
    """Of the command line, besides base and file."""
    encoder: list[str] = field(default_factory=list)
    """What the encoder reads, in the order of `expected`."""
    images: str | None = None
    """Pattern of the images' names, below the folder of the file."""


def alpaca(behind: str, all_: bool, blurb: str = PAIRED, heading: str = "### Input:\n") -> Any:
    """Alpaca's frame: `behind` stands behind the last heading."""
    found: list[Segments] = []
    for instruction, given, output in TASKS:
        prompt = (blurb if given else PLAIN) + f"### Instruction:\n{instruction}\n\n"
        prompt += f"{heading}{given}\n\n" if given else ""
        prompt += f"### Response:{behind}"
        found.append([("<s>" + prompt, all_), (output + "</s>", True)])
    return found


def tasks(given: str = "input", reply: str = "output") -> list[dict[str, str]]:
    """Rows of one question each."""
    return [
        {"instruction": i, given: g, reply: r, "id": f"n{n}"} for n, (i, g, r) in enumerate(TASKS)
    ]


def shared(speakers: tuple[str, str]) -> list[dict[str, Any]]:
    """ShareGPT's form."""
    return [
        {
            "id": f"c{n}",
            "conversations": [
                {"from": who, "value": text}
                for turn in chat
                for who, text in zip(speakers, turn, strict=True)
            ],
        }
        for n, chat in enumerate(CHATS)
    ]


def vicuna(system: str, question: str = "") -> list[Segments]:
    """Vicuna's frame."""
    return [
        [(f"<s>{system}", False)]
        + [
            part
            for q, a in chat
            for part in ((f"USER: {question}{q} ASSISTANT: ", False), (f"{a}</s>", True))
        ]
        for chat in CHATS
    ]


def chatglm(chat: list[tuple[str, str]]) -> Segments:
    """ChatGLM's rounds, counted from 0; the history has no stop token."""
    *before, (question, answer) = chat
    rounds = [f"[Round {i}]\n问：{q}\n答：{a}\n" for i, (q, a) in enumerate(before)]
    prompt = "".join(rounds) + f"[Round {len(before)}]\n问：{question}\n答：[gMASK]"
    return [(prompt, False), (f"<sop>{answer}<eop>", True)]


def moss(turns: list[tuple[str, str, str, str, str]]) -> tuple[dict[str, Any], Segments]:
    """A row of MOSS's form, and that all of it is learned but the meta instruction and what stands
    between a result's markers."""
    names = ("Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS")
    marks = ("<|Human|>: {}<eoh>\n", "<|Inner Thoughts|>: {}<eot>\n", "<|Commands|>: {}<eoc>\n")
    marks += ("<|Results|>:\n{}\n<eor>\n", "<|MOSS|>: {}<eom>\n")
    chat, segments = {}, [(META, False)]
    for n, turn in enumerate(turns, 1):
        texts = [mark.format(text) for mark, text in zip(marks, turn, strict=True)]
        chat[f"turn_{n}"] = dict(zip(names, texts, strict=True))
        segments += [("".join(texts[:3]) + "<|Results|>:\n", True), (turn[3] + "\n", False)]
        segments += [("<eor>\n" + texts[4], True)]
    row = {"conversation_id": 9, "meta_instruction": META, "num_turns": len(turns), "chat": chat}
    return {**row, "category": "ours"}, segments


MOSS = [
    moss(
        [
            ("12*12?", "a sum", 'Calculate("12*12")', "144", "It is 144."),
            ("谢谢", "礼貌", "None", "None", "不客气。"),
        ]
    ),
    moss([("早上好", "None", "None", "None", "您好！")]),
]
DIALOGUES = ["<human>: Is it far?\n<bot>: Two miles.", "<human>: 下雨吗\n<bot>: 下。"]
JUDGED = ["Input: The soup is hot.\nOutput: casual", "Input: I broke it.\nOutput: needs caution"]
ARTICLES = ["The mill stood by the river. 水车转了一百年。", "Sheep graze on the hill."]
QUESTIONS = [
    ("用户：盐在哪里？\n小元：", "在架子上。"),
    ("用户：你好\n小元：您好。\n用户：请坐\n小元：", "谢谢，\n打扰了。"),
]


def spoken(chat: list[tuple[str, str]]) -> list[dict[str, str]]:
    """OpenAI's form, with a system turn."""
    turns = [{"role": "system", "content": "Be brief."}]
    for question, answer in chat:
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": answer})
    return turns


def llama2(chat: list[tuple[str, str]]) -> Segments:
    """Llama 2's frame: the system text inside the first question."""
    segments: Segments = []
    inside = "<<SYS>>\nBe brief.\n<</SYS>>\n\n"
    for question, answer in chat:
        segments += [(f"<s>[INST] {inside}{question} [/INST]", False), (f" {answer} </s>", True)]
        inside = ""
    return segments


TEXTS: dict[str, Case] = {
    "alpaca": Case(tasks(), alpaca("", False), "alpaca_data.json"),
    "colossalai": Case(tasks(), alpaca("", False), "instinwild.json"),
    "alpaca_lora": Case(tasks(), alpaca("\n", True), "alpaca_data.json"),
    "luotuo": Case(tasks(), alpaca("\n", True), "trans_chinese_alpaca_data.json"),
    "chinese_vicuna": Case(tasks(), alpaca("\n", True)),
    "dolly": Case(
        [{**row, "category": "open_qa"} for row in tasks("context", "response")],
        [
            [(prompt.removeprefix("<s>"), False), (reply.replace("</s>", "\n\n### End"), True)]
            for (prompt, _), (reply, _) in alpaca("\n", False, PLAIN, "Input:\n")
        ],
    ),
    "vicuna": Case(shared(("human", "gpt")), vicuna(VICUNA.format("user")), "sharegpt.json"),
    "belle": Case(
        shared(("human", "assistant")),
        [
            [
                part
                for q, a in chat
                for part in ((f"Human: \n{q}\n\nAssistant: \n", False), (f"{a}</s>", True))
            ]
            for chat in CHATS
        ],
    ),
    "chinese_vicuna_chat": Case(
        [{"input": [q for q, _ in chat], "output": [a for _, a in chat]} for chat in CHATS],
        [
            [
                ("<s>" + CHAT + "".join(f"User:{q}\n\nAssistant:{a}\n\n" for q, a in chat[:-1])
                 + f"User:{chat[-1][0]}\n\nAssistant:", False),
                (f"{chat[-1][1]}</s>", True),
            ]
            for chat in CHATS
        ],
    ),
    "chatglm": Case(
        [{"content": "类型#帽子*颜色#蓝", "summary": "蓝色的帽子适合海边。"},
         {"content": "类型#鞋", "summary": "这双鞋很轻。"}],
        [
            [("类型#帽子*颜色#蓝[gMASK]", False), ("<sop>蓝色的帽子适合海边。<eop>", True)],
            [("类型#鞋[gMASK]", False), ("<sop>这双鞋很轻。<eop>", True)],
        ],
    ),
    "chatglm_chat": Case(
        [{"prompt": chat[-1][0], "response": chat[-1][1], "history": chat[:-1]} for chat in CHATS],
        [chatglm(chat) for chat in CHATS],
    ),
    "chatyuan": Case(
        [{"source": source, "target": target} for source, target in QUESTIONS],
        [[(target.replace("\n", "\\n") + "</s>", True)] for _, target in QUESTIONS],
        encoder=[source.replace("\n", "\\n") + "</s>" for source, _ in QUESTIONS],
    ),
    "llama": Case(
        [{"text": text} for text in ARTICLES],
        [[("<s>", False), (f"{text}</s>", True)] for text in ARTICLES],
    ),
    "llama2_chat": Case(
        [{"messages": spoken(chat)} for chat in CHATS], [llama2(chat) for chat in CHATS]
    ),
    "chatllama": Case(
        [{"user_input": f"{i} {g}", "completion": r} for i, g, r in TASKS],
        [[(f"</s>{i} {g}{r}</s>", True)] for i, g, r in TASKS],
        "actor_training_data.json",
    ),
    "moss": Case([row for row, _ in MOSS], [segments for _, segments in MOSS]),
    "openchatkit": Case(
        [{"text": text, "metadata": {"source": "ours"}} for text in DIALOGUES],
        [[("".join("\n" + text for text in DIALOGUES), True)]],
    ),
    "openchatkit_moderation": Case(
        [{"text": text} for text in JUDGED],
        [[(LABELS + "".join("\n\n" + text for text in JUDGED), True)]],
    ),
    "redpajama": Case(
        [{"text": text, "meta": {"source": "ours"}} for text in ARTICLES],
        [[(f"{text}<|endoftext|>", True)] for text in ARTICLES],
    ),
    "palm_rlhf": Case(
        [{"text": text} for text in ARTICLES], [[("".join(ARTICLES), True)]],
        options=("--data.test_fraction", "0"),
    ),
}  # fmt: skip
"""By recipe."""
