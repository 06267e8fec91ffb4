"""Every limit on outside input, in one place. CMake turns this file into limits.h, so C++ obeys the same numbers.

Ground floor: imports nothing. Only `NAME = integer expression` lines; sizes in bytes unless the name says otherwise.
"""

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# Tensor files (safetensors and GGUF) and JSON.
HEADER_BYTES = 16 * MIB
TENSORS = 100_000
RANK = 8
TENSOR_ELEMENTS = 1 << 40
NAME_CHARS = 512
JSON_BYTES = 64 * MIB  # tokenizer.json of a 152k vocabulary takes 7 to 11 MiB
JSON_DEPTH = 64
SHARDS = 1_000

# Model sizes: far above any pocket model, far below what overflows a product of three in 63 bits.
DIM = 1 << 20
VOCAB = 1 << 22
LAYERS = 1_024
HEADS = 4_096
HEAD_DIM = 4_096
CONTEXT = 1 << 20
CHUNK_ROWS = 4_096
OPS = 65_536
INPUTS = 8  # of a graph; text has three
ARENA_BYTES = 64 * GIB
THREADS = 256
TOP = 1_024  # best logits that one call gives

# Images.
IMAGE_FILE_BYTES = 20 * MIB
IMAGE_PIXELS = 33_000_000
IMAGE_SIDE = 16_384
TILES = 256
UNITS = 1 << 14  # tiles of one token, that eyes of any resolution take in one call
IMAGES = 256

# Chat templates.
TEMPLATE_CHARS = 256 * KIB
PROMPT_CHARS = 16 * MIB
SCHEMA_CHARS = MIB
TEMPLATE_STEPS = 1_000_000  # items that all range() calls of one rendering may yield together

# Training data.
RECORD_BYTES = 4 * MIB  # one line, or one element of a JSON array; pictures are files of their own
RECORDS = 100_000_000  # of a set: the index takes 24 bytes each
SHARD_FILES = 100_000
VIDEO_FRAMES = 10_000  # of an animation, or pictures in a directory
FILM_FRAMES = 500_000
FILM_PIXELS = 100_000_000_000  # that are decoded to get at the frames of a film
CLIP_PIXELS = 200_000_000  # of the frames of a clip together, as they are kept
AUDIO_SECONDS = 600
VIDEO_PIXELS = 4_000_000_000  # of all frames of an animation
