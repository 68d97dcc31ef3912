// The functions of gpu.cuh for a CPU, so that gemm.cu is compiled and run without a GPU. A warp is a thread of the operating
// system, and `lanes` is a loop. What runs asynchronously on a GPU also does here: copies are made by another thread, in random order,
// and a product reads shared memory when it is waited for. So a barrier that is missing is a data race, which ThreadSanitizer
// reports, or a wrong result.
#pragma once

#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#define DEVICE inline
#define GLOBAL(THREADS) void
#define CONSTANT
#define NOT_UNROLLED

constexpr int WARPS = 8;
constexpr int WARPGROUP = 4;

struct uint2 {
    uint32_t x, y;
};
struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};
using half = uint16_t;
struct Half4 {
    half x[4];
};

// A row-major matrix of bytes; stands for CUtensorMap.
struct TileMap {
    const uint8_t* at;
    int64_t pitch;
};

template <class T>
struct PerLane {
    T values[32];
    T& operator[](int lane) { return values[lane]; }
    const T& operator[](int lane) const { return values[lane]; }
};

enum Kind { KIND_FP8, KIND_INT8, KIND_FP16 };

// A product that is not waited for: the descriptors of its operands, and their type.
struct Pending {
    uint64_t a, b;
    Kind kind;
};

template <class T>
struct Accumulators {
    T values[32][32];
    std::vector<Pending> pending;
    T* operator[](int lane) { return values[lane]; }
    ~Accumulators();
};

// FP8 tensor cores of compute capability 9.0 add 32 products and the sum with about this many bits of the largest of them, and
// truncate (DeepSeek-AI, arXiv 2412.19437, section 3.3.2). With 24 or more, a sum is that of floats.
inline int fp8_sum_bits = 24;

inline float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
inline float4 operator-(float4 a, float4 b) { return {a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w}; }
inline float4 operator*(float4 a, float4 b) { return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w}; }
inline float4 operator-(float4 a, float b) { return {a.x - b, a.y - b, a.z - b, a.w - b}; }
inline float4 operator*(float4 a, float b) { return {a.x * b, a.y * b, a.z * b, a.w * b}; }
inline float4 operator+(float4 a, float b) { return {a.x + b, a.y + b, a.z + b, a.w + b}; }
inline float total(float4 a) { return (a.x + a.y) + (a.z + a.w); }
inline float inverse_root(float x) { return 1.0f / std::sqrt(x); }

[[noreturn]] inline void fail(const char* message) {
    std::fprintf(stderr, "host: %s\n", message);
    std::abort();
}

template <class T>
Accumulators<T>::~Accumulators() {
    if (!pending.empty()) fail("products are not waited for");
}

// The value of a small float format with this many bits of exponent and mantissa, without infinity and NaN.
inline float decoded(unsigned bits, int exponent_bits, int mantissa_bits) {
    const int sign = bits >> (exponent_bits + mantissa_bits), bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1), mantissa = bits & ((1 << mantissa_bits) - 1);
    const float size = exponent ? std::ldexp(float(mantissa + (1 << mantissa_bits)), exponent - bias - mantissa_bits)
                                : std::ldexp(float(mantissa), 1 - bias - mantissa_bits);
    return sign ? -size : size;
}

// The nearest value of the format, ties to even, saturated at `limit`.
inline unsigned encoded(float x, int exponent_bits, int mantissa_bits, float limit) {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    float size = std::fmin(std::fabs(x), limit);
    int exponent = size > 0.0f ? std::ilogb(size) : 1 - bias;
    exponent = exponent < 1 - bias ? 1 - bias : exponent;
    // Steps of the exponent's binade; a carry into the next exponent is part of the number.
    const unsigned steps = unsigned(std::nearbyint(std::ldexp(size, mantissa_bits - exponent)));
    const unsigned magnitude = (unsigned(exponent + bias - 1) << mantissa_bits) + steps;
    return magnitude | (std::signbit(x) ? 1u << (exponent_bits + mantissa_bits) : 0u);
}

inline float4 floats(Half4 x) {
    return {decoded(x.x[0], 5, 10), decoded(x.x[1], 5, 10), decoded(x.x[2], 5, 10), decoded(x.x[3], 5, 10)};
}

inline Half4 halves(float4 x) {
    const auto half_of = [](float value) { return half(encoded(value, 5, 10, 65504.0f)); };
    return {{half_of(x.x), half_of(x.y), half_of(x.z), half_of(x.w)}};
}

inline uint32_t e4m3(float4 x) {
    const auto byte = [](float value) { return encoded(value, 4, 3, 448.0f); };
    return byte(x.x) | byte(x.y) << 8 | byte(x.z) << 16 | byte(x.w) << 24;
}

inline uint32_t int8(float4 x) {
    const auto byte = [](float value) { return uint32_t(int(std::fmax(-128.0f, std::fmin(127.0f, std::nearbyint(value))))) & 0xFF; };
    return byte(x.x) | byte(x.y) << 8 | byte(x.z) << 16 | byte(x.w) << 24;
}

// A barrier of `count` warps. It only counts up; a warp passes its n-th wait when all have arrived n times.
struct Barrier {
    std::atomic<int64_t> arrived{0};
    void arrive() { arrived.fetch_add(1, std::memory_order_release); }
    void wait(int64_t target) const {
        while (arrived.load(std::memory_order_acquire) < target) std::this_thread::yield();
    }
};

struct Block {
    int index = 0;
    std::unique_ptr<uint8_t[]> storage;
    uint8_t* memory = nullptr;
    int bytes = 0;
    Barrier barrier;
};

// Copies to shared memory, made by one more thread. An mbarrier is an integer in shared memory: bytes that are expected, and
// 2^40 until they have been announced. It is 0 when all have arrived.
class Copier {
  public:
    explicit Copier(unsigned seed) : random_(seed), thread_([this] { run(); }) {}
    ~Copier() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            ended_ = true;
        }
        changed_.notify_one();
        thread_.join();
    }
    void add(std::function<void()> copy) {
        const std::lock_guard<std::mutex> lock(mutex_);
        copies_.push_back(std::move(copy));
        changed_.notify_one();
    }

  private:
    void run() {
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            changed_.wait(lock, [this] { return ended_ || !copies_.empty(); });
            if (copies_.empty()) return;
            std::swap(copies_[random_() % copies_.size()], copies_.back());
            const auto copy = std::move(copies_.back());
            copies_.pop_back();
            lock.unlock();
            copy();
            lock.lock();
        }
    }
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::function<void()>> copies_;
    bool ended_ = false;
    std::mt19937 random_;
    std::thread thread_;
};

struct Cluster {
    std::vector<Block> blocks;
    Barrier barrier;
    Copier copier;
    Cluster(int size, int bytes, int first, unsigned seed) : blocks(size), copier(seed) {
        for (int i = 0; i < size; i++) {
            blocks[i].index = first + i;
            blocks[i].bytes = bytes;
            blocks[i].storage.reset(new uint8_t[bytes + 1024]);
            blocks[i].memory = blocks[i].storage.get() + (1024 - uintptr_t(blocks[i].storage.get()) % 1024) % 1024;
            std::memset(blocks[i].memory, 0x7F, bytes);  // NaN in E4M3
        }
    }
};

// The state of a warp.
struct Warp {
    Cluster* cluster;
    int member, number;
    int64_t block_waits = 0, cluster_waits = 0;
    bool waited = false, copies_see = false;
};
inline thread_local Warp* self = nullptr;
inline Block& own_block() { return self->cluster->blocks[self->member]; }

inline int block_index() { return own_block().index; }
inline int warp() { return self->number; }
inline uint32_t multiprocessor() { return 1000 + own_block().index; }
// Nanoseconds, and as many cycles.
inline uint2 now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    const uint32_t time = uint32_t(std::chrono::duration_cast<std::chrono::nanoseconds>(since).count());
    return {time, time};
}
inline uint8_t* shared_memory() { return own_block().memory; }
inline uint32_t shared_address(const void* pointer) {
    const int64_t address = static_cast<const uint8_t*>(pointer) - own_block().memory;
    if (address < 0 || address >= own_block().bytes) fail("an address is outside shared memory");
    return uint32_t(address);
}

template <class F>
void lanes(F run) {
    for (int lane = 0; lane < 32; lane++) run(lane);
}

template <class F>
void once(F run) {
    if (self->number == 0) run();
}

// In the order of a butterfly of shuffles.
inline void group_sum(PerLane<float>& x, int width) {
    for (int offset = width / 2; offset > 0; offset /= 2) {
        const PerLane<float> before = x;
        for (int lane = 0; lane < 32; lane++) x[lane] = before[lane] + before[lane ^ offset];
    }
}

inline void sync_block() {
    own_block().barrier.arrive();
    own_block().barrier.wait(++self->block_waits * WARPS);
}
inline void cluster_arrive() { self->cluster->barrier.arrive(); }
inline void cluster_arrive_relaxed() { cluster_arrive(); }
inline void cluster_wait() {
    self->cluster->barrier.wait(++self->cluster_waits * WARPS * int64_t(self->cluster->blocks.size()));
}
inline void let_next_start() {}
inline void wait_for_previous() { self->waited = true; }

template <class T>
T previous(const T* pointer) {
    if (!self->waited) fail("data of the previous kernel is read before the wait");
    return *pointer;
}

inline float4 from_block(const float* pointer, int member) {
    const Block& other = self->cluster->blocks[member];
    return *reinterpret_cast<const float4*>(other.memory + shared_address(pointer));
}

constexpr int64_t UNANNOUNCED = int64_t(1) << 40;
inline void barrier_init(uint64_t* barrier) { __atomic_store_n(reinterpret_cast<int64_t*>(barrier), UNANNOUNCED, __ATOMIC_RELEASE); }
inline void barriers_ready() {}
inline void barrier_add(uint64_t* barrier, int64_t amount) {
    __atomic_fetch_add(reinterpret_cast<int64_t*>(barrier), amount, __ATOMIC_ACQ_REL);
}
inline void barrier_expect(uint64_t* barrier, int bytes) { barrier_add(barrier, bytes - UNANNOUNCED); }
inline void barrier_wait(uint64_t* barrier) {
    while (__atomic_load_n(reinterpret_cast<int64_t*>(barrier), __ATOMIC_ACQUIRE) != 0) std::this_thread::yield();
}

inline void copy(void* to, const void* from, int bytes, uint64_t* barrier) {
    if (shared_address(to) % 16 || bytes % 16) fail("a copy is not aligned");
    self->cluster->copier.add([=] {
        std::memcpy(to, from, bytes);
        barrier_add(barrier, -bytes);
    });
}

// The 128-byte swizzle of the hardware: bits 4 to 6 of an address in shared memory are combined with bits 7 to 9.
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

inline void copies_see_previous() { self->copies_see = self->waited; }
inline void fetch_map(const TileMap&) {}
inline void copy_tile(void* to, const TileMap& map, int column, uint64_t* barrier, unsigned mask, bool multicast) {
    if (!self->copies_see) fail("a tile is copied before the wait, or its proxy has not seen the previous kernel's stores");
    if (!multicast && mask != 1u << self->member) fail("a copy to other blocks is not a multicast");
    const uint32_t address = shared_address(to), at = shared_address(barrier);
    if (address % 1024) fail("a tile is not aligned to its swizzle");
    const TileMap source = map;
    for (size_t member = 0; member < self->cluster->blocks.size(); member++) {
        if (!(mask >> member & 1)) continue;
        uint8_t* memory = self->cluster->blocks[member].memory;
        self->cluster->copier.add([=] {
            for (uint32_t row = 0; row < 128; row++)
                for (uint32_t unit = 0; unit < 128; unit += 16)
                    std::memcpy(memory + swizzled(address + row * 128 + unit), source.at + row * source.pitch + column + unit, 16);
            barrier_add(reinterpret_cast<uint64_t*>(memory + at), -128 * 128);
        });
    }
}

inline void products_begin() {}
inline void product_fp8(Accumulators<float>& sums, uint64_t a, uint64_t b) { sums.pending.push_back({a, b, KIND_FP8}); }
inline void product_fp16(Accumulators<float>& sums, uint64_t a, uint64_t b) { sums.pending.push_back({a, b, KIND_FP16}); }
inline void product_int8(Accumulators<int>& sums, uint64_t a, uint64_t b) { sums.pending.push_back({a, b, KIND_INT8}); }
inline void products_end() {}

// The values of a matrix in shared memory as wgmma reads them: `rows` rows of 32 bytes.
inline std::vector<float> operand(uint64_t descriptor, int rows, Kind kind) {
    static const std::vector<float> values = [] {
        std::vector<float> table(256);
        for (unsigned byte = 0; byte < 256; byte++) table[byte] = (byte & 0x7F) == 0x7F ? NAN : decoded(byte, 4, 3);
        return table;
    }();
    const uint32_t start = (descriptor & 0x3FFF) << 4, of_8_rows = (descriptor >> 32 & 0x3FFF) << 4;
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7)) fail("a descriptor is not of the 128-byte swizzle");
    const int width = kind == KIND_FP16 ? 2 : 1, depths = 32 / width;
    std::vector<float> x(rows * depths);
    for (int row = 0; row < rows; row++)
        for (int depth = 0; depth < depths; depth++) {
            const uint8_t* at = own_block().memory + swizzled(start + row / 8 * of_8_rows + row % 8 * 128 + depth * width);
            const unsigned half_bits = width == 2 ? at[0] | unsigned(at[1]) << 8 : 0u;
            x[row * depths + depth] = kind == KIND_FP8    ? values[*at]
                                      : kind == KIND_INT8 ? float(int8_t(*at))
                                                          : decoded(half_bits, 5, 10);
        }
    return x;
}

// sum + a[0] * b[0] + ...; in FP8 with `fp8_sum_bits` bits.
inline float added(float sum, const float* a, const float* b, int depths, Kind kind) {
    if (kind != KIND_FP8 || fp8_sum_bits >= 24) {
        for (int depth = 0; depth < depths; depth++) sum += a[depth] * b[depth];
        return sum;
    }
    float largest = std::fabs(sum);
    for (int depth = 0; depth < depths; depth++) largest = std::fmax(largest, std::fabs(a[depth] * b[depth]));
    if (largest == 0.0f) return 0.0f;
    const int last_bit = std::ilogb(largest) - (fp8_sum_bits - 1);
    double steps = std::trunc(std::ldexp(double(sum), -last_bit));
    for (int depth = 0; depth < depths; depth++) steps += std::trunc(std::ldexp(double(a[depth]) * b[depth], -last_bit));
    return float(std::ldexp(steps, last_bit));
}

inline int added(int sum, const float* a, const float* b, int depths, Kind) {
    for (int depth = 0; depth < depths; depth++) sum += int(a[depth]) * int(b[depth]);
    return sum;
}

// Fragments as in the PTX ISA, "register fragments for wgmma.mma_async.m64nNk32", matrix D: a warp has 16 rows.
template <class T>
void products_wait(Accumulators<T>& sums) {
    for (const auto& [a, b, kind] : sums.pending) {
        const std::vector<float> rows = operand(a, 64, kind), columns = operand(b, 64, kind);
        const int depths = int(rows.size()) / 64;
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 32; i++) {
                const int row = self->number % WARPGROUP * 16 + lane / 4 + (i / 2 % 2) * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
                sums.values[lane][i] =
                    added(sums.values[lane][i], rows.data() + row * depths, columns.data() + column * depths, depths, kind);
            }
    }
    sums.pending.clear();
}
