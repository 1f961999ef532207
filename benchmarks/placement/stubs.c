/* What ONNX Runtime's CUDA provider calls while it sets itself up and places nodes, answered as by one large GPU.
   Memory of the device is memory of the host, so that copies are copies; kernels do nothing. */
#include <stdlib.h>
#include <string.h>

#define OK 0

/* The beginning of CUDA 13's cudaDeviceProp. */
struct properties {
    char name[256], uuid[16], luid[8];
    unsigned node_mask;
    size_t memory, shared_per_block;
    int registers_per_block, warp;
    size_t pitch;
    int threads_per_block, threads[3], grid[3];
    size_t constant;
    int major, minor;
};

static int handle;

int cudaGetDeviceCount(int *count) { *count = 1; return OK; }
int cudaGetDevice(int *device) { *device = 0; return OK; }
int cudaDriverGetVersion(int *version) { *version = 13000; return OK; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return OK; }

int cudaGetDeviceProperties(struct properties *found, int device) {
    (void)device;
    memset(found, 0, sizeof *found);
    strcpy(found->name, "no GPU, a stub");
    found->memory = (size_t)16 << 30;
    found->shared_per_block = 49152;
    found->registers_per_block = 65536;
    found->warp = 32;
    found->threads_per_block = 1024;
    found->threads[0] = found->threads[1] = 1024;
    found->threads[2] = 64;
    found->grid[0] = 2147483647;
    found->grid[1] = found->grid[2] = 65535;
    found->major = 9;
    return OK;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 1: *value = 1024; break;    /* threads of a block */
    case 10: *value = 32; break;     /* threads of a warp */
    case 16: *value = 100; break;    /* multiprocessors */
    case 75: *value = 9; break;      /* compute capability */
    case 76: *value = 0; break;
    case 97: *value = 232448; break; /* shared memory that a block may ask for */
    default: *value = 1;
    }
    return OK;
}

int cudaMemGetInfo(size_t *available, size_t *total) {
    *available = (size_t)15 << 30;
    *total = (size_t)16 << 30;
    return OK;
}

static int allocate(void **memory, size_t size) { *memory = calloc(1, size ? size : 1); return *memory ? OK : 2; }

int cudaMalloc(void **memory, size_t size) { return allocate(memory, size); }
int cudaMallocHost(void **memory, size_t size) { return allocate(memory, size); }
int cudaHostAlloc(void **memory, size_t size, unsigned flags) { (void)flags; return allocate(memory, size); }
int cudaMallocFromPoolAsync(void **memory, size_t size) { return allocate(memory, size); }
int cudaFree(void *memory) { free(memory); return OK; }
int cudaFreeAsync(void *memory) { free(memory); return OK; }
int cudaFreeHost(void *memory) { free(memory); return OK; }

int cudaMemcpy(void *to, const void *from, size_t size) { memmove(to, from, size); return OK; }
int cudaMemcpyAsync(void *to, const void *from, size_t size) { memmove(to, from, size); return OK; }
int cudaMemset(void *to, int value, size_t size) { memset(to, value, size); return OK; }
int cudaMemsetAsync(void *to, int value, size_t size) { memset(to, value, size); return OK; }

/* How often; a test reads them. */
int stub_captures, stub_replays, stub_kernels;

int cudaStreamBeginCapture(void *stream) { (void)stream; stub_captures++; return OK; }
int cudaGraphLaunch(void *graph) { (void)graph; stub_replays++; return OK; }
int cudaLaunchKernel(void *kernel) { (void)kernel; stub_kernels++; return OK; }
int __cudaLaunchKernel(void *kernel) { (void)kernel; stub_kernels++; return OK; }
int cudaLaunchKernelExC(void *kernel) { (void)kernel; stub_kernels++; return OK; }

static int made(void **what) { *what = &handle; return OK; }

int cudaStreamCreate(void **stream) { return made(stream); }
int cudaStreamCreateWithFlags(void **stream) { return made(stream); }
int cudaEventCreate(void **event) { return made(event); }
int cudaEventCreateWithFlags(void **event) { return made(event); }
int cudaMemPoolCreate(void **pool) { return made(pool); }
int cudaStreamEndCapture(void *stream, void **graph) { (void)stream; return made(graph); }
int cudaGraphInstantiate(void **graph) { return made(graph); }
int cudaStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return OK; }
int cudaPointerGetAttributes(void *found) { memset(found, 0, 24); return OK; }
int cudaFuncGetAttributes(void *found) { memset(found, 0, 64); return OK; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { *blocks = 1; return OK; }
const char *cudaGetErrorString(int error) { (void)error; return "an error of a stub"; }
const char *cudaGetErrorName(int error) { (void)error; return "stub"; }

void **__cudaRegisterFatBinary(void *binary) { (void)binary; static void *kept; return &kept; }

int cublasCreate_v2(void **made_here) { return made(made_here); }
int cublasLtCreate(void **made_here) { return made(made_here); }
int cublasLtMatmulDescCreate(void **made_here) { return made(made_here); }
int cublasLtMatmulPreferenceCreate(void **made_here) { return made(made_here); }
int cublasLtMatrixLayoutCreate(void **made_here) { return made(made_here); }
const char *cublasGetStatusString(int status) { (void)status; return "a status of a stub"; }
const char *cublasGetStatusName(int status) { (void)status; return "stub"; }
int curandCreateGenerator(void **made_here) { return made(made_here); }
int cudnnCreate(void **made_here) { return made(made_here); }
size_t cudnnGetVersion(void) { return 91000; }
