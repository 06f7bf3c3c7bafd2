// CUDA's kernels as C++ on one thread: every CUDA thread of a block is a coroutine, and
// __syncthreads gives way to the next. Blocks run one after the other.
#include <cmath>
#include <cstddef>
#include <ucontext.h>

using std::exp;
using std::sqrt;

#define __global__
#define __device__ static
#define __shared__ static
#define __syncthreads() barrier(__LINE__)

struct Index {
    unsigned x, y, z;
};
static Index blockIdx, threadIdx, blockDim, gridDim;

constexpr unsigned MOST = 1024;
constexpr size_t STACK = 32 * 1024;
static ucontext_t scheduler, threads[MOST];
static char stacks[MOST][STACK];
static int waiting[MOST];  // the line of the barrier, 0 on the way, -1 at the end
static unsigned running;
static void (*body)(void**);
static void** arguments;

static void barrier(int line)
{
    waiting[running] = line;
    swapcontext(&threads[running], &scheduler);
}

static void thread()
{
    body(arguments);
    waiting[running] = -1;
}

// 0, or 1 if the threads of a block do not meet at the same barriers.
// backwards: the last thread of a block is the first to go on. A kernel without races cannot tell.
static int launch(void (*kernel)(void**), void** args, unsigned grid, unsigned block, int backwards)
{
    body = kernel;
    arguments = args;
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    for (unsigned b = 0; b < grid; ++b) {
        blockIdx = {b, 0, 0};
        for (unsigned t = 0; t < block; ++t) {
            getcontext(&threads[t]);
            threads[t].uc_stack.ss_sp = stacks[t];
            threads[t].uc_stack.ss_size = STACK;
            threads[t].uc_link = &scheduler;
            makecontext(&threads[t], thread, 0);
        }
        do {
            for (unsigned i = 0; i < block; ++i) {
                running = backwards ? block - 1 - i : i;
                threadIdx = {running, 0, 0};
                waiting[running] = 0;
                swapcontext(&scheduler, &threads[running]);
            }
            for (unsigned t = 1; t < block; ++t)
                if (waiting[t] != waiting[0]) return 1;
        } while (waiting[0] != -1);
    }
    return 0;
}
