"""The nouns, and what is on disk.  NumPy, Zarr and h5py; never torch, never a decoder."""
