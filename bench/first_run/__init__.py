"""The first hour on a GPU: everything that can be known of the kernels and the native engine, in bounded steps."""
