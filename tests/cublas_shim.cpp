// The two functions of cuBLAS that the CuPy backend calls, by the signatures of its manual: a product
// of matrices that lie in memory by columns, in three loops.

#include <cstddef>

template <typename real>
static void product(
    bool a_turned, bool b_turned, int m, int n, int k, real alpha, const real* a, int lda,
    const real* b, int ldb, real beta, real* c, int ldc)
{
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < m; ++i) {
            real sum = 0;
            for (int l = 0; l < k; ++l)
                sum += a[a_turned ? l + (size_t)i * lda : i + (size_t)l * lda]
                    * b[b_turned ? j + (size_t)l * ldb : l + (size_t)j * ldb];
            real& out = c[i + (size_t)j * ldc];
            out = alpha * sum + (beta == 0 ? 0 : beta * out);  // C need not be a number then
        }
}

template <typename real>
static void each(
    bool a_turned, bool b_turned, int m, int n, int k, const void* alpha, const void* a, int lda,
    long long a_step, const void* b, int ldb, long long b_step, const void* beta, void* c, int ldc,
    long long c_step, int count)
{
    for (int i = 0; i < count; ++i)
        product(a_turned, b_turned, m, n, k, *(const real*)alpha, (const real*)a + i * a_step, lda,
            (const real*)b + i * b_step, ldb, *(const real*)beta, (real*)c + i * c_step, ldc);
}

extern "C" int cublasSetStream_v2(void* handle, void* stream)
{
    return handle ? 0 : 1;  // CUBLAS_STATUS_NOT_INITIALIZED
}

extern "C" int cublasGemmStridedBatchedEx(
    void* handle, int transa, int transb, int m, int n, int k,
    const void* alpha, const void* A, int Atype, int lda, long long strideA,
    const void* B, int Btype, int ldb, long long strideB,
    const void* beta, void* C, int Ctype, int ldc, long long strideC,
    int batchCount, int computeType, int algo)
{
    if (!handle) return 1;
    if (m < 0 || n < 0 || k < 0 || batchCount < 0 || (transa | transb) >> 1) return 7;
    int a_rows = transa ? k : m, b_rows = transb ? n : k;
    if (lda < a_rows || ldb < b_rows || ldc < m || lda < 1 || ldb < 1 || ldc < 1) return 7;
    if (Btype != Atype || Ctype != Atype || algo != -1) return 15;  // ..._NOT_SUPPORTED
    if (Atype == 0 && computeType == 68)
        each<float>(transa, transb, m, n, k, alpha, A, lda, strideA, B, ldb, strideB, beta, C, ldc,
            strideC, batchCount);
    else if (Atype == 1 && computeType == 70)
        each<double>(transa, transb, m, n, k, alpha, A, lda, strideA, B, ldb, strideB, beta, C, ldc,
            strideC, batchCount);
    else return 15;
    return 0;
}
