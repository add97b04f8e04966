"""Tensor parallelism: the language model's matrices cut over ranks with megatron-core; a task stays as it is."""
