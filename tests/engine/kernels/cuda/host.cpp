// Runs the kernels of gemm.cu on a CPU. As a library: `launch`. As a program: one launch, for ThreadSanitizer.
#include "host.hpp"

#include <array>
#include <cstddef>

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
// Runs a launch that a file describes, and writes the memory afterwards to the file: `Recorded` in host.py. A program of its own, because
// ThreadSanitizer has to be there from the start of the process.
template <class T>
T read(std::FILE* file) {
    T value;
    if (std::fread(&value, sizeof value, 1, file) != 1) std::abort();
    return value;
}

int main(int, char** names) {
    std::FILE* file = std::fopen(names[1], "r+b");
    const std::string kernel = read<std::array<char, 32>>(file).data();
    const auto [blocks, cluster, bytes, regions] = read<std::array<int, 4>>(file);
    auto map = read<TileMap>(file);
    auto arguments = read<Arguments>(file);
    std::vector<std::vector<uint8_t>> memory(regions);
    const long start = std::ftell(file);
    for (auto& region : memory) {
        const auto [address, size] = read<std::array<uint64_t, 2>>(file);
        region.resize(size);
        if (std::fread(region.data(), 1, size, file) != size) std::abort();
        // The pointers of the structures are their first members.
        auto moved = [&, was = address](auto* pointers, int n) {
            for (int i = 0; i < n; i++)
                if (reinterpret_cast<uint64_t*>(pointers)[i] == was) reinterpret_cast<uint8_t**>(pointers)[i] = region.data();
        };
        moved(&map, 1);
        moved(&arguments, offsetof(Arguments, eps) / sizeof(void*));
    }
    void* parameters[] = {&map, &arguments};
    if (launch(kernel.c_str(), blocks, cluster, bytes, parameters)) return 1;
    std::fseek(file, start, SEEK_SET);
    for (auto& region : memory) {
        std::fseek(file, 16, SEEK_CUR);
        std::fwrite(region.data(), 1, region.size(), file);
    }
    return std::fclose(file);
}
#endif
