#pragma once
#include "cuda_on_cpu/cuda_on_cpu.h"
