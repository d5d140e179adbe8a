"""The main job on a data set that it makes itself."""
