"""As _recipe_rows, of the systems that read images: <IMG> stands for one, but where it is
one token."""

from _recipe_rows import VICUNA, Case

PICTURES = ["red", "blue"]
"""Names of the images, and their colours."""

IMAGES: dict[str, Case] = {
    "llava_stage1": Case(
        [
            {
                "id": colour,
                "image": f"{colour}.png",
                "conversations": [
                    {"from": "human", "value": "Tell what you see.\n<image>"},
                    {"from": "gpt", "value": f"A {colour} door."},
                ],
            }
            for colour in PICTURES
        ],
        [[("<s><IMG>", False), (f"A {colour} door.\n", True)] for colour in PICTURES],
        "chat.json", images="images/{}.png",
    ),
    "llava_stage2": Case(
        [
            {
                "id": colour,
                "image": f"{colour}.png",
                "conversations": [
                    {"from": "human", "value": "What is painted?\n<image>"},
                    {"from": "gpt", "value": f"A {colour} door."},
                    {"from": "human", "value": "关着吗？"},
                    {"from": "gpt", "value": "关着。"},
                ],
            }
            for colour in PICTURES
        ],
        [
            [
                (f"<s>{VICUNA.format('human')}USER: <IMG>\nWhat is painted? ASSISTANT: ", False),
                (f"A {colour} door.</s>", True),
                ("USER: 关着吗？ ASSISTANT: ", False),
                ("关着。</s>", True),
            ]
            for colour in PICTURES
        ],
        "instruct.json", images="images/{}.png",
    ),
    "llava_v0": Case(
        [
            {
                "image": f"{colour}.png",
                "conversations": [
                    {"from": "human", "value": "Look.\n<image>"},
                    {"from": "gpt", "value": f"A {colour} door."},
                    {"from": "human", "value": "关着吗？"},
                    {"from": "gpt", "value": "关着。"},
                ],
            }
            for colour in PICTURES
        ],
        [
            [
                (f"<s>{VICUNA.format('human').strip()}\n\n", False), ("### Human", True),
                (": Look.\n<im_start><IMG><im_end>\n", False),
                (f"### Assistant: A {colour} door.\n### Human", True), (": 关着吗？\n", False),
                ("### Assistant: 关着。\n### ", True),
            ]
            for colour in PICTURES
        ],
        "instruct.json", images="images/{}.png",
    ),
    "minigpt4_stage1": Case(
        [{"image": f"image/{colour}.png", "caption": f"A {colour} door! "} for colour in PICTURES],
        [[("<s><IMG>", False), (f"a {colour} door\n", True)] for colour in PICTURES],
        images="image/{}.png",
    ),
    "minigpt4_stage2": Case(
        {"annotations": [{"image_id": c, "caption": f"The door is {c}."} for c in PICTURES]},
        [
            [("<s>###Human: <Img><IMG></Img> Name the colour. ###Assistant: ", False),
             (f"The door is {colour}.###", True)]
            for colour in PICTURES
        ],
        "filter_cap.json", ("--template.image.requests", '["Name the colour."]'),
        images="image/{}.png",
    ),
    "openflamingo": Case(
        [
            {
                "text_list": ["The yard.", f"It is {colour}.", "Then we left."],
                "image_info": [
                    {"image_name": f"{colour}.png", "matched_text_index": 1, "matched_sim": 0.4},
                    {"image_name": f"{colour}.png", "matched_text_index": 2, "matched_sim": 0.1},
                ],
            }
            for colour in PICTURES
        ],
        [
            [
                ("The yard.<image>", False),
                (f"It is {colour}. Then we left.<|endofchunk|>", True),
                ("</s>", False),
            ]
            for colour in PICTURES
        ],
        images="images/{}.png",
    ),
}  # fmt: skip
"""By recipe."""
