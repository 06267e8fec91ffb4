/* eyespot.h: the C ABI of the engine. A bundle directory in, tokens' logits out; no model names, no Python.
 *
 * One engine holds one bundle and one sequence (its KV cache). Calls on one engine must not overlap, except es_cancel.
 * An engine works in the process that opened it: after fork() the child may only close it.
 * Every function that can fail returns a status; es_last_error() then gives one line: found, expected, likely cause. */
#ifndef EYESPOT_H_
#define EYESPOT_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define ES_API __attribute__((visibility("default")))
#else
#define ES_API
#endif

#define ES_ABI_VERSION 4

/* Statuses equal the exit codes of the command line. */
enum { ES_OK = 0, ES_FAILED = 1, ES_USAGE = 2, ES_UNSUPPORTED = 3, ES_CANCELLED = 130 };

typedef struct es_engine es_engine;

typedef struct {
  int32_t threads;  /* 0: as EYESPOT_THREADS of the environment says, else the processors this process may use */
  int32_t ctx_size; /* 0: what the bundle was compiled for; never more than that */
  const char* isa;  /* NULL or "": the best this machine has; another, such as "scalar": that one, or es_open fails */
} es_options;

typedef struct {
  int32_t vocab_size, hidden_size, ctx_size, prefill_chunk, threads;
  int32_t processors;                         /* that this process may use; more threads than these only cost */
  int32_t image_token_id;                     /* -1: no eyes */
  int32_t tile_size, tile_tokens, tile_batch; /* pixels a side; feature rows a tile; tiles encoded at once */
  int32_t tile_channels;                      /* 3; 6 where a tile is of two frames */
  int32_t tile_patches;                       /* 0; patches a tile, where the eyes take pictures of any size */
  int32_t axes;                               /* 1; numbers in a token's position, where es_prefill_at gives them */
  int64_t arena_bytes, weight_bytes, kv_bytes;
  char isa[16], kv_type[8];
} es_info;

/* Opens the bundle in `dir`. *out is NULL on failure. */
ES_API int es_open(const char* dir, const es_options* options, es_engine** out);
ES_API void es_close(es_engine* engine);
ES_API int es_get_info(const es_engine* engine, es_info* out);

/* pixels: float32 [tiles][tile_channels][tile_size][tile_size], normalized. features: float32 [tiles * tile_tokens]
 * [hidden_size]. */
ES_API int es_encode(es_engine* engine, const float* pixels, int32_t tiles, float* features);

/* The same for eyes of any resolution (tile_patches > 0): one picture, or one pair of frames, of at most tile_batch tiles.
 * places: [tiles * tile_patches][2], row and column of each patch; windows, frames: [tiles * tile_patches], numbers that
 * never fall: patches of the same window, or frame, see each other. */
ES_API int es_encode_at(es_engine* engine, const float* pixels, int32_t tiles, const int32_t* places,
                        const int32_t* windows, const int32_t* frames, float* features);

/* Lets go of the memory that the eyes' weights take, until the next picture: for devices where it is short. */
ES_API int es_release_eyes(es_engine* engine);

/* Appends n tokens to the sequence, in chunks of at most prefill_chunk. The j-th token equal to image_token_id takes
 * row j of features; feature_rows must be their number. logits: float32 [want][vocab_size], those after the last `want`
 * (0..n) tokens; NULL: they are not copied out, es_top and es_logits tell of the last row. Fails without change when n
 * tokens do not fit the context, or a token is outside the vocabulary; when cancelled, whole chunks may have been kept:
 * ask es_past. */
ES_API int es_prefill(es_engine* engine, const int32_t* tokens, int32_t n, const float* features, int32_t feature_rows,
                      int32_t want, float* logits);

/* es_prefill of tokens at positions [n][axes], for a model whose axes are more than one; NULL: they go on, all axes alike,
 * from one more than the largest so far. */
ES_API int es_prefill_at(es_engine* engine, const int32_t* tokens, int32_t n, const int32_t* positions,
                         const float* features, int32_t feature_rows, int32_t want, float* logits);

/* es_prefill of one token and its logits, or NULL. */
ES_API int es_decode(es_engine* engine, int32_t token, float* logits);

/* Of the last row of logits: its best k (1..1024, at most vocab_size), the largest first, equals by lower id; all of it,
 * [vocab_size]. ES_USAGE when there is none: the last es_prefill wanted none or failed, or es_encode came after it. */
ES_API int es_top(es_engine* engine, int32_t k, int32_t* ids, float* logits);
ES_API int es_logits(const es_engine* engine, float* logits);

/* Tokens in the sequence; forgetting all but the first n of them (n at most es_past). */
ES_API int32_t es_past(const es_engine* engine);
ES_API int es_truncate(es_engine* engine, int32_t n);

/* The sequence's first n tokens as bytes, so that another engine of the same bundle, context and machine can go on from
 * them: how many bytes that takes (n up to ctx_size); written to `out` (n up to es_past); taken from `in`, in place of what
 * the sequence was (n up to ctx_size). */
ES_API int64_t es_state_bytes(const es_engine* engine, int32_t n);
ES_API int es_state_save(es_engine* engine, int32_t n, void* out);
ES_API int es_state_load(es_engine* engine, int32_t n, const void* in);

/* From any thread or a signal handler. on = 1: the running call, or else the next one, ends with ES_CANCELLED at its next
 * block, be it the first; the request has then been met. on = 0: takes back a request that no call has met. */
ES_API void es_cancel(es_engine* engine, int32_t on);

/* After every block of every graph: the block's last value, float32 [rows][columns], valid during the call. NULL ends it. */
typedef void (*es_trace_fn)(void* user, const char* graph, const char* block, const float* data, int32_t rows, int32_t columns);
ES_API void es_trace(es_engine* engine, es_trace_fn callback, void* user);

/* What each op cost, in the order of the program. on = 1 starts from nothing, on = 0 stops; while on, every op costs two
 * looks at the clock, else nothing. An op that also rounds its result to int8 for the next one (norms, gelu, swiglu before
 * an A8 linear) has that in its time. bytes: weights, and keys and values of the cache, that were read. */
typedef struct {
  const char *graph, *block, *op, *kind; /* "text", "layer_00", the op's output, "linear"; valid while the engine lives */
  const char* numbers; /* what its products are made of: "float32", "int16", "int8", or "int4" (with int8) */
  int64_t calls, nanoseconds, bytes, multiply_adds;
} es_op_cost;
ES_API int es_profile(es_engine* engine, int32_t on);

/* Writes at most `room` records; returns how many ops there are. */
ES_API int32_t es_profile_read(const es_engine* engine, es_op_cost* out, int32_t room);

/* The last failure on this thread; "" when none. Valid until the next call on this thread. */
ES_API const char* es_last_error(void);
ES_API const char* es_version(void);
ES_API int32_t es_abi_version(void); /* ES_ABI_VERSION of the library: records differ between versions */

#ifdef __cplusplus
}
#endif
#endif
