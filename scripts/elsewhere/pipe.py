"""A reply by transformers' pipeline: python pipe.py FOLDER."""

import sys

from transformers import pipeline, set_seed

set_seed(0)
chat = pipeline("text-generation", sys.argv[1])
asked = "Guest:\nGood evening, room 214 here. Could I have more towels?\nDesk:\n"
print(repr(chat(asked, return_full_text=False)[0]["generated_text"]))
