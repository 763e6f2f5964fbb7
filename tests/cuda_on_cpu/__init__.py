"""CUDA C kernels run on the CPU, for numeric tests; it imports nothing of fgcam_onnx."""

from cuda_on_cpu.module import CompilerMissing, CpuModule, thread_order

__all__ = ["CompilerMissing", "CpuModule", "thread_order"]
