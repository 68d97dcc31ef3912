// Evaluates boosted trees on blocks of rows. See docs/engine-notes.md, "Boosted trees on a CPU".
//
// A value becomes its rank among the thresholds of its column, so that comparisons are of bytes. A tree is evaluated for
// GROUP rows at once, from its lowest nodes to its root: each node selects, for every row, the leaf number of its left or
// right subtree. There are no gathers and no branches, and nodes are read in the order in which they are stored.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    BLOCK = 128,              // rows of a block, whose codes are stored by column
    CODES_BYTES = 256 * 1024, // codes of the blocks that are in the cache at a time
    TREES = 8,                // trees that are in the cache at a time
    LOWEST = -128,            // code of rank 0
    RANKS = 255               // thresholds of a column of codes; a column with more of them has several
};

// ---- vectors of signed bytes ----

#if defined(__AVX512BW__)
#include <immintrin.h>
typedef __m512i vector;
typedef __mmask64 mask;
static inline vector repeated(uint32_t four) { return _mm512_set1_epi32((int)four); }
static inline mask above(const int8_t *codes, vector limit) {
    return _mm512_cmpgt_epi8_mask(_mm512_load_si512(codes), limit);
}
static inline vector selected(mask right, vector a, vector b) { return _mm512_mask_blend_epi8(right, a, b); }
static inline vector next_if(mask right, vector a) {
    return _mm512_mask_add_epi8(a, right, a, _mm512_set1_epi8(1));
}
static inline vector plus(vector a, vector b) { return _mm512_add_epi8(a, b); }
#elif defined(__AVX2__)
#include <immintrin.h>
typedef __m256i vector;
typedef __m256i mask;
static inline vector repeated(uint32_t four) { return _mm256_set1_epi32((int)four); }
static inline mask above(const int8_t *codes, vector limit) {
    return _mm256_cmpgt_epi8(_mm256_load_si256((const vector *)codes), limit);
}
static inline vector selected(mask right, vector a, vector b) { return _mm256_blendv_epi8(a, b, right); }
static inline vector next_if(mask right, vector a) { return _mm256_sub_epi8(a, right); }
static inline vector plus(vector a, vector b) { return _mm256_add_epi8(a, b); }
#else
typedef int8_t vector __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(16)));
typedef vector mask;
static inline vector repeated(uint32_t four) { return (vector)(words){four, four, four, four}; }
static inline mask above(const int8_t *codes, vector limit) { return (mask)(*(const vector *)codes > limit); }
static inline vector selected(mask right, vector a, vector b) { return (a & ~right) | (b & right); }
static inline vector next_if(mask right, vector a) { return a - right; }
static inline vector plus(vector a, vector b) { return a + b; }
#endif

enum { LANES = sizeof(vector), GROUP = 2 * LANES };

// ---- the model ----

typedef struct {
    uint32_t column;    // offset of the column's codes in a block
    uint32_t threshold; // four times the same signed byte; a row goes right if its code is greater
} node;

typedef struct {
    int32_t left, right; // numbers of nodes; -1, -1 in a leaf
    uint32_t column;
    int32_t threshold;
    float value; // of a leaf
} deep_node;

typedef struct {
    int32_t depth; // 1 to 8
    int32_t deep;  // whether exits lead to deep nodes: then links has the number of a deep node for each leaf, or -1
    int64_t node, leaf;
} tree;

typedef struct {
    int32_t column;    // of x
    int32_t steps;     // of the binary search: there are 2^steps - 1 thresholds, padded with the largest integer
    int64_t threshold; // the first one in keys
    int32_t code;      // the first column of codes
    int32_t codes;     // their number
} feature;

typedef struct {
    int32_t rank;    // the rank of LOWEST
    int32_t missing; // code of missing values
} code_column;

typedef struct {
    const node *nodes;
    const float *leaves;
    const int32_t *links;
    const deep_node *deep;
    const tree *trees;
    const int64_t *ends; // of each model's trees
    const float *bases;  // of each model, log odds
    const feature *features;
    const int32_t *keys;
    const code_column *columns;
    int64_t models, used_features, used_columns;
} forest;

// ---- ranks ----

// Integers in the order of floats, with -0 equal to 0. They are exact if the processor flushes denormals.
static inline int32_t key_of(int32_t bits) { return bits < 0 ? INT32_MIN - bits : bits; }

// Writes the codes of a block [used columns, BLOCK] for up to BLOCK rows of x.
static void rank_block(const forest *f, const float *x, int64_t row_stride, int64_t column_stride, int rows,
                       int8_t *codes) {
    for (int64_t i = 0; i < f->used_features; i++) {
        const feature *one = f->features + i;
        const float *values = x + one->column * column_stride;
        const int32_t *keys = f->keys + one->threshold;
        int32_t key[BLOCK] = {0}, rank[BLOCK] = {0};
        uint8_t missing[BLOCK] = {0};
        int any = 0;
        for (int r = 0; r < rows; r++) memcpy(key + r, values + r * row_stride, sizeof(float));
        for (int r = 0; r < BLOCK; r++) {
            missing[r] = (key[r] & INT32_MAX) > 0x7f800000;
            any |= missing[r];
            key[r] = missing[r] ? INT32_MIN : key_of(key[r]);
        }
        for (int32_t step = 1 << (one->steps - 1); step > 0; step >>= 1)
            for (int r = 0; r < BLOCK; r++) rank[r] += step & -(keys[rank[r] + step - 1] <= key[r]);
        for (int32_t c = one->code; c < one->code + one->codes; c++) {
            int8_t *out = codes + (int64_t)c * BLOCK;
            int32_t first = f->columns[c].rank;
            for (int r = 0; r < BLOCK; r++) {
                int32_t within = rank[r] - first;
                within = within < 0 ? 0 : within > RANKS ? RANKS : within;
                out[r] = (int8_t)(within + LOWEST);
            }
            if (any)
                for (int r = 0; r < BLOCK; r++)
                    if (missing[r]) out[r] = (int8_t)f->columns[c].missing;
        }
    }
}

// ---- trees ----

typedef struct {
    vector first, second;
} pair;

#define INLINE static inline __attribute__((always_inline))

INLINE pair walk_1(const node *n, const int8_t *codes, vector *leaf) {
    vector limit = repeated(n->threshold), at = *leaf;
    *leaf = plus(at, repeated(0x02020202));
    codes += n->column;
    return (pair){next_if(above(codes, limit), at), next_if(above(codes + LANES, limit), at)};
}

// Nodes of a subtree: those of its left subtree, those of its right subtree, its root.
#define WALK(depth, below)                                                                     \
    INLINE pair walk_##depth(const node *n, const int8_t *codes, vector *leaf) {               \
        pair left = walk_##below(n, codes, leaf);                                              \
        pair right = walk_##below(n + (1 << below) - 1, codes, leaf);                          \
        n += (1 << depth) - 2;                                                                 \
        vector limit = repeated(n->threshold);                                                 \
        codes += n->column;                                                                    \
        return (pair){selected(above(codes, limit), left.first, right.first),                  \
                      selected(above(codes + LANES, limit), left.second, right.second)};       \
    }
WALK(2, 1)
WALK(3, 2)
WALK(4, 3)
WALK(5, 4)
WALK(6, 5)
WALK(7, 6)
WALK(8, 7)

// Writes the leaf numbers of GROUP rows.
#define TOP(depth)                                                                             \
    static void top_##depth(const node *n, const int8_t *codes, uint8_t *exits) {              \
        vector leaf = repeated(0);                                                             \
        pair numbers = walk_##depth(n, codes, &leaf);                                          \
        memcpy(exits, &numbers, sizeof numbers);                                               \
    }
TOP(1)
TOP(2)
TOP(3)
TOP(4)
TOP(5)
TOP(6)
TOP(7)
TOP(8)

typedef void top(const node *, const int8_t *, uint8_t *);
static top *const TOPS[] = {0, top_1, top_2, top_3, top_4, top_5, top_6, top_7, top_8};

// Adds the leaves of a block's rows.
static void add_tree(const forest *f, const tree *t, const int8_t *codes, float *sums) {
    uint8_t exits[BLOCK] __attribute__((aligned(64)));
    const float *leaves = f->leaves + t->leaf;
    for (int r = 0; r < BLOCK; r += GROUP) TOPS[t->depth](f->nodes + t->node, codes + r, exits + r);
    if (!t->deep) {
        for (int r = 0; r < BLOCK; r++) sums[r] += leaves[exits[r]];
        return;
    }
    const int32_t *links = f->links + t->leaf;
    for (int r = 0; r < BLOCK; r++) {
        int32_t link = links[exits[r]];
        if (link < 0) {
            sums[r] += leaves[exits[r]];
            continue;
        }
        const deep_node *n = f->deep + link;
        while (n->left >= 0) n = f->deep + (codes[n->column + r] > n->threshold ? n->right : n->left);
        sums[r] += n->value;
    }
}

// As XGBoost computes it. NaN stays NaN.
static float probability(float log_odds) {
    float x = -log_odds > 88.7f ? 88.7f : -log_odds;
    return 1.0f / (expf(x) + 1.0f + 1e-16f);
}

// Writes probabilities [models, rows] at distance out_stride. x: [rows, columns] with strides in floats. margins: [models,
// rows] with strides in floats, or null. Returns 0, or 1 if memory is missing.
int predict(const forest *f, const float *x, int64_t row_stride, int64_t column_stride, int64_t rows,
            const float *margins, int64_t margin_row_stride, int64_t margin_model_stride, float *out,
            int64_t out_stride) {
    int64_t block_bytes = (f->used_columns > 0 ? f->used_columns : 1) * BLOCK;
    int64_t blocks = CODES_BYTES / block_bytes > 1 ? CODES_BYTES / block_bytes : 1;
    if (blocks > (rows + BLOCK - 1) / BLOCK) blocks = (rows + BLOCK - 1) / BLOCK;
    int8_t *codes = aligned_alloc(64, (size_t)(blocks * block_bytes));
    float *sums = aligned_alloc(64, (size_t)(blocks * BLOCK) * sizeof(float));
    if (!codes || !sums) {
        free(codes);
        free(sums);
        return 1;
    }
    for (int64_t start = 0; start < rows; start += blocks * BLOCK) {
        int64_t count = rows - start < blocks * BLOCK ? rows - start : blocks * BLOCK;
        int64_t filled = (count + BLOCK - 1) / BLOCK;
        for (int64_t b = 0; b < filled; b++) {
            int64_t rest = count - b * BLOCK;
            rank_block(f, x + (start + b * BLOCK) * row_stride, row_stride, column_stride,
                       rest < BLOCK ? (int)rest : BLOCK, codes + b * block_bytes);
        }
        for (int64_t m = 0; m < f->models; m++) {
            const float *margin =
                margins ? margins + m * margin_model_stride + start * margin_row_stride : 0;
            for (int64_t r = 0; r < filled * BLOCK; r++)
                sums[r] = margin && r < count ? margin[r * margin_row_stride] : f->bases[m];
            for (int64_t first = m ? f->ends[m - 1] : 0; first < f->ends[m]; first += TREES) {
                int64_t last = first + TREES < f->ends[m] ? first + TREES : f->ends[m];
                for (int64_t b = 0; b < filled; b++)
                    for (int64_t t = first; t < last; t++)
                        add_tree(f, f->trees + t, codes + b * block_bytes, sums + b * BLOCK);
            }
            for (int64_t r = 0; r < count; r++) out[m * out_stride + start + r] = probability(sums[r]);
        }
    }
    free(codes);
    free(sums);
    return 0;
}
