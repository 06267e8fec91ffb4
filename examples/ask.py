"""Ask a compiled model about a picture: python examples/ask.py BUNDLE "What is this?" picture.jpg"""

import sys

import eyespot

bundle, question, *pictures = sys.argv[1:]
model = eyespot.load(bundle)
for piece in model.stream(question, images=pictures):
    print(piece, end="", flush=True)
print()
