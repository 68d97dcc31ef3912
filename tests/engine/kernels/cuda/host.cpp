// Runs the kernels of gemm.cu on a CPU. As a library: `launch`. As a program: all kernels on constant data, for ThreadSanitizer.
#include "host.hpp"

#include GEMM

// A cluster at a time. `parameters`: pointers to the kernel's arguments, as for cuLaunchKernelEx. Returns 1 for an unknown name.
extern "C" int launch(const char* name, int blocks, int cluster, int bytes, void** parameters) {
    using Kernel = void (*)(const TileMap, const Arguments);
#define ENTRY(NAME) {#NAME, NAME},
#define ENTRIES(type, TYPE, SPLIT) \
    ENTRY(project_##type##_##SPLIT) ENTRY(gelu_##type##_##SPLIT) ENTRY(residual_##type##_##SPLIT)
    const std::pair<const char*, Kernel> kernels[] = {FOR_EACH_SPLIT(ENTRIES)};
    for (const auto& [known, kernel] : kernels) {
        if (std::strcmp(known, name) != 0) continue;
        const auto& map = *static_cast<TileMap*>(parameters[0]);
        const auto& arguments = *static_cast<Arguments*>(parameters[1]);
        for (int first = 0; first < blocks; first += cluster) {
            Cluster now(cluster, bytes, first, first);
            std::vector<std::thread> warps;
            for (int i = 0; i < cluster * WARPS; i++)
                warps.emplace_back([&, i, run = kernel] {
                    Warp state{&now, i / WARPS, i % WARPS};
                    self = &state;
                    run(map, arguments);
                    // A block that has ended has no shared memory.
                    own_block().barrier.arrive();
                    if (i % WARPS == 0) {
                        own_block().barrier.wait((state.block_waits + 1) * WARPS);
                        std::memset(own_block().memory, 0x7F, bytes);
                    }
                });
            for (auto& each : warps) each.join();
        }
        return 0;
    }
    return 1;
}

// The bits of FP8 sums of all later launches.
extern "C" void sum_bits(int bits) { fp8_sum_bits = bits; }

#ifdef PROGRAM
#define CASE(type, TYPE, SPLIT) {#type, SPLIT},
int main() {
    const std::pair<const char*, int> cases[] = {FOR_EACH_SPLIT(CASE)};
    for (const char* epilogue : {"project", "gelu", "residual"})
        for (const auto& [type, split] : cases)
            for (int share : {1, 2}) {
                if (split * share > 8) continue;
                const int chunks = 2, columns = 64 * share, depth = split * chunks * 128, tiles = 3;
                std::vector<uint8_t> activations(ROWS * depth, 0x38), weights(columns * depth, 0x38), eight(ROWS * columns);
                std::vector<float> vectors(VECTORS * columns, 0.5f);
                std::vector<half> residual(ROWS * columns), out(ROWS * columns);
                std::vector<float2> norms(tiles * ROWS, float2{0.0f, 64.0f}), out_norms(share * ROWS);
                TileMap map{activations.data(), depth};
                Arguments arguments{weights.data(), vectors.data(), norms.data(), residual.data(), out.data(), eight.data(),
                                    out_norms.data(), nullptr, 1e-12f, 1.0f / tiles, 0.0f, tiles, columns, chunks, share};
                void* parameters[] = {&map, &arguments};
                const int copied = chunks * (ACTIVATION_BYTES + WEIGHT_BYTES);
                const int bytes = (copied > PARTIAL_BYTES ? copied : PARTIAL_BYTES) + VECTORS * COLUMNS * 4 + 8 * chunks;
                const std::string name = std::string(epilogue) + "_" + type + "_" + std::to_string(split);
                if (launch(name.c_str(), split * share, split * share, bytes, parameters)) return 1;
                std::printf("%s share %d\n", name.c_str(), share);
            }
    return 0;
}
#endif
