"""Independent transcriptions of what pujax computes, in NumPy float64 and PyTorch."""
