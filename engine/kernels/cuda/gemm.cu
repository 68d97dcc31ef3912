// Products of a transformer layer in FP8, INT8 and FP16 for at most 128 tokens, for compute capability 9.0a.
//
//   out [128, columns] = epilogue(activations [128, depth] @ weights [columns, depth].T)
//
// A cluster computes 64 columns, or several times 64. Its blocks split the depth into SPLIT shares. With `share` > 1, `share`
// blocks have the same part of the depth and different columns, and each activation is copied once to all of them (multicast).
//
//   1. A block copies the weights of its share to shared memory. Weights are constants, so this precedes the wait for the
//      previous kernel.
//   2. It waits, copies the activations of its share, and computes the product on tensor cores.
//   3. Each block writes its partial sums to its own shared memory. After a barrier of the cluster, each block adds the sums of all
//      shares for 128 / SPLIT rows, and applies the epilogue. It begins with its own sums, so that not all blocks read the same one
//      at once. So the order depends on the row, but on nothing else.
//
// Shared memory is written once, so there is no ring of buffers. The activations of all chunks are in flight together.
//
// In FP8 and FP16, norms have no kernel. A product in front of a norm writes the sum y that the norm would read: as half, in FP8 also
// as E4M3(y * gamma * factor), and for each row and tile of 64 columns the mean and the sum of squared deviations. The product that
// reads it corrects the result. With W the weights, r = 1 / sqrt(variance + eps), m the mean of a row:
//
//   W @ ((y - m) * r * gamma + beta) = r * (W @ (y * gamma)) - r * m * (W @ gamma) + W @ beta
//
// In FP16, gamma is part of the weights. INT8 has one scale for all rows, whose deviations differ, so its norms are kernels.
//
// All functions that are not defined here are in gpu.cuh. Tests compile this file for a CPU, with those functions replaced.

#ifdef __CUDACC__
#include "gpu.cuh"
#endif

constexpr int ROWS = 128;     // tokens
constexpr int COLUMNS = 64;   // output columns of a block
constexpr int CHUNK = 128;    // bytes of a row in a chunk of the depth: the width of the swizzle
constexpr int STEP = 32;      // bytes of a row in one tensor core instruction
constexpr int THREADS = 256;  // two warpgroups of 64 rows
constexpr int LANES = 32;
constexpr int MOST_TILES = 16;  // normed rows of at most 1024 values
constexpr int PITCH = COLUMNS + 8;  // floats of a row of partial sums; avoids bank conflicts

enum Type { FP8, INT8, FP16 };  // of activations and weights
enum Epilogue { PROJECT, GELU, RESIDUAL };

template <Type TYPE>
struct SumOf {
    using type = float;
};
template <>
struct SumOf<INT8> {
    using type = int;
};

// Rows of `vectors`: the scale of the sums, W @ gamma, bias + W @ beta, the factor of the eight-bit output, and gamma and beta of
// the residual.
enum Vector { SCALE, OF_MEAN, BIAS, FACTOR, GAMMA, BETA, VECTORS };

// What a block has passed when it takes the time: its start; all that precedes the wait; the wait for the previous kernel; the arrival
// of all copies; the products; the barrier of the cluster; its last store; and the last barrier.
enum Stamp { START, READY, WAITED, COPIED, MULTIPLIED, EXCHANGED, STORED, END, STAMPS };

// `buzzer.engine.kernels.cuda.launch.Arguments` has the same fields.
struct Arguments {
    const uint8_t* weights;  // in the order of `buzzer.engine.kernels.cuda.layout`
    const float* vectors;    // [VECTORS, columns]
    const float2* norms;     // [tiles, ROWS]: mean and sum of squared deviations of the normed row, by tiles of 64 columns
    const half* residual;    // [ROWS, columns], not normed; RESIDUAL only
    half* out;               // [ROWS, columns]; PROJECT, RESIDUAL and FP16
    uint8_t* eight;          // [ROWS, columns]; GELU in FP8 and INT8, RESIDUAL in FP8
    float2* out_norms;       // [columns / 64, ROWS]; RESIDUAL in FP8 and FP16
    uint2* stamps;           // [blocks, STAMPS + 1]: times, then the multiprocessor; null: none are taken
    float eps;
    float tile_weight;  // 1 / tiles
    float zero;         // zero point of `eight` in INT8
    int tiles;    // of `norms`; at most MOST_TILES
    int columns;  // a multiple of 64 * share
    int chunks;   // of a share of the depth
    int share;    // blocks of a cluster that have the same part of the depth
};

constexpr int WEIGHT_BYTES = COLUMNS * CHUNK, ACTIVATION_BYTES = ROWS * CHUNK, PARTIAL_BYTES = ROWS * PITCH * 4;

// Shared memory: activations, then weights, of all chunks; the partial sums replace both. Then vectors and barriers.
struct Shared {
    uint8_t *activations, *weights;
    float *partial, *vectors;
    uint64_t* barriers;

    DEVICE explicit Shared(int chunks) {
        uint8_t* base = shared_memory();
        const int copied = chunks * (ACTIVATION_BYTES + WEIGHT_BYTES);
        activations = base;
        weights = base + chunks * ACTIVATION_BYTES;
        partial = reinterpret_cast<float*>(base);
        vectors = reinterpret_cast<float*>(base + (copied > PARTIAL_BYTES ? copied : PARTIAL_BYTES));
        barriers = reinterpret_cast<uint64_t*>(vectors + VECTORS * COLUMNS);
    }
};

// The times of a block, kept in registers until its end, because a store would delay the barriers.
struct Stamps {
    uint2* const to;
    uint2 at[STAMPS];

    DEVICE explicit Stamps(uint2* to) : to(to), at() {}
    DEVICE void take(Stamp stamp) {
        if (to) at[stamp] = now();
    }
    DEVICE void write() const {
        if (!to) return;
        once([&] {
            uint2* row = to + block_index() * (STAMPS + 1);
            for (int stamp = 0; stamp < STAMPS; stamp++) row[stamp] = at[stamp];
            row[STAMPS] = uint2{multiprocessor(), 0};
        });
    }
};

// The descriptor of a matrix in shared memory for wgmma (PTX ISA, "matrix descriptor"): rows of 128 bytes along the depth, 128-byte
// swizzle, 1024 bytes from 8 rows to the next 8. `address`: bytes in shared memory, a multiple of 16.
DEVICE uint64_t descriptor(uint32_t address) {
    const uint64_t swizzle_128 = 1, rows_of_8 = 8 * CHUNK;
    return swizzle_128 << 62 | rows_of_8 >> 4 << 32 | uint64_t(1) << 16 | (address & 0x3FFFF) >> 4;
}

DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

// Mean and 1 / deviation of each thread's row from the norms of its tiles. A row has THREADS_OF_ROW threads, which share its tiles
// (Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances", 1979).
template <int THREADS_OF_ROW>
DEVICE void norms_of(const Arguments& x, const PerLane<int>& rows, PerLane<float>& mean, PerLane<float>& inverse) {
    constexpr int TILES = MOST_TILES / THREADS_OF_ROW;
    PerLane<float2[TILES]> norms;
    lanes([&](int lane) {
        mean[lane] = inverse[lane] = 0.0f;
        for (int i = 0; i < TILES; i++) {
            const int tile = i * THREADS_OF_ROW + lane % THREADS_OF_ROW;
            norms[lane][i] = tile < x.tiles ? previous(x.norms + tile * ROWS + rows[lane]) : float2{0.0f, 0.0f};
            mean[lane] += norms[lane][i].x * x.tile_weight;
        }
    });
    group_sum(mean, THREADS_OF_ROW);
    lanes([&](int lane) {
        for (int i = 0; i < TILES; i++) {
            const float apart = norms[lane][i].x - mean[lane];
            if (i * THREADS_OF_ROW + lane % THREADS_OF_ROW < x.tiles)
                inverse[lane] += (norms[lane][i].y / COLUMNS + apart * apart) * x.tile_weight;
        }
    });
    group_sum(inverse, THREADS_OF_ROW);
    lanes([&](int lane) { inverse[lane] = inverse_root(inverse[lane] + x.eps); });
}

template <Type TYPE, Epilogue EPILOGUE, int SPLIT>
DEVICE void gemm(const TileMap& map, const Arguments& x) {
    constexpr bool NORMS = EPILOGUE == RESIDUAL && TYPE != INT8;  // the norms of the output are written
    constexpr bool HALVES = EPILOGUE != GELU || TYPE == FP16, EIGHT = TYPE != FP16 && (EPILOGUE == GELU || NORMS);
    constexpr int ROW_THREADS = 2 * SPLIT;  // threads of an output row
    constexpr int GROUPS = 8 / SPLIT;       // groups of four columns of a thread
    const int members = SPLIT * x.share, member = block_index() % members;
    const int part = member % SPLIT, peer = member / SPLIT;
    const int tile = block_index() / members * x.share + peer;
    const Shared shared(x.chunks);
    Stamps stamps(x.stamps);

    stamps.take(START);
    let_next_start();
    once([&] {
        fetch_map(map);
        NOT_UNROLLED for (int chunk = 0; chunk < x.chunks; chunk++) barrier_init(shared.barriers + chunk);
        barriers_ready();
        const uint8_t* weights = x.weights + size_t(tile * SPLIT + part) * x.chunks * WEIGHT_BYTES;
        NOT_UNROLLED for (int chunk = 0; chunk < x.chunks; chunk++) {
            barrier_expect(shared.barriers + chunk, ACTIVATION_BYTES + WEIGHT_BYTES);
            copy(shared.weights + chunk * WEIGHT_BYTES, weights + chunk * WEIGHT_BYTES, WEIGHT_BYTES, shared.barriers + chunk);
        }
    });
    lanes([&](int lane) {
        for (int i = warp() * LANES + lane; i < VECTORS * COLUMNS; i += THREADS)
            shared.vectors[i] = x.vectors[i / COLUMNS * x.columns + tile * COLUMNS + i % COLUMNS];
    });
    sync_block();
    if (x.share > 1) {  // the other blocks' barriers are ready
        cluster_arrive();
        cluster_wait();
    }
    stamps.take(READY);
    wait_for_previous();
    stamps.take(WAITED);

    once([&] {
        copies_see_previous();
        unsigned same_part = 0;
        NOT_UNROLLED for (int other = 0; other < x.share; other++) same_part |= 1u << (other * SPLIT + part);
        NOT_UNROLLED for (int chunk = peer; chunk < x.chunks; chunk += x.share)
            copy_tile(shared.activations + chunk * ACTIVATION_BYTES, map, (part * x.chunks + chunk) * CHUNK, shared.barriers + chunk,
                      same_part, x.share > 1);
    });
    PerLane<int> rows;  // the row of each thread in the epilogue
    lanes([&](int lane) { rows[lane] = part * (ROWS / SPLIT) + (warp() * LANES + lane) / ROW_THREADS; });
    PerLane<Half4[GROUPS]> residual;
    if (EPILOGUE == RESIDUAL)
        lanes([&](int lane) {
            for (int group = 0; group < GROUPS; group++) {
                const int column = tile * COLUMNS + 4 * (group * ROW_THREADS + lane % ROW_THREADS);
                residual[lane][group] = previous(reinterpret_cast<const Half4*>(x.residual + rows[lane] * x.columns + column));
            }
        });
    PerLane<float> mean, inverse;
    norms_of<ROW_THREADS>(x, rows, mean, inverse);

    Accumulators<typename SumOf<TYPE>::type> sums;  // of 64 rows for each warpgroup
    lanes([&](int lane) {
        for (int i = 0; i < 32; i++) sums[lane][i] = 0;
    });
    NOT_UNROLLED
    for (int chunk = 0; chunk < x.chunks; chunk++) {
        barrier_wait(shared.barriers + chunk);
        products_begin();
        const int first_row = warp() / 4 * 64;
        const uint64_t a = descriptor(shared_address(shared.activations + chunk * ACTIVATION_BYTES + first_row * CHUNK));
        const uint64_t b = descriptor(shared_address(shared.weights + chunk * WEIGHT_BYTES));
        for (int step = 0; step < CHUNK / STEP; step++) {
            const uint64_t rows = a + step * STEP / 16, columns = b + step * STEP / 16;
            if constexpr (TYPE == FP8) product_fp8(sums, rows, columns);
            if constexpr (TYPE == INT8) product_int8(sums, rows, columns);
            if constexpr (TYPE == FP16) product_fp16(sums, rows, columns);
        }
        products_end();
    }
    stamps.take(COPIED);
    products_wait(sums);
    stamps.take(MULTIPLIED);

    sync_block();  // all products of the block have read shared memory
    lanes([&](int lane) {
        for (int i = 0; i < COLUMNS / 8; i++)
            for (int half_tile = 0; half_tile < 2; half_tile++) {
                const int row = warp() * 16 + half_tile * 8 + lane / 4, column = i * 8 + lane % 4 * 2;
                const auto* pair = sums[lane] + i * 4 + half_tile * 2;
                *reinterpret_cast<float2*>(shared.partial + row * PITCH + column) = float2{float(pair[0]), float(pair[1])};
            }
    });
    cluster_arrive();
    cluster_wait();
    stamps.take(EXCHANGED);

    PerLane<float4[GROUPS]> values;
    lanes([&](int lane) {
        for (int group = 0; group < GROUPS; group++) {
            const float* at = shared.partial + rows[lane] * PITCH + 4 * (group * ROW_THREADS + lane % ROW_THREADS);
            float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
            for (int other = 0; other < SPLIT; other++) sum = sum + from_block(at, peer * SPLIT + ((part + other) & (SPLIT - 1)));
            values[lane][group] = sum;
        }
    });
    lanes([&](int lane) {
        for (int group = 0; group < GROUPS; group++) {
            const int in_tile = 4 * (group * ROW_THREADS + lane % ROW_THREADS);
            const auto vector = [&](Vector row) {
                return *reinterpret_cast<const float4*>(shared.vectors + row * COLUMNS + in_tile);
            };
            float4 value = values[lane][group] * vector(SCALE);
            if (EPILOGUE == RESIDUAL) {
                const float4 normed = (floats(residual[lane][group]) - mean[lane]) * inverse[lane] * vector(GAMMA) + vector(BETA);
                value = value + vector(BIAS) + normed;
            } else {
                value = (value - vector(OF_MEAN) * mean[lane]) * inverse[lane] + vector(BIAS);
            }
            if (EPILOGUE == GELU) value = {gelu(value.x), gelu(value.y), gelu(value.z), gelu(value.w)};
            const size_t cell = size_t(rows[lane]) * x.columns + tile * COLUMNS + in_tile;
            if (HALVES) *reinterpret_cast<Half4*>(x.out + cell) = halves(value);
            if (EIGHT) {
                const float4 scaled = value * vector(FACTOR);
                *reinterpret_cast<uint32_t*>(x.eight + cell) = TYPE == INT8 ? int8(scaled + x.zero) : e4m3(scaled);
            }
            values[lane][group] = value;
        }
    });
    if (NORMS) {
        PerLane<float> centre, squares;
        lanes([&](int lane) {
            centre[lane] = 0.0f;
            for (int group = 0; group < GROUPS; group++) centre[lane] += total(values[lane][group]);
        });
        group_sum(centre, ROW_THREADS);
        lanes([&](int lane) {
            centre[lane] /= COLUMNS;
            squares[lane] = 0.0f;
            for (int group = 0; group < GROUPS; group++) {
                const float4 apart = values[lane][group] - centre[lane];
                squares[lane] += total(apart * apart);
            }
        });
        group_sum(squares, ROW_THREADS);
        lanes([&](int lane) {
            if (lane % ROW_THREADS == 0) x.out_norms[tile * ROWS + rows[lane]] = float2{centre[lane], squares[lane]};
        });
    }
    stamps.take(STORED);
    // A block's shared memory must exist until no other block reads it. All values that were read have been stored, so the reads have
    // ended, and the barrier needs no release.
    cluster_arrive_relaxed();
    cluster_wait();
    stamps.take(END);
    stamps.write();
}

// DO(type, TYPE, SPLIT) for each type and number of shares that the kernels are compiled for; `layout.KINDS` has the same.
#define FOR_EACH_SPLIT(DO)                                          \
    DO(fp8, FP8, 1) DO(fp8, FP8, 2) DO(fp8, FP8, 4) DO(fp8, FP8, 8) \
    DO(int8, INT8, 1) DO(int8, INT8, 2) DO(int8, INT8, 8)           \
    DO(fp16, FP16, 2) DO(fp16, FP16, 8)

#define KERNEL(NAME, TYPE, EPILOGUE, SPLIT)                                                           \
    extern "C" GLOBAL(THREADS) NAME(const CONSTANT TileMap map, const CONSTANT Arguments arguments) { \
        gemm<TYPE, EPILOGUE, SPLIT>(map, arguments);                                                  \
    }
#define KERNELS(type, TYPE, SPLIT)                             \
    KERNEL(project_##type##_##SPLIT, TYPE, PROJECT, SPLIT)     \
    KERNEL(gelu_##type##_##SPLIT, TYPE, GELU, SPLIT)           \
    KERNEL(residual_##type##_##SPLIT, TYPE, RESIDUAL, SPLIT)

FOR_EACH_SPLIT(KERNELS)
