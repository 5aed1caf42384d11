"""A reply by llama.cpp: python gguf.py FILE."""

import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_predict = 256, 16
print(xllamacpp.Server(params).handle_completions({"prompt": "Good evening", "max_tokens": 16}))
