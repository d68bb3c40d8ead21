// The two handle types of the CUDA runtime that TensorRT's headers mention: no CUDA toolkit is needed to build.
#pragma once
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
