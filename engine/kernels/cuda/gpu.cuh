// The functions that gemm.cu needs of a GPU: PTX of compute capability 9.0a. Names of instructions are those of the PTX ISA.
#pragma once

#include <cstdint>

#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#define DEVICE __device__ __forceinline__
#define GLOBAL(THREADS) __global__ void __launch_bounds__(THREADS, 2)  // two blocks fit into a multiprocessor's registers
#define NOT_UNROLLED _Pragma("unroll 1")
#define CONSTANT __grid_constant__

using TileMap = CUtensorMap;

// A variable of each thread of a warp. Code for a warp is written as `lanes([&](int lane) {...})`, which a test runs as a loop.
template <class T>
struct PerLane {
    T value;
    DEVICE T& operator[](int) { return value; }
    DEVICE const T& operator[](int) const { return value; }
};

// The sums of a product of 64 rows and 64 columns: floats, or integers for INT8.
template <class T>
using Accumulators = PerLane<T[32]>;

using Half4 = uint2;  // four halves

DEVICE float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
DEVICE float4 operator-(float4 a, float4 b) { return {a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w}; }
DEVICE float4 operator*(float4 a, float4 b) { return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w}; }
DEVICE float4 operator-(float4 a, float b) { return {a.x - b, a.y - b, a.z - b, a.w - b}; }
DEVICE float4 operator+(float4 a, float b) { return {a.x + b, a.y + b, a.z + b, a.w + b}; }
DEVICE float4 operator*(float4 a, float b) { return {a.x * b, a.y * b, a.z * b, a.w * b}; }
DEVICE float inverse_root(float x) { return rsqrtf(x); }
DEVICE float total(float4 a) { return (a.x + a.y) + (a.z + a.w); }

DEVICE float4 floats(Half4 x) {
    const float2 low = __half22float2(*reinterpret_cast<half2*>(&x.x)), high = __half22float2(*reinterpret_cast<half2*>(&x.y));
    return {low.x, low.y, high.x, high.y};
}

DEVICE Half4 halves(float4 x) {
    const half2 low = __floats2half2_rn(x.x, x.y), high = __floats2half2_rn(x.z, x.w);
    return {*reinterpret_cast<const uint32_t*>(&low), *reinterpret_cast<const uint32_t*>(&high)};
}

// Four values in E4M3, saturated.
DEVICE uint32_t e4m3(float4 x) {
    const uint32_t low = __nv_cvt_float2_to_fp8x2(float2{x.x, x.y}, __NV_SATFINITE, __NV_E4M3);
    const uint32_t high = __nv_cvt_float2_to_fp8x2(float2{x.z, x.w}, __NV_SATFINITE, __NV_E4M3);
    return high << 16 | low;
}

// Four values rounded to INT8, saturated.
DEVICE uint32_t int8(float4 x) {
    const auto byte = [](float value) { return uint32_t(max(-128, min(127, __float2int_rn(value)))) & 0xFF; };
    return byte(x.x) | byte(x.y) << 8 | byte(x.z) << 16 | byte(x.w) << 24;
}

DEVICE int block_index() { return blockIdx.x; }
DEVICE int warp() { return threadIdx.x / 32; }

DEVICE uint32_t multiprocessor() {
    uint32_t number;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(number));
    return number;
}

// The low 32 bits of the multiprocessor's count of cycles, and of the GPU's time in nanoseconds.
DEVICE uint2 now() {
    uint2 time;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(time.x)::"memory");
    asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(time.y)::"memory");
    return time;
}

// Run by every thread of a warp.
template <class F>
DEVICE void lanes(F run) {
    run(threadIdx.x % 32);
}

// Run by one thread of the block.
template <class F>
DEVICE void once(F run) {
    if (threadIdx.x == 0) run();
    __syncwarp();
}

// The sum over each group of `width` consecutive lanes, for all lanes of the group.
DEVICE void group_sum(PerLane<float>& x, int width) {
    for (int offset = width / 2; offset > 0; offset /= 2) x.value += __shfl_xor_sync(~0u, x.value, offset);
}

DEVICE uint8_t* shared_memory() {
    extern __shared__ __align__(1024) uint8_t memory[];
    return memory;
}

DEVICE uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

// A value that the previous kernel has written.
template <class T>
DEVICE T previous(const T* pointer) {
    return *pointer;
}

DEVICE void sync_block() { __syncthreads(); }
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEVICE void let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
DEVICE void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Four floats at this address in the shared memory of another block of the cluster.
DEVICE float4 from_block(const float* pointer, int member) {
    uint32_t address;
    float4 x;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(pointer)), "r"(member));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "r"(address)
                 : "memory");
    return x;
}

// A barrier for bytes that arrive in shared memory. Each is used for one phase.
DEVICE void barrier_init(uint64_t* barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}

// Makes initialised barriers visible to copies and to other blocks of the cluster.
DEVICE void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void barrier_expect(uint64_t* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

// Wait until all expected bytes have arrived. After 2^20 polls, at least a second, it continues, so that the GPU does not hang; the
// result is then wrong. (A trap here would make the compiler serialise the products.)
DEVICE void barrier_wait(uint64_t* barrier) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        ".reg .b32 polls;\n"
        "mov.b32 polls, 0;\n"
        "poll:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n"
        "@done bra arrived;\n"
        "add.s32 polls, polls, 1;\n"
        "setp.ge.s32 done, polls, 1048576;\n"
        "@!done bra poll;\n"
        "arrived:\n"
        "}" ::"r"(shared_address(barrier))
        : "memory");
}

// Start copying consecutive bytes to shared memory.
DEVICE void copy(void* to, const void* from, int bytes, uint64_t* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

// The previous kernel has written by ordinary stores; the copies of tiles that follow read through the asynchronous proxy.
DEVICE void copies_see_previous() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

DEVICE void fetch_map(const TileMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// Start copying a tile of 128 rows and 128 columns, swizzled, to shared memory; with `multicast`, to the same place in all blocks
// of the mask.
DEVICE void copy_tile(void* to, const TileMap& map, int column, uint64_t* barrier, unsigned mask, bool multicast) {
    if (multicast)
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], "
            "[%4], %5;" ::"r"(shared_address(to)),
            "l"(&map), "r"(column), "r"(0), "r"(shared_address(barrier)), "h"(uint16_t(mask))
            : "memory");
    else
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                shared_address(to)),
            "l"(&map), "r"(column), "r"(0), "r"(shared_address(barrier))
            : "memory");
}

// Orders earlier accesses of the sums' registers before the products that follow.
DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// The functions below start sums += a @ b.T for 64 rows, 64 columns and a depth of 32 bytes.
#define PRODUCT(INSTRUCTION, CONSTRAINT, SCALES)                                                                                    \
    asm volatile("wgmma.mma_async.sync.aligned." INSTRUCTION                                                                        \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
                 "%24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, " SCALES ";"                                                   \
                 : CONSTRAINT(d[0]), CONSTRAINT(d[1]), CONSTRAINT(d[2]), CONSTRAINT(d[3]), CONSTRAINT(d[4]), CONSTRAINT(d[5]),      \
                   CONSTRAINT(d[6]), CONSTRAINT(d[7]), CONSTRAINT(d[8]), CONSTRAINT(d[9]), CONSTRAINT(d[10]), CONSTRAINT(d[11]),    \
                   CONSTRAINT(d[12]), CONSTRAINT(d[13]), CONSTRAINT(d[14]), CONSTRAINT(d[15]), CONSTRAINT(d[16]),                   \
                   CONSTRAINT(d[17]), CONSTRAINT(d[18]), CONSTRAINT(d[19]), CONSTRAINT(d[20]), CONSTRAINT(d[21]),                   \
                   CONSTRAINT(d[22]), CONSTRAINT(d[23]), CONSTRAINT(d[24]), CONSTRAINT(d[25]), CONSTRAINT(d[26]),                   \
                   CONSTRAINT(d[27]), CONSTRAINT(d[28]), CONSTRAINT(d[29]), CONSTRAINT(d[30]), CONSTRAINT(d[31])                    \
                 : "l"(a), "l"(b))
#define FLOAT_SUM(X) "+f"(X)
#define INTEGER_SUM(X) "+r"(X)

DEVICE void product_fp8(Accumulators<float>& sums, uint64_t a, uint64_t b) {
    float* d = sums.value;
    PRODUCT("m64n64k32.f32.e4m3.e4m3", FLOAT_SUM, "1, 1, 1");
}

DEVICE void product_fp16(Accumulators<float>& sums, uint64_t a, uint64_t b) {
    float* d = sums.value;
    PRODUCT("m64n64k16.f32.f16.f16", FLOAT_SUM, "1, 1, 1, 0, 0");
}

DEVICE void product_int8(Accumulators<int>& sums, uint64_t a, uint64_t b) {
    int* d = sums.value;
    PRODUCT("m64n64k32.s32.s8.s8", INTEGER_SUM, "1");
}

DEVICE void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait for all products.
DEVICE void products_wait(Accumulators<float>& sums) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int i = 0; i < 32; i++) asm volatile("" : "+f"(sums.value[i])::"memory");
}

DEVICE void products_wait(Accumulators<int>& sums) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int i = 0; i < 32; i++) asm volatile("" : "+r"(sums.value[i])::"memory");
}
